package host

import (
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/go-smokesignal/smokesignal/internal/frame"
)

// The fields of floodsub's messages that the gate has to know.
const (
	fieldSubscriptions = 1 // of RPC: SubOpts
	fieldPublish       = 2 // of RPC: Message
	fieldSubscribe     = 1 // of SubOpts: bool
	fieldTopic         = 2 // of SubOpts: string
)

// A subscription is one entry of an announcement.
type subscription struct {
	topic string
	on    bool
	raw   []byte // the SubOpts, pointing into the RPC
}

// inspect returns what the gate has to know of an RPC: the topics it announces
// and the number of its messages. What is malformed announces nothing and is
// passed on.
func inspect(rpc []byte) (subs []subscription, messages int) {
	_, n := protowire.ConsumeVarint(rpc)
	if n < 0 {
		return nil, 0
	}
	for f, err := range frame.Fields(rpc[n:]) {
		switch {
		case err != nil:
			return subs, messages
		case f.Type != protowire.BytesType:
		case f.Num == fieldPublish:
			messages++
		case f.Num == fieldSubscriptions:
			sub := subscription{raw: f.Bytes}
			for opt, err := range frame.Fields(f.Bytes) {
				switch {
				case err != nil:
					return subs, messages
				case opt.Num == fieldSubscribe:
					sub.on = opt.Uint != 0
				case opt.Num == fieldTopic:
					sub.topic = string(opt.Bytes)
				}
			}
			subs = append(subs, sub)
		}
	}
	return subs, messages
}

// announcing returns the RPC that announces these SubOpts; it is nil if
// there are none.
func announcing(topics map[string][]byte) []byte {
	var rpc []byte
	for _, sub := range topics {
		rpc = frame.AppendMessage(rpc, fieldSubscriptions, sub)
	}
	if len(rpc) == 0 {
		return nil
	}
	return frame.Append(nil, rpc)
}

// frameEnd returns the length of the RPC at the beginning of b, which holds
// whole ones only.
func frameEnd(b []byte) int {
	size, n := protowire.ConsumeVarint(b)
	if n < 0 || size > uint64(len(b)-n) {
		return len(b) // pubsub wrote what is no RPC
	}
	return n + int(size)
}

// A boundary follows the RPCs in what is read from a stream, to tell whether
// the stream is between two.
type boundary struct {
	left  uint64 // bytes to come of the RPC
	size  uint64 // as far as its length has come
	shift uint   // bits of the length that have come
}

func (d *boundary) pass(b []byte) {
	for len(b) > 0 {
		if d.left > 0 {
			n := min(d.left, uint64(len(b)))
			d.left -= n
			b = b[n:]
			continue
		}
		d.size |= uint64(b[0]&0x7f) << d.shift
		d.shift += 7
		if b[0] < 0x80 {
			d.left, d.size, d.shift = d.size, 0, 0
		}
		b = b[1:]
	}
}

func (d *boundary) between() bool { return d.left == 0 && d.shift == 0 }
