package overlay

import (
	"bytes"
	"reflect"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/frame"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

func everyMessage() []Message {
	contacts := []Contact{{Record: []byte("r1")}, {Record: []byte("r2")}}
	path, tag := []peer.ID{"a", "b"}, Tag{"owner", 1e18}
	return []Message{
		Request{Session: protocol.Session{1, 2}, Network: "home", Record: []byte("r"), Degree: 4, Urgent: true, Manual: true, Tag: tag, Leaving: Contact{Record: []byte("l")}},
		Accept{Session: protocol.Session{3}, Record: []byte("r"), Degree: 2, Exchange: true, Contacts: contacts},
		Reject{Reason: ReasonNetwork, Network: "lab", Tag: tag, Contacts: contacts},
		Ready{Degree: 1, Greeting: []byte("marks")},
		Keepalive{Degree: 3, Stamp: time.Second, Echo: time.Millisecond, Hold: time.Minute},
		Leave{Reason: ReasonMoved, Contacts: contacts},
		Walk{Origin: Contact{Record: []byte("o")}, TTL: 6, Urgent: true},
		Handover{To: Contact{Record: []byte("t")}},
		Signal{Payload: []byte("ping")},
		Shuffle{Path: path, TTL: 6, Tag: tag, Origin: Contact{Record: []byte("o")}, Contacts: contacts},
		ShuffleReply{Path: path, Tag: tag, Contacts: contacts},
		Beacon{Owner: Contact{Record: []byte("o")}},
		Lookup{Path: path, TTL: 16, Token: 7, Target: "t", Origin: Contact{Record: []byte("o")}},
		Found{Path: path, Token: 7, Target: Contact{Record: []byte("t")}},
	}
}

// Decode returns what Append has encoded.
func TestDecodeReturnsWhatAppendEncoded(t *testing.T) {
	for _, m := range everyMessage() {
		got, err := Decode(Append(nil, m))
		if err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%T: got %+v, %v; want %+v", m, got, err, m)
		}
	}
}

// Messages, fields and reasons of a later version are skipped.
func TestLaterVersionsAreSkipped(t *testing.T) {
	if m, err := Decode(frame.AppendMessage(nil, 99, "new")); m != nil || err != nil {
		t.Errorf("unknown kind: %v, %v", m, err)
	}
	body := frame.AppendUint(nil, 1, 200)
	body = frame.AppendBytes(body, 77, "new")
	if m, err := Decode(frame.AppendMessage(nil, numLeave, body)); err != nil || m.(Leave).Reason != ReasonNone {
		t.Errorf("unknown reason and field: %v, %v", m, err)
	}
}

// Fields that are too long or malformed are errors. Too many contacts are dropped.
func TestDecodeEnforcesLimits(t *testing.T) {
	for name, b := range map[string][]byte{
		"long record":   Append(nil, Request{Record: make([]byte, MaxRecord+1)}),
		"long network":  Append(nil, Request{Network: string(make([]byte, protocol.MaxNetwork+1))}),
		"short session": frame.AppendMessage(nil, numRequest, frame.AppendBytes(nil, 1, "short")),
		"two messages":  Append(Append(nil, Keepalive{}), Keepalive{}),
		"cut":           Append(nil, Request{Network: "home"})[:5],
		"long path":     Append(nil, Lookup{Path: make([]peer.ID, maxPath+1)}),
		"long id":       Append(nil, Lookup{Target: peer.ID(make([]byte, maxID+1))}),
	} {
		if m, err := Decode(b); err == nil {
			t.Errorf("%s: decoded as %+v", name, m)
		}
	}
	var many Reject
	for range 1000 {
		many.Contacts = append(many.Contacts, Contact{Record: []byte("r")})
	}
	m, err := Decode(Append(nil, many))
	if err != nil || len(m.(Reject).Contacts) != MaxContacts {
		t.Errorf("a thousand contacts: %d kept, %v", len(m.(Reject).Contacts), err)
	}
}

func FuzzDecode(f *testing.F) {
	for _, m := range everyMessage() {
		f.Add(Append(nil, m))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Decode(b)
		if err != nil || m == nil {
			return
		}
		once := Append(nil, m)
		again, err := Decode(once)
		if err != nil {
			t.Fatalf("what %+v encodes to does not decode: %v", m, err)
		}
		if !bytes.Equal(once, Append(nil, again)) {
			t.Fatalf("encoding is not stable: %+v, %+v", m, again)
		}
	})
}
