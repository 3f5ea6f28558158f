package overlay

import (
	"errors"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/protocol"
	"github.com/go-smokesignal/smokesignal/internal/vectors"
)

// vector is a message in the form of docs/vectors/overlay.json. All its fields but one
// are nil.
type vector struct {
	Request   *requestVector   `json:"request,omitempty"`
	Accept    *acceptVector    `json:"accept,omitempty"`
	Reject    *rejectVector    `json:"reject,omitempty"`
	Ready     *readyVector     `json:"ready,omitempty"`
	Keepalive *keepaliveVector `json:"keepalive,omitempty"`
	Leave     *leaveVector     `json:"leave,omitempty"`
	Walk      *walkVector      `json:"walk,omitempty"`
	Handover  *handoverVector  `json:"handover,omitempty"`
	Signal    *vectors.Bytes   `json:"signal,omitempty"`
	Shuffle   *shuffleVector   `json:"shuffle,omitempty"`
	Reply     *replyVector     `json:"shuffleReply,omitempty"`
	Beacon    *beaconVector    `json:"beacon,omitempty"`
	Lookup    *lookupVector    `json:"lookup,omitempty"`
	Found     *foundVector     `json:"found,omitempty"`
}

type (
	requestVector struct {
		Session vectors.Bytes `json:"session"`
		Network string        `json:"network"`
		Record  vectors.Bytes `json:"record,omitempty"`
		Degree  int           `json:"degree"`
		Urgent  bool          `json:"urgent"`
		Manual  bool          `json:"manual"`
		Tag     *tagVector    `json:"tag,omitempty"`
		Leaving vectors.Bytes `json:"leaving,omitempty"`
	}
	acceptVector struct {
		Session  vectors.Bytes   `json:"session"`
		Record   vectors.Bytes   `json:"record,omitempty"`
		Degree   int             `json:"degree"`
		Contacts []vectors.Bytes `json:"contacts,omitempty"`
		Exchange bool            `json:"exchange,omitempty"`
	}
	rejectVector struct {
		Reason   uint8           `json:"reason"`
		Network  string          `json:"network,omitempty"`
		Contacts []vectors.Bytes `json:"contacts,omitempty"`
		Tag      *tagVector      `json:"tag,omitempty"`
	}
	tagVector struct {
		ID  vectors.Bytes `json:"id"`
		Seq uint64        `json:"seq"`
	}
	shuffleVector struct {
		Path     []vectors.Bytes `json:"path"`
		TTL      int             `json:"ttl"`
		Tag      *tagVector      `json:"tag,omitempty"`
		Origin   vectors.Bytes   `json:"origin,omitempty"`
		Contacts []vectors.Bytes `json:"contacts,omitempty"`
	}
	replyVector struct {
		Path     []vectors.Bytes `json:"path,omitempty"`
		Tag      *tagVector      `json:"tag,omitempty"`
		Contacts []vectors.Bytes `json:"contacts,omitempty"`
	}
	beaconVector struct {
		Owner vectors.Bytes `json:"owner"`
	}
	lookupVector struct {
		Path   []vectors.Bytes `json:"path"`
		TTL    int             `json:"ttl"`
		Token  uint64          `json:"token"`
		Target vectors.Bytes   `json:"target"`
		Origin vectors.Bytes   `json:"origin,omitempty"`
	}
	foundVector struct {
		Path   []vectors.Bytes `json:"path,omitempty"`
		Token  uint64          `json:"token"`
		Target vectors.Bytes   `json:"target"`
	}
	readyVector struct {
		Degree   int           `json:"degree"`
		Greeting vectors.Bytes `json:"greeting,omitempty"`
	}
	keepaliveVector struct { // times in µs
		Degree int   `json:"degree"`
		Stamp  int64 `json:"stamp"`
		Echo   int64 `json:"echo"`
		Hold   int64 `json:"hold"`
	}
	leaveVector struct {
		Reason   uint8           `json:"reason"`
		Contacts []vectors.Bytes `json:"contacts,omitempty"`
	}
	walkVector struct {
		Origin vectors.Bytes `json:"origin"`
		TTL    int           `json:"ttl"`
		Urgent bool          `json:"urgent"`
	}
	handoverVector struct {
		To vectors.Bytes `json:"to,omitempty"`
	}
)

// docs/vectors/overlay.json has overlay messages without their frames.
func TestVectors(t *testing.T) {
	vectors.Test(t, "overlay.json", func(b []byte) (vector, error) {
		m, err := Decode(b)
		return toVector(m), err
	}, func(v vector) ([]byte, error) {
		m := fromVector(v)
		if m == nil {
			return nil, errors.New("there is no message in it")
		}
		return Append(nil, m), nil
	})
}

