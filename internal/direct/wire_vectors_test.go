package direct

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/fxamacker/cbor/v2"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/go-smokesignal/smokesignal/internal/event"
	"github.com/go-smokesignal/smokesignal/internal/frame"
	"github.com/go-smokesignal/smokesignal/internal/payload"
	"github.com/go-smokesignal/smokesignal/internal/schema"
	"github.com/go-smokesignal/smokesignal/internal/vectors"
)

// eventVector is an event in the form of docs/vectors/event.json. The name of one
// with a protobuf message is the full name of that message's type.
type eventVector struct {
	Name string      `json:"name"`
	Args []argVector `json:"args,omitempty"`
}

type argVector struct {
	Codec uint32        `json:"codec"`
	Data  vectors.Bytes `json:"data,omitempty"`
	// Value is what data of codec 1 to 3 says: a protobuf message as ProtoJSON,
	// bytes inside CBOR as base64.
	Value any `json:"value,omitempty"`
	// Undecodable marks data that has to be refused when the argument is read,
	// which spoils neither the event nor its other arguments.
	Undecodable bool `json:"undecodable,omitempty"`
}

// TestVectorsOfEvents: docs/vectors/event.json has Event messages.
func TestVectorsOfEvents(t *testing.T) {
	vectors.Test(t, "event.json", decodeVector, eventVector.encode)
	codec := schema.HandCodec[eventVector]{
		Message: "Event", Decode: decodeVector, Encode: eventVector.encode,
		Rules: func(r *rand.Rand, m protoreflect.Message) { validEvent(m) },
	}
	codec.Vectors(t, "event.json")
	codec.Random(t, 1000)
}

// validEvent gives the event a name, and its arguments a codec for which any data is good.
func validEvent(m protoreflect.Message) {
	schema.Set(m, "name", "kitchen/lamp")
	args := schema.Get(m, "args").List()
	for i := range args.Len() {
		schema.Set(args.Get(i).Message(), "codec", uint32(event.CodecRaw))
	}
}

func decodeVector(b []byte) (v eventVector, err error) {
	ev, err := event.Parse("sender", b)
	if err != nil {
		return v, err
	}
	v.Name = ev.Name
	rest := ev.Args
	for i := range ev.Len() {
		var a payload.Arg
		a, rest = rest.Next()
		value, err := valueOf(ev, i, a.Codec)
		v.Args = append(v.Args, argVector{a.Codec, a.Data, value, err != nil})
	}
	return v, nil
}

// valueOf returns argument i as encoding/json has it in an any, nil for raw
// bytes.
func valueOf(ev *event.Event, i int, codec uint32) (value any, err error) {
	var b []byte
	switch ptrs := make([]any, i+1); codec {
	case event.CodecRaw:
		return nil, nil
	case event.CodecProto:
		kind, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName(ev.Name))
		if err != nil {
			return nil, err
		}
		m := kind.New().Interface()
		ptrs[i] = m
		if err := ev.Decode(ptrs...); err != nil {
			return nil, err
		}
		if b, err = protojson.Marshal(m); err != nil {
			return nil, err
		}
	default:
		var v any
		ptrs[i] = &v
		if err := ev.Decode(ptrs...); err != nil {
			return nil, err
		}
		if b, err = json.Marshal(v); err != nil {
			return nil, err
		}
	}
	err = json.Unmarshal(b, &value)
	return value, err
}

func (v eventVector) args() (c event.Codec, args []any, err error) {
	for _, a := range v.Args {
		switch a.Codec {
		case event.CodecRaw:
			args = append(args, []byte(a.Data))
		case event.CodecJSON:
			args = append(args, json.RawMessage(a.Data))
		case event.CodecCBOR:
			c = event.CBOR
			args = append(args, cbor.RawMessage(a.Data))
		case event.CodecProto:
			kind, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName(v.Name))
			if err != nil {
				return c, nil, err
			}
			m := kind.New().Interface()
			if err := proto.Unmarshal(a.Data, m); err != nil {
				return c, nil, err
			}
			args = append(args, m)
		}
	}
	return c, args, nil
}

func (v eventVector) encode() ([]byte, error) {
	c, args, err := v.args()
	if err != nil {
		return nil, err
	}
	return c.Encode(nil, v.Name, args, event.DefaultMaxSize)
}

// directVector is a stream of direct events in the form of
// docs/vectors/direct.json: what its frames say, those that say nothing left
// out.
type directVector struct {
	Hello  helloVector    `json:"hello"`
	Events []streamVector `json:"events,omitempty"`
}

// streamVector is an event, or a call if it has an id.
type streamVector struct {
	Call uint64 `json:"call,omitempty"`
	eventVector
}

type helloVector struct {
	Session vectors.Bytes `json:"session"`
	Network string        `json:"network,omitempty"`
	Serial  uint64        `json:"serial,omitempty"`
}

