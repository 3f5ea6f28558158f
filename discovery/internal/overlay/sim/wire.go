package sim

import (
	"encoding/binary"
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/discovery/internal/overlay"
)

// dialable is the list of addresses of every simulated node. In the simulation, an id is enough
// to dial a node, so the addresses do not matter.
var dialable = []ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/tcp/8495")}

// newRecord returns a new peer record of n. In the simulation, a record is an id and a time in
// nanoseconds, without a signature.
func (w *World) newRecord(n *node) overlay.RecordRenewed {
	n.record = max(n.record+1, uint64(w.wallClock().UnixNano()))
	return overlay.RecordRenewed{Record: binary.BigEndian.AppendUint64([]byte(n.id), n.record), Seq: n.record}
}

// contactFromRecord decodes a peer record of the simulation, and returns an empty Contact if
// the record is not valid. The contact has the same id string as the node, so that comparing
// ids is fast.
func (w *World) contactFromRecord(record []byte) overlay.Contact {
	cut := len(record) - 8
	if cut < idLen {
		return overlay.Contact{}
	}
	id := peer.ID(record[:cut])
	i, ok := w.index(id)
	if !ok || w.nodes[i].id != id {
		return overlay.Contact{}
	}
	return overlay.Contact{ID: w.nodes[i].id, Record: record, Seq: binary.BigEndian.Uint64(record[cut:]), Addrs: dialable}
}

// senderContact returns the contact of the node from, which sent m, as far as m tells it: with
// a record if m carries a record of the sender, and otherwise with the id only.
func (w *World) senderContact(from *node, m overlay.Message) overlay.Contact {
	var record []byte
	switch m := m.(type) {
	case overlay.Request:
		record = m.Record
	case overlay.Accept:
		record = m.Record
	case overlay.Shuffle:
		// The sender is the origin of the message only if no other node has passed the message
		// on.
		if len(m.Path) == 1 {
			record = m.Origin.Record
		}
	}
	if c := w.contactFromRecord(record); c.ID == from.id {
		return c
	}
	return overlay.Contact{ID: from.id}
}

// throughWire encodes and decodes the message m, and decodes the peer records in it, as package
// discovery does. It returns the result.
func (w *World) throughWire(m overlay.Message) overlay.Message {
	if s, ok := m.(*pingSignal); ok {
		return s
	}
	m, err := overlay.Decode(overlay.Append(nil, m))
	if err != nil {
		panic(fmt.Sprintf("sim: a message cannot be decoded: %v", err))
	}
	open := func(record []byte) (overlay.Contact, bool) { return w.contactFromRecord(record), true }
	m, _ = overlay.OpenRecords(m, open)
	return m
}