// toVector returns an empty vector for a message of an unknown kind.
func toVector(m Message) (v vector) {
	switch m := m.(type) {
	case Request:
		v.Request = &requestVector{m.Session[:], m.Network, m.Record, m.Degree, m.Urgent, m.Manual, tagTo(m.Tag), m.Leaving.Record}
	case Accept:
		v.Accept = &acceptVector{m.Session[:], m.Record, m.Degree, records(m.Contacts), m.Exchange}
	case Reject:
		v.Reject = &rejectVector{uint8(m.Reason), m.Network, records(m.Contacts), tagTo(m.Tag)}
	case Ready:
		v.Ready = &readyVector{m.Degree, m.Greeting}
	case Keepalive:
		v.Keepalive = &keepaliveVector{m.Degree, m.Stamp.Microseconds(), m.Echo.Microseconds(), m.Hold.Microseconds()}
	case Leave:
		v.Leave = &leaveVector{uint8(m.Reason), records(m.Contacts)}
	case Walk:
		v.Walk = &walkVector{m.Origin.Record, m.TTL, m.Urgent}
	case Handover:
		v.Handover = &handoverVector{m.To.Record}
	case Signal:
		v.Signal = (*vectors.Bytes)(&m.Payload)
	case Shuffle:
		v.Shuffle = &shuffleVector{ids(m.Path), m.TTL, tagTo(m.Tag), m.Origin.Record, records(m.Contacts)}
	case ShuffleReply:
		v.Reply = &replyVector{ids(m.Path), tagTo(m.Tag), records(m.Contacts)}
	case Beacon:
		v.Beacon = &beaconVector{m.Owner.Record}
	case Lookup:
		v.Lookup = &lookupVector{ids(m.Path), m.TTL, m.Token, vectors.Bytes(m.Target), m.Origin.Record}
	case Found:
		v.Found = &foundVector{ids(m.Path), m.Token, m.Target.Record}
	}
	return v
}

func fromVector(v vector) Message {
	switch {
	case v.Request != nil:
		r := v.Request
		return Request{protocol.Session(r.Session), r.Network, r.Record, r.Degree, r.Urgent, r.Manual, tagFrom(r.Tag), Contact{Record: r.Leaving}}
	case v.Accept != nil:
		a := v.Accept
		return Accept{protocol.Session(a.Session), a.Record, a.Degree, a.Exchange, toContacts(a.Contacts)}
	case v.Reject != nil:
		return Reject{Reason(v.Reject.Reason), v.Reject.Network, tagFrom(v.Reject.Tag), toContacts(v.Reject.Contacts)}
	case v.Ready != nil:
		return Ready{v.Ready.Degree, v.Ready.Greeting}
	case v.Keepalive != nil:
		k := v.Keepalive
		us := func(n int64) time.Duration { return time.Duration(n) * time.Microsecond }
		return Keepalive{k.Degree, us(k.Stamp), us(k.Echo), us(k.Hold)}
	case v.Leave != nil:
		return Leave{Reason(v.Leave.Reason), toContacts(v.Leave.Contacts)}
	case v.Walk != nil:
		return Walk{Contact{Record: v.Walk.Origin}, v.Walk.TTL, v.Walk.Urgent}
	case v.Handover != nil:
		return Handover{Contact{Record: v.Handover.To}}
	case v.Signal != nil:
		return Signal{*v.Signal}
	case v.Shuffle != nil:
		x := v.Shuffle
		return Shuffle{toPath(x.Path), x.TTL, tagFrom(x.Tag), Contact{Record: x.Origin}, toContacts(x.Contacts)}
	case v.Reply != nil:
		return ShuffleReply{toPath(v.Reply.Path), tagFrom(v.Reply.Tag), toContacts(v.Reply.Contacts)}
	case v.Beacon != nil:
		return Beacon{Contact{Record: v.Beacon.Owner}}
	case v.Lookup != nil:
		x := v.Lookup
		return Lookup{toPath(x.Path), x.TTL, x.Token, peer.ID(x.Target), Contact{Record: x.Origin}}
	case v.Found != nil:
		return Found{toPath(v.Found.Path), v.Found.Token, Contact{Record: v.Found.Target}}
	}
	return nil
}

func records(list []Contact) (all []vectors.Bytes) {
	for _, c := range list {
		all = append(all, c.Record)
	}
	return all
}

func toContacts(list []vectors.Bytes) (all []Contact) {
	for _, r := range list {
		all = append(all, Contact{Record: []byte(r)})
	}
	return all
}

func tagTo(t Tag) *tagVector {
	if t.ID == "" {
		return nil
	}
	return &tagVector{vectors.Bytes(t.ID), t.Seq}
}

func tagFrom(v *tagVector) Tag {
	if v == nil {
		return Tag{}
	}
	return Tag{peer.ID(v.ID), v.Seq}
}

func ids(path []peer.ID) (list []vectors.Bytes) {
	for _, id := range path {
		list = append(list, vectors.Bytes(id))
	}
	return list
}

func toPath(list []vectors.Bytes) (ids []peer.ID) {
	for _, b := range list {
		ids = append(ids, peer.ID(b))
	}
	return ids
}