// TestVectorsOfDirectEvents: docs/vectors/direct.json has whole streams.
func TestVectorsOfDirectEvents(t *testing.T) {
	vectors.Test(t, "direct.json", func(b []byte) (v directVector, err error) {
		r := frame.NewReader(bytes.NewReader(b), maxHello)
		first, err := r.Next()
		if err != nil {
			return v, err
		}
		h, err := parseHello(first)
		if err != nil {
			return v, err
		}
		v.Hello = helloVector{vectors.Bytes(h.session), h.network, h.serial}
		r.SetLimit(event.DefaultMaxSize + envelope)
		for {
			b, err := r.Next()
			if errors.Is(err, io.EOF) {
				return v, nil
			}
			if err != nil {
				return v, err
			}
			ev, call, err := parseDirectFrame(b)
			if err != nil {
				return v, err
			}
			if ev == nil {
				continue
			}
			e, err := decodeVector(bytes.Clone(ev))
			if err != nil {
				return v, err
			}
			v.Events = append(v.Events, streamVector{call, e})
		}
	}, func(v directVector) ([]byte, error) {
		b := hello{string(v.Hello.Session), v.Hello.Network, v.Hello.Serial}.append(nil)
		for _, e := range v.Events {
			c, args, err := e.args()
			if err != nil {
				return nil, err
			}
			size, buf, err := event.Prepare(c, e.Name, args, event.DefaultMaxSize)
			if err != nil {
				return nil, err
			}
			var id *pendingCall
			if e.Call != 0 {
				id = &pendingCall{id: e.Call}
			}
			b = appendFrame(b, &event.Outgoing{Name: e.Name, Args: args, Size: size, Buf: buf}, id)
		}
		return b, nil
	})
}

// TestDirectFramesAgreeWithTheProtoFile: the frames of a stream of direct events,
// in both directions.
func TestDirectFramesAgreeWithTheProtoFile(t *testing.T) {
	type direct struct {
		Hello  hello
		Call   uint64
		Event  string
		Answer answer
	}
	schema.HandCodec[direct]{
		Message: "DirectFrame",
		Decode: func(b []byte) (d direct, err error) {
			switch b[0] >> 3 {
			case fieldHello:
				d.Hello, err = parseHello(b)
			case fieldAnswer:
				d.Answer, err = parseAnswer(b)
			default:
				var ev []byte
				ev, d.Call, err = parseDirectFrame(b)
				d.Event = string(ev)
			}
			return d, err
		},
		Encode: func(d direct) ([]byte, error) {
			var b []byte
			switch {
			case d.Hello.session != "":
				b = d.Hello.append(nil)
			case d.Answer.id != 0:
				ev := d.Answer.event
				b = d.Answer.appendFrame(nil, &event.Outgoing{Size: len(ev), Buf: &event.Buffer{B: ev}})
			default:
				var id *pendingCall
				if d.Call != 0 {
					id = &pendingCall{id: d.Call}
				}
				b = appendFrame(b, &event.Outgoing{Size: len(d.Event), Buf: &event.Buffer{B: []byte(d.Event)}}, id)
			}
			return frame.NewReader(bytes.NewReader(b), len(b)).Next()
		},
		Rules: func(r *rand.Rand, m protoreflect.Message) {
			schema.Each(m, func(m protoreflect.Message) {
				switch m.Descriptor().Name() {
				case "Hello":
					schema.Set(m, "session", schema.Bytes(r, 8))
				case "Event":
					validEvent(m)
				case "Call":
					schema.Set(m, "id", 1+r.Uint64N(1<<50))
					validEvent(m.Mutable(m.Descriptor().Fields().ByName("event")).Message())
				case "Answer":
					schema.Set(m, "id", 1+r.Uint64N(1<<50))
					validEvent(m.Mutable(m.Descriptor().Fields().ByName("event")).Message())
					if r.IntN(2) == 0 { // the handler has failed: a text in place of results
						m.Clear(m.Descriptor().Fields().ByName("event"))
						schema.Set(m, "status", 1+r.Uint32N(4))
					} else {
						m.Clear(m.Descriptor().Fields().ByName("status"))
						m.Clear(m.Descriptor().Fields().ByName("error"))
					}
				}
			})
		},
	}.Random(t, 2000)
}

// TestVectorsOfAnswers: docs/vectors/answer.json has the frames of answers.
func TestVectorsOfAnswers(t *testing.T) {
	type vector struct {
		ID     uint64        `json:"id"`
		Event  vectors.Bytes `json:"event,omitempty"`
		Status uint64        `json:"status,omitempty"`
		Error  string        `json:"error,omitempty"`
	}
	vectors.Test(t, "answer.json", func(b []byte) (vector, error) {
		r := frame.NewReader(bytes.NewReader(b), event.DefaultMaxSize+envelope)
		b, err := r.Next()
		if err != nil {
			return vector{}, err
		}
		a, err := parseAnswer(b)
		return vector{a.id, a.event, a.status, a.text}, err
	}, func(v vector) ([]byte, error) {
		a := answer{id: v.ID, status: v.Status, text: v.Error}
		return a.appendFrame(nil, &event.Outgoing{Size: len(v.Event), Buf: &event.Buffer{B: v.Event}}), nil
	})
}
