package health

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/libp2p/go-libp2p/core/crypto"
	ma "github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/go-smokesignal/smokesignal/internal/schema"
)

// A fixedKey signs everything with the same bytes.
type fixedKey struct {
	crypto.PrivKey
	signature []byte
}

func (k fixedKey) Sign([]byte) ([]byte, error) { return k.signature, nil }

// The hand-written codec of signals agrees with the schema.
func TestSignalsAgreeWithTheProtoFile(t *testing.T) {
	schema.HandCodec[*parsedSignal]{
		Message: "Signal",
		Decode:  parseSignal,
		Encode: func(s *parsedSignal) ([]byte, error) {
			if s.ping != nil {
				return s.ping.seal(fixedKey{signature: s.signature})
			}
			return s.pong.seal(fixedKey{signature: s.signature})
		},
		Rules: func(r *rand.Rand, m protoreflect.Message) {
			schema.Each(m, func(m protoreflect.Message) {
				fields := m.Descriptor().Fields()
				for i := range fields.Len() {
					switch f := fields.Get(i); f.Name() {
					case "target", "origin", "answerer", "ping_origin":
						schema.Set(m, string(f.Name()), schema.PeerID(r))
					case "session", "ping_session":
						schema.Set(m, string(f.Name()), schema.Bytes(r, 8))
					case "interval":
						schema.Set(m, "interval", 1+r.Uint32N(1<<20))
					case "signature":
						schema.Set(m, "signature", schema.Bytes(r, 64))
					case "addrs":
						list := m.Mutable(f).List()
						list.Truncate(0)
						for i := range r.IntN(4) { // in the order in which they are written
							a := binary.BigEndian.AppendUint16([]byte{ma.P_IP4, 192, 0, 2, byte(i), ma.P_TCP}, 8495)
							list.Append(protoreflect.ValueOfBytes(a))
						}
					}
				}
			})
		},
	}.Random(t, 500)
}
