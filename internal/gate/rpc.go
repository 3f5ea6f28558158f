package gate

import (
	"encoding/binary"

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

// maxRPC is how long an RPC pubsub reads, in bytes, and maxSkipped how long a longer
// one may be that is left out; a peer that sends even more makes no sense.
const (
	maxRPC     = 1 << 20
	maxSkipped = 64 << 20
	// maxHeld is how many bytes of what was passed to a sieve can come out with
	// what is passed next.
	maxHeld = binary.MaxVarintLen64
)

// A sieve follows the RPCs in what is read from a stream: it takes away those that
// are too long, and can tell whether the stream is between two.
type sieve struct {
	left   uint64 // bytes to come of the RPC
	skip   bool   // which are left out
	length []byte // of the next RPC, as far as it has come
	lost   bool   // there was a length that is none
}

// pass appends to dst what shall be read of b, and counts the RPCs of which the
// beginning was left out. The two may share memory if b begins maxHeld bytes behind
// dst, or more.
func (s *sieve) pass(dst, b []byte) (_ []byte, oversize int) {
	for len(b) > 0 && !s.lost {
		if s.left > 0 {
			n := int(min(s.left, uint64(len(b))))
			if !s.skip {
				dst = append(dst, b[:n]...)
			}
			s.left -= uint64(n)
			b = b[n:]
			continue
		}
		s.length = append(s.length, b[0])
		last := b[0] < 0x80
		b = b[1:]
		if !last && len(s.length) < maxHeld {
			continue
		}
		size, n := binary.Uvarint(s.length)
		s.left, s.lost = size, n <= 0
		if s.skip = n > 0 && maxRPC < size && size <= maxSkipped; s.skip {
			oversize++
		} else {
			dst = append(dst, s.length...)
		}
		s.length = s.length[:0]
	}
	return append(dst, b...), oversize
}

func (s *sieve) between() bool { return s.left == 0 && len(s.length) == 0 && !s.lost }
