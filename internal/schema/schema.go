// Package schema compares hand-written codecs with the .proto files of docs/proto. The
// tests of the packages with such codecs use it.
package schema

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/bufbuild/protocompile"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/go-smokesignal/smokesignal/internal/vectors"
)

// Files are the .proto files of docs/proto.
var Files = []string{"batch.proto", "events.proto", "overlay.proto", "pubsub.proto", "repair.proto", "signal.proto", "ticket.proto"}

var compiled struct {
	sync.Mutex
	messages map[string]protoreflect.MessageDescriptor
}

// Message returns the message with the given name, such as "Overlay", from the .proto
// files.
func Message(t testing.TB, name string) protoreflect.MessageDescriptor {
	t.Helper()
	compiled.Lock()
	defer compiled.Unlock()
	if compiled.messages == nil {
		compiled.messages = map[string]protoreflect.MessageDescriptor{}
		dir := filepath.Join(vectors.Docs(t), "proto")
		sources := map[string]string{}
		for _, file := range Files {
			b, err := os.ReadFile(filepath.Join(dir, file))
			if err != nil {
				t.Fatal(err)
			}
			sources[file] = string(b)
		}
		compiled.messages = Compile(t, sources)
	}
	m := compiled.messages[name]
	if m == nil {
		t.Fatalf("there is no message %s in %v", name, Files)
	}
	return m
}

// Compile compiles .proto sources, given by file name, and returns their messages.
func Compile(t testing.TB, sources map[string]string) map[string]protoreflect.MessageDescriptor {
	t.Helper()
	c := protocompile.Compiler{Resolver: &protocompile.SourceResolver{Accessor: protocompile.SourceAccessorFromMap(sources)}}
	messages := map[string]protoreflect.MessageDescriptor{}
	for name := range sources {
		files, err := c.Compile(context.Background(), name)
		if err != nil {
			t.Fatal(err)
		}
		for i := range files[0].Messages().Len() {
			m := files[0].Messages().Get(i)
			messages[string(m.Name())] = m
		}
	}
	return messages
}

// A HandCodec is the hand-written codec of the message named Message. Decode and Encode
// have the form that vectors.Test needs. T holds every field of the message.
type HandCodec[T any] struct {
	Message string
	Decode  func([]byte) (T, error)
	Encode  func(T) ([]byte, error)
	// Rules, if set, changes a random message so that it meets the rules of
	// docs/wire.md that a .proto file cannot express. Decode must accept the result.
	Rules func(r *rand.Rand, m protoreflect.Message)
}

// Vectors checks the codec with the vectors of docs/vectors/file, except those that a
// reader must refuse. The .proto file must be able to read each vector, without unknown
// fields unless the vector is ReadOnly. Generated code then writes the message again, and
// the codec must read the same from these bytes as from the vector.
func (c HandCodec[T]) Vectors(t *testing.T, file string) {
	t.Helper()
	kind := Message(t, c.Message)
	for _, v := range vectors.Read(t, file) {
		if v.Error {
			continue
		}
		m := dynamicpb.NewMessage(kind)
		if err := proto.Unmarshal(v.Hex, m); err != nil {
			t.Errorf("%s, %s: %s of the .proto file cannot read it: %v", file, v.Name, c.Message, err)
			continue
		}
		if left := unknown(m); left != "" && !v.ReadOnly {
			t.Errorf("%s, %s: fields unknown to the .proto file: %s", file, v.Name, left)
		}
		want, err := c.Decode(v.Hex)
		if err != nil {
			t.Errorf("%s, %s: %v", file, v.Name, err)
			continue
		}
		c.same(t, fmt.Sprintf("%s, %s", file, v.Name), m, want)
	}
}

