package gate

import (
	"encoding/binary"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/go-smokesignal/smokesignal/internal/frame"
)

// The protobuf field numbers that the gate reads in floodsub's RPC and SubOpts messages.
const (
	fieldSubscriptions = 1 // in RPC: SubOpts
	fieldPublish       = 2 // in RPC: Message
	fieldSubscribe     = 1 // in SubOpts: bool
	fieldTopic         = 2 // in SubOpts: string
)

// A subOpts is one entry of an announcement of topics: a topic that the sender has
// subscribed to or left.
type subOpts struct {
	topic string
	on    bool
	raw   []byte // the encoded entry, a part of the RPC's memory
}

// inspect returns the topics that an RPC announces and the number of its messages. In a
// malformed RPC it stops at the first error.
func inspect(rpc []byte) (subs []subOpts, messages int) {
	_, n := protowire.ConsumeVarint(rpc)
	if n < 0 {
		return nil, 0
	}
	for f, err := range frame.Fields(rpc[n:]) {
		switch {
		case err != nil:
			return subs, messages
		case f.Type != protowire.BytesType: // floodsub's RPC has only fields of this type, so other fields are skipped
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

// announcement returns an RPC that announces topics, a map from topics to their encoded
// SubOpts. It returns nil if the map is empty.
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

// frameEnd returns the length of the first RPC in b. All RPCs in b are complete.
func frameEnd(b []byte) int {
	size, n := protowire.ConsumeVarint(b)
	if n < 0 || size > uint64(len(b)-n) {
		return len(b) // pubsub wrote bytes that are not an RPC
	}
	return n + int(size)
}

const (
	// maxRPC is the length in bytes of the longest RPC that pubsub accepts.
	maxRPC = 1 << 20
	// maxOversize is the length in bytes of the longest RPC that the gate removes. A peer
	// that sends longer ones does not speak pubsub; they go to pubsub, which resets the
	// stream.
	maxOversize = 64 << 20
	// maxHeld is the largest number of bytes of an incomplete RPC length that one call
	// of filter keeps. The next call adds them to its result.
	maxHeld = binary.MaxVarintLen64
)

// An rpcFilter removes RPCs that are too long for pubsub from the bytes read from a stream.
// It keeps track of where each RPC begins and ends.
type rpcFilter struct {
	left    uint64 // how many bytes of the current RPC have not been read yet
	discard bool   // the current RPC is too long and is being removed
	length  []byte // the bytes of the next RPC's length that were read so far
	lost    bool   // the length of an RPC was invalid; from then on, the filter removes nothing
}

// filter appends to dst those bytes of b, the next bytes of the stream, that pubsub may
// read. It returns the extended dst and the number of RPCs that begin in b and are removed.
// dst and b may share memory if b begins at least maxHeld bytes after the end of dst.
func (f *rpcFilter) filter(dst, b []byte) (_ []byte, oversize int) {
	for len(b) > 0 && !f.lost {
		// b begins inside an RPC.
		if f.left > 0 {
			n := int(min(f.left, uint64(len(b))))
			if !f.discard {
				dst = append(dst, b[:n]...)
			}
			f.left -= uint64(n)
			b = b[n:]
			continue
		}
		// b[0] is a byte of the length of an RPC.
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

// atBoundary reports whether the last byte that was read is the end of an RPC.
func (f *rpcFilter) atBoundary() bool { return f.left == 0 && len(f.length) == 0 && !f.lost }
