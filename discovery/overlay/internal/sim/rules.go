package sim

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/discovery/overlay"
)

// Smokesignal is the protocol of package overlay.
var Smokesignal = Rules{
	Name:     "smokesignal",
	Watchdog: true,
	New: func(id peer.ID, life uint64, seeds []peer.ID, r *rand.Rand) Machine {
		var session overlay.Session
		binary.BigEndian.PutUint64(session[:], life)
		return overlay.New(overlay.Config{
			Self: id, Session: session, Network: "sim", Min: Min, Max: Max, Seeds: len(seeds), Rand: r,
		})
	},
}

// dialable stands for the addresses of any node.
var dialable = []ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/tcp/8495")}

// sealed returns a new record of n: its id and the time.
func (w *World) sealed(n *node) overlay.Sealed {
	n.record = max(n.record+1, uint64(w.time().UnixNano()))
	return overlay.Sealed{Record: binary.BigEndian.AppendUint64([]byte(n.id), n.record), Seq: n.record}
}

// contact returns who has sealed a record.
func contact(record []byte) overlay.Contact {
	if len(record) < 8 {
		return overlay.Contact{}
	}
	cut := len(record) - 8
	return overlay.Contact{
		ID: peer.ID(record[:cut]), Record: record, Seq: binary.BigEndian.Uint64(record[cut:]), Addrs: dialable,
	}
}

// contactOf returns what the receiver of m knows of the sender.
func (w *World) contactOf(from *node, m overlay.Message) overlay.Contact {
	var record []byte
	switch m := m.(type) {
	case overlay.Request:
		record = m.Record
	case overlay.Accept:
		record = m.Record
	case overlay.Shuffle:
		if len(m.Path) == 1 {
			record = m.Origin.Record
		}
	}
	if c := contact(record); c.ID == from.id {
		return c
	}
	return overlay.Contact{ID: from.id}
}

// performOther does what concerns seeds, records and searches.
func (w *World) performOther(n *node, o overlay.Output) {
	switch o := o.(type) {
	case overlay.AskSeed:
		i := n.seeds[o.Seed]
		if i == n.index {
			w.more = append(w.more, overlay.SeedSelf{Seed: o.Seed})
			return
		}
		w.dial(n, &dial{peer: i, seed: o.Seed})
	case overlay.Renew:
		w.more = append(w.more, w.sealed(n))
	case overlay.Call:
		if i, ok := w.index(o.To.ID); ok && n.conn(i) == nil {
			w.dial(n, &dial{peer: i, seed: -1})
		}
	case overlay.Located:
		if w.located != nil {
			w.located(n, o)
		}
	}
}

// seedAnswer tells n what came of the search for a seed.
func (w *World) seedAnswer(n *node, seed int, good bool) {
	if !good {
		w.give(n, letter{in: overlay.SeedFailed{Seed: seed}})
		return
	}
	w.foundSeed(n, seed)
	w.give(n, letter{in: overlay.SeedFound{Seed: seed, Contact: overlay.Contact{ID: w.nodes[n.seeds[seed]].id, Addrs: dialable}}})
}

// wire sends m through its encoding, and opens the records as package discovery
// does.
func (w *World) wire(m overlay.Message) overlay.Message {
	if s, ok := m.(*signal); ok {
		return s
	}
	m, err := overlay.Decode(overlay.Append(nil, m))
	if err != nil {
		panic(fmt.Sprintf("sim: a message cannot be decoded: %v", err))
	}
	open := func(list []overlay.Contact) {
		for i := range list {
			list[i] = contact(list[i].Record)
		}
	}
	switch v := m.(type) {
	case overlay.Request:
		v.Leaving = contact(v.Leaving.Record)
		m = v
	case overlay.Accept:
		open(v.Contacts)
	case overlay.Reject:
		open(v.Contacts)
	case overlay.Leave:
		open(v.Contacts)
	case overlay.Walk:
		v.Origin = contact(v.Origin.Record)
		m = v
	case overlay.Handover:
		v.To = contact(v.To.Record)
		m = v
	case overlay.Shuffle:
		v.Origin = contact(v.Origin.Record)
		open(v.Contacts)
		m = v
	case overlay.ShuffleReply:
		open(v.Contacts)
	case overlay.Beacon:
		v.Owner = contact(v.Owner.Record)
		m = v
	case overlay.Lookup:
		v.Origin = contact(v.Origin.Record)
		m = v
	case overlay.Found:
		v.Target = contact(v.Target.Record)
		m = v
	}
	return m
}

// The kinds of messages that are counted apart.
const (
	kindRequest = iota
	kindAccept
	kindReject
	kindReady
	kindKeepalive
	kindLeave
	kindWalk
	kindHandover
	kindShuffle
	kindShuffleReply
	kindBeacon
	kindLookup
	kindFound
	kindPing
	kindPong
	kindOther
	kinds
)

var kindNames = [kinds]string{
	"request", "accept", "reject", "ready", "keepalive", "leave", "walk", "handover", "shuffle", "shuffle reply",
	"beacon", "lookup", "found", "ping", "pong", "other",
}

func kindOf(m overlay.Message) int {
	switch m := m.(type) {
	case *signal:
		if m.pong {
			return kindPong
		}
		return kindPing
	case overlay.Keepalive:
		return kindKeepalive
	case overlay.Request:
		return kindRequest
	case overlay.Accept:
		return kindAccept
	case overlay.Reject:
		return kindReject
	case overlay.Ready:
		return kindReady
	case overlay.Leave:
		return kindLeave
	case overlay.Walk:
		return kindWalk
	case overlay.Handover:
		return kindHandover
	case overlay.Shuffle:
		return kindShuffle
	case overlay.ShuffleReply:
		return kindShuffleReply
	case overlay.Beacon:
		return kindBeacon
	case overlay.Lookup:
		return kindLookup
	case overlay.Found:
		return kindFound
	case *packet:
		switch m.what {
		case packetPing:
			return kindPing
		case packetPong:
			return kindPong
		case packetRequest:
			return kindRequest
		case packetHandshake:
			return kindRequest
		case packetAck:
			return kindAccept
		case packetAsk:
			return kindRequest
		case packetClose:
			return -1
		}
	}
	return kindOther
}

// Total is the number of messages.
func (c *Counts) Total() (n int64) {
	for _, k := range c.Sent {
		n += k
	}
	return n
}