// Random checks the codec with n random messages of the .proto file. The codec must read
// the bytes of generated code, and generated code must read the bytes of the codec, with
// the same fields.
func (c HandCodec[T]) Random(t *testing.T, n int) {
	t.Helper()
	kind := Message(t, c.Message)
	for i := range n {
		r := rand.New(rand.NewPCG(uint64(i), 1))
		m := dynamicpb.NewMessage(kind)
		fill(r, m)
		if c.Rules != nil {
			c.Rules(r, m)
		}
		what := fmt.Sprintf("random message %d", i)
		b := marshal(t, m)
		got, err := c.Decode(b)
		if err != nil {
			t.Fatalf("%s: %v\n%v", what, err, m)
		}
		written, err := c.Encode(got)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		back := dynamicpb.NewMessage(kind)
		if err := proto.Unmarshal(written, back); err != nil {
			t.Fatalf("%s: the .proto file cannot read what the codec wrote: %v", what, err)
		}
		if !proto.Equal(m, back) {
			t.Fatalf("%s: the codec wrote\n%v\nfor\n%v", what, back, m)
		}
	}
}

// same checks that the codec reads want from the bytes that generated code writes for m.
func (c HandCodec[T]) same(t *testing.T, what string, m proto.Message, want T) {
	t.Helper()
	got, err := c.Decode(marshal(t, m))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%s: the bytes of generated code were read as\n%+v, want\n%+v; %v", what, got, want, err)
	}
}

func marshal(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// unknown returns the fields of m, and of the messages inside, that the .proto file
// lacks.
func unknown(m protoreflect.Message) string {
	var left []string
	if b := m.GetUnknown(); len(b) > 0 {
		left = append(left, fmt.Sprintf("%s: %x", m.Descriptor().Name(), []byte(b)))
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.Message() == nil:
		case f.IsList():
			for i := range v.List().Len() {
				left = append(left, unknown(v.List().Get(i).Message()))
			}
		default:
			left = append(left, unknown(v.Message()))
		}
		return true
	})
	return strings.TrimSpace(strings.Join(left, " "))
}

// fill sets about half of the fields of m, chosen at random, to random values. In a
// message with OneKind it sets exactly one.
func fill(r *rand.Rand, m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	if OneKind(m.Descriptor()) {
		f := fields.Get(r.IntN(fields.Len()))
		m.Set(f, random(r, m, f))
		return
	}
	for i := range fields.Len() {
		f := fields.Get(i)
		if r.IntN(2) == 0 {
			continue
		}
		if !f.IsList() {
			m.Set(f, random(r, m, f))
			continue
		}
		list := m.Mutable(f).List()
		for range r.IntN(4) {
			list.Append(random(r, m, f))
		}
	}
}

// OneKind reports whether the message must have exactly one field set.
func OneKind(m protoreflect.MessageDescriptor) bool {
	switch m.Name() {
	case "Overlay", "DirectFrame", "RepairFrame", "Signal":
		return true
	}
	return false
}

func random(r *rand.Rand, m protoreflect.Message, f protoreflect.FieldDescriptor) protoreflect.Value {
	switch f.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(1 + r.Uint32N(1<<r.IntN(31)))
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(1 + r.Uint64N(1<<r.IntN(62)))
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(string(bytes.Repeat([]byte("é"), 1+r.IntN(30))))
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes(Bytes(r, 1+r.IntN(60)))
	case protoreflect.MessageKind:
		x := m.NewField(f)
		if f.IsList() {
			x = x.List().NewElement()
		}
		fill(r, x.Message())
		return x
	}
	panic("schema: random values of the kind " + f.Kind().String() + " are not supported")
}

// Bytes returns n random bytes.
func Bytes(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// PeerID returns the bytes of the peer id of a random Ed25519 key.
func PeerID(r *rand.Rand) []byte {
	return append([]byte{0, 36, 8, 1, 18, 32}, Bytes(r, 32)...)
}

// Set sets the field with the given name. A zero value counts as set.
func Set(m protoreflect.Message, name string, value any) {
	f := m.Descriptor().Fields().ByName(protoreflect.Name(name))
	m.Set(f, protoreflect.ValueOf(value))
}

// Get returns the value of the field with the given name.
func Get(m protoreflect.Message, name string) protoreflect.Value {
	return m.Get(m.Descriptor().Fields().ByName(protoreflect.Name(name)))
}

// Each calls f for every message inside m, at any depth, and then for m.
func Each(m protoreflect.Message, f func(protoreflect.Message)) {
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.Message() == nil:
		case fd.IsList():
			for i := range v.List().Len() {
				Each(v.List().Get(i).Message(), f)
			}
		default:
			Each(v.Message(), f)
		}
		return true
	})
	f(m)
}
