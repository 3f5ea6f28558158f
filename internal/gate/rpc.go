package gate

import (
	"encoding/binary"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/go-smokesignal/smokesignal/internal/frame"
)

// The fields of floodsub's messages that the gate reads.
const (
	fieldSubscriptions = 1 // of RPC: SubOpts
	fieldPublish       = 2 // of RPC: Message
	fieldSubscribe     = 1 // of SubOpts: bool
	fieldTopic         = 2 // of SubOpts: string
)

// A subOpts is one entry of an announcement: a topic that the sender is on, or has left.
type subOpts struct {
	topic string
	on    bool
	raw   []byte // its encoding, pointing into the RPC
}

// inspect returns the topics that an RPC announces and the number of its messages. A
// malformed RPC announces nothing.
func inspect(rpc []byte) (subs []subOpts, messages int) {
	_, n := protowire.ConsumeVarint(rpc)
	if n < 0 {
		return nil, 0
	}
	for f, err := range frame.Fields(rpc[n:]) {
		switch {
		case err != nil:
			return subs, messages
		case f.Type != protowire.BytesType: // not a field that floodsub has
		case f.Num == fieldPublish:
			messages++
		case f.Num == fieldSubscriptions:
			sub := subOpts{raw: f.Bytes}
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

// announcement returns the RPC that announces these SubOpts, or nil if there are none.
func announcement(topics map[string][]byte) []byte {
	var rpc []byte
	for _, sub := range topics {
		rpc = frame.AppendMessage(rpc, fieldSubscriptions, sub)
	}
	if len(rpc) == 0 {
		return nil
	}
	return frame.Append(nil, rpc)
}

// frameEnd returns the length of the first RPC in b, which holds only whole ones.
func frameEnd(b []byte) int {
	size, n := protowire.ConsumeVarint(b)
	if n < 0 || size > uint64(len(b)-n) {
		return len(b) // pubsub wrote something that is not an RPC
	}
	return n + int(size)
}

const (
	// maxRPC is the longest RPC that pubsub reads, in bytes.
	maxRPC = 1 << 20
	// maxOversize bounds the RPCs that are left out for being longer. A peer that sends
	// even longer ones does not speak pubsub, and is left to pubsub.
	maxOversize = 64 << 20
	// maxHeld is how many bytes of earlier calls of filter can come out of the next.
	maxHeld = binary.MaxVarintLen64
)

// An rpcFilter follows the RPCs in the bytes that are read from a stream, and removes
// those that are too long.
type rpcFilter struct {
	left    uint64 // bytes of the current RPC that are still to come
	discard bool   // the current RPC is too long
	length  []byte // the part of the next RPC's length that was read
	lost    bool   // a length was invalid, so nothing is removed any more
}

// filter appends the bytes of b that pubsub shall read to dst, and returns how many RPCs
// began that are left out. The two may share memory if b begins at least maxHeld bytes
// behind the end of dst.
func (f *rpcFilter) filter(dst, b []byte) (_ []byte, oversize int) {
	for len(b) > 0 && !f.lost {
		// Inside an RPC.
		if f.left > 0 {
			n := int(min(f.left, uint64(len(b))))
			if !f.discard {
				dst = append(dst, b[:n]...)
			}
			f.left -= uint64(n)
			b = b[n:]
			continue
		}
		// Inside its length.
		f.length = append(f.length, b[0])
		last := b[0] < 0x80
		b = b[1:]
		if !last && len(f.length) < maxHeld {
			continue
		}
		size, n := binary.Uvarint(f.length)
		f.left, f.lost = size, n <= 0
		if f.discard = n > 0 && maxRPC < size && size <= maxOversize; f.discard {
			oversize++
		} else {
			dst = append(dst, f.length...)
		}
		f.length = f.length[:0]
	}
	return append(dst, b...), oversize
}

// atBoundary reports whether the stream is between two RPCs.
func (f *rpcFilter) atBoundary() bool { return f.left == 0 && len(f.length) == 0 && !f.lost }
