package overlay

import (
	"errors"
	"math/rand/v2"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/go-smokesignal/smokesignal/internal/schema"
)

var codec = schema.HandCodec[vector]{
	Message: "Overlay",
	Decode: func(b []byte) (vector, error) {
		m, err := Decode(b)
		return toVector(m), err
	},
	Encode: func(v vector) ([]byte, error) {
		m := fromVector(v)
		if m == nil {
			return nil, errors.New("there is no message in it")
		}
		return Append(nil, m), nil
	},
	Rules: func(r *rand.Rand, m protoreflect.Message) {
		schema.Each(m, func(m protoreflect.Message) {
			fields := m.Descriptor().Fields()
			for i := range fields.Len() {
				switch f := fields.Get(i); f.Name() {
				case "session":
					schema.Set(m, "session", schema.Bytes(r, 8))
				case "id":
					schema.Set(m, "id", schema.Bytes(r, 38))
				case "origin", "owner":
					schema.Set(m, string(f.Name()), schema.Bytes(r, 50))
				case "target":
					schema.Set(m, "target", schema.Bytes(r, 38))
				case "path":
					path := m.Mutable(f).List()
					path.Truncate(0)
					for range 1 + r.IntN(4) {
						path.Append(protoreflect.ValueOfBytes(schema.Bytes(r, 38)))
					}
				case "degree":
					schema.Set(m, "degree", 1+r.Uint32N(1<<16))
				case "ttl":
					schema.Set(m, "ttl", 1+r.Uint32N(8))
				case "reason":
					schema.Set(m, "reason", 1+r.Uint32N(18))
				case "network":
					schema.Set(m, "network", "kitchen")
				case "stamp", "echo", "hold":
					schema.Set(m, string(f.Name()), 1+r.Uint64N(1<<40))
				}
			}
		})
	},
}

// The hand-written codec agrees with the schema.
func TestTheCodecAgreesWithTheProtoFile(t *testing.T) {
	codec.Vectors(t, "overlay.json")
	codec.Random(t, 2000)
}
