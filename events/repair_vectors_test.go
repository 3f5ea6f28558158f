package events

import (
	"encoding/hex"
	"math/rand/v2"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/go-smokesignal/smokesignal/events/internal/engine"
	"github.com/go-smokesignal/smokesignal/events/internal/order"
	"github.com/go-smokesignal/smokesignal/internal/frame"
	"github.com/go-smokesignal/smokesignal/internal/schema"
	"github.com/go-smokesignal/smokesignal/internal/vectors"
)

// sessionVector is a session in the form of the files.
type sessionVector struct {
	Session vectors.Bytes `json:"session"`
	Start   uint64        `json:"start_ms"`
}

func (v sessionVector) session() (s order.SessionKey) {
	copy(s.ID[:], v.Session)
	s.Start = v.Start
	return s
}

func sessionOf(s order.SessionKey) sessionVector { return sessionVector{s.ID[:], s.Start} }

type batchVector struct {
	sessionVector
	First  uint64          `json:"first"`
	Events []vectors.Bytes `json:"events"`
}

// TestVectorsOfBatches: docs/vectors/batch.json has Batch messages.
func TestVectorsOfBatches(t *testing.T) {
	vectors.Test(t, "batch.json", batchCodec.Decode, batchCodec.Encode)
	batchCodec.Vectors(t, "batch.json")
	batchCodec.Random(t, 1000)
}

var batchCodec = schema.HandCodec[batchVector]{
	Message: "Batch",
	Decode: func(b []byte) (v batchVector, err error) {
		var m arrivedBatch
		if err := m.parse(b); err != nil {
			return v, err
		}
		v = batchVector{sessionVector: sessionOf(m.session), First: m.first}
		for ev, rest := cutEvent(m.data); ev != nil; ev, rest = cutEvent(rest) {
			v.Events = append(v.Events, ev)
		}
		return v, nil
	},
	Encode: func(v batchVector) ([]byte, error) {
		b := appendBatchHeader(nil, v.session(), v.First)
		for _, ev := range v.Events {
			b = frame.AppendMessage(b, numBatchEvent, ev)
		}
		return b, nil
	},
	Rules: func(r *rand.Rand, m protoreflect.Message) {
		schema.Set(m, "session", schema.Bytes(r, 8))
		schema.Set(m, "start_ms", 1+r.Uint64N(1<<50))
		schema.Set(m, "first", 1+r.Uint64N(1<<50))
		list := m.Mutable(m.Descriptor().Fields().ByName("event")).List()
		list.Append(protoreflect.ValueOfBytes([]byte("event")))
	},
}

type markVector struct {
	Sender vectors.Bytes `json:"sender"`
	sessionVector
	Next     uint64 `json:"next"`
	Above    uint64 `json:"above,omitempty"`
	Begin    uint64 `json:"begin,omitempty"`
	Floor    uint64 `json:"floor,omitempty"`
	Withheld uint64 `json:"withheld,omitempty"`
	Ask      bool   `json:"ask,omitempty"`
}

func marksOf(b []byte) (list []markVector, err error) {
	marks, err := decodeMarks(b)
	list = []markVector{}
	for _, m := range marks {
		v := markVector{
			Sender: []byte(m.Sender), sessionVector: sessionOf(m.Session), Next: m.Next,
			Floor: m.Floor, Withheld: m.Next - m.Through, Ask: m.Ask,
		}
		if m.Above > m.Next {
			v.Above = m.Above
		}
		if m.Begin < m.Next {
			v.Begin = m.Begin
		}
		list = append(list, v)
	}
	return list, err
}

func appendMarkVectors(list []markVector) []byte {
	var marks []engine.Mark
	for _, v := range list {
		m := markOf(peer.ID(v.Sender), v.session(), v.Next)
		m.Above = max(v.Above, v.Next)
		if v.Begin > 0 {
			m.Begin = v.Begin
		}
		m.Floor, m.Through, m.Ask = v.Floor, v.Next-v.Withheld, v.Ask
		marks = append(marks, m)
	}
	return appendMarks(nil, marks)
}

