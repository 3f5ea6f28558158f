package seed

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"strings"
	"testing"

	ma "github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/go-smokesignal/smokesignal/internal/schema"
)

// The hand-written codec of tickets agrees with the schema.
func TestTicketsAgreeWithTheProtoFile(t *testing.T) {
	schema.HandCodec[Ticket]{
		Message: "Ticket",
		Decode: func(b []byte) (Ticket, error) {
			b = binary.BigEndian.AppendUint32(b[:len(b):len(b)], crc32.ChecksumIEEE(b))
			return ParseTicket(ticketWord + ticketVersion + ticketLetters.EncodeToString(b))
		},
		Encode: func(ticket Ticket) ([]byte, error) {
			text, err := ticket.Encode()
			if err != nil {
				return nil, err
			}
			b, err := ticketLetters.DecodeString(strings.TrimPrefix(text, ticketWord+ticketVersion))
			return b[:len(b)-crc32.Size], err
		},
		Rules: func(r *rand.Rand, m protoreflect.Message) {
			schema.Set(m, "id", schema.Bytes(r, 32))
			schema.Set(m, "network", "kitchen")
			list := func(name protoreflect.Name) protoreflect.List {
				l := m.Mutable(m.Descriptor().Fields().ByName(name)).List()
				l.Truncate(0)
				return l
			}
			endpoints, addrs := list("endpoint"), list("addr")
			for i := range 1 + r.IntN(3) {
				endpoints.Append(protoreflect.ValueOfBytes([]byte{192, 0, 2, byte(i), 33, byte(r.Uint32())}))
			}
			for i := range r.IntN(3) {
				a := ma.StringCast(fmt.Sprintf("/ip4/192.0.2.1/tcp/%d/ws", 8000+i))
				addrs.Append(protoreflect.ValueOfBytes(a.Bytes()))
			}
		},
	}.Random(t, 500)
}