type wantVector struct {
	Sender vectors.Bytes `json:"sender"`
	sessionVector
	From   uint64 `json:"from"`
	To     uint64 `json:"to"`
	PassOn bool   `json:"pass_on,omitempty"`
}

type repairVector struct {
	Told     []markVector `json:"told,omitempty"`
	Want     *wantVector  `json:"want,omitempty"`
	Original string       `json:"original,omitempty"`
	End      []markVector `json:"end,omitzero"`
}

// TestVectorsOfRepair: docs/vectors/repair.json has RepairFrame messages.
func TestVectorsOfRepair(t *testing.T) {
	vectors.Test(t, "repair.json", repairCodec.Decode, repairCodec.Encode)
	repairCodec.Vectors(t, "repair.json")
	repairCodec.Random(t, 2000)
}

var repairCodec = schema.HandCodec[repairVector]{
	Message: "RepairFrame",
	Decode: func(b []byte) (v repairVector, err error) {
		num, body, err := repairField(b)
		if err != nil {
			return v, err
		}
		switch num {
		case numRepairTold:
			v.Told, err = marksOf(body)
		case numRepairWant:
			var q repairRequest
			if q, err = decodeRepairRequest(body); err == nil {
				v.Want = &wantVector{[]byte(q.Sender), sessionOf(q.Session), q.from, q.to, q.passOn}
			}
		case numRepairOriginal:
			v.Original = hex.EncodeToString(body)
		case numRepairEnd:
			v.End, err = marksOf(body)
		}
		return v, err
	},
	Encode: func(v repairVector) ([]byte, error) {
		switch {
		case v.Told != nil:
			return frame.AppendMessage(nil, numRepairTold, appendMarkVectors(v.Told)), nil
		case v.Want != nil:
			q := repairRequest{from: v.Want.From, to: v.Want.To, passOn: v.Want.PassOn}
			q.Sender, q.Session = peer.ID(v.Want.Sender), v.Want.session()
			return q.append(nil), nil
		case v.Original != "":
			body, err := hex.DecodeString(v.Original)
			return frame.AppendMessage(nil, numRepairOriginal, body), err
		}
		return frame.AppendMessage(nil, numRepairEnd, appendMarkVectors(v.End)), nil
	},
	Rules: func(r *rand.Rand, m protoreflect.Message) {
		schema.Each(m, func(m protoreflect.Message) {
			switch m.Descriptor().Name() {
			case "Marks": // Told without a mark says nothing
				list := m.Mutable(m.Descriptor().Fields().ByName("mark")).List()
				if list.Len() == 0 {
					list.Append(list.NewElement())
					validMark(r, list.Get(0).Message())
				}
			case "Mark":
				validMark(r, m)
			case "Want":
				validSession(r, m)
				from := 1 + r.Uint64N(1<<50)
				schema.Set(m, "from", from)
				schema.Set(m, "to", from+1+r.Uint64N(100))
			}
		})
	},
}

func validSession(r *rand.Rand, m protoreflect.Message) {
	schema.Set(m, "sender", schema.PeerID(r))
	schema.Set(m, "session", schema.Bytes(r, 8))
	schema.Set(m, "start_ms", 1+r.Uint64N(1<<50))
}

// validMark keeps to the order begin <= next <= above; a zero stands for next.
func validMark(r *rand.Rand, m protoreflect.Message) {
	validSession(r, m)
	next := 100 + r.Uint64N(1<<50)
	schema.Set(m, "next", next)
	schema.Set(m, "above", []uint64{0, next + 1 + r.Uint64N(100)}[r.IntN(2)])
	schema.Set(m, "begin", []uint64{0, next - 1 - r.Uint64N(90)}[r.IntN(2)])
	schema.Set(m, "floor", r.Uint64N(next))
	schema.Set(m, "withheld", r.Uint64N(next))
}
