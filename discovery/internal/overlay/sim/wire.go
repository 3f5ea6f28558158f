package sim

import (
	"encoding/binary"
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/discovery/internal/overlay"
)

// dialable stands for the addresses of any node.
var dialable = []ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/tcp/8495")}

// newRecord returns a new record of n: its id and the time.
func (w *World) newRecord(n *node) overlay.RecordRenewed {
	n.record = max(n.record+1, uint64(w.wallClock().UnixNano()))
	return overlay.RecordRenewed{Record: binary.BigEndian.AppendUint64([]byte(n.id), n.record), Seq: n.record}
}

// contactFromRecord returns the contact in a record. All contacts of a node share its id,
// so that comparing ids finds them in the cache of the processor.
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

// senderContact returns what the receiver of m knows of the sender.
func (w *World) senderContact(from *node, m overlay.Message) overlay.Contact {
	var record []byte
	switch m := m.(type) {
	case overlay.Request:
		record = m.Record
	case overlay.Accept:
		record = m.Record
	case overlay.Shuffle:
		// Its sender is the origin only if nobody has passed it on.
		if len(m.Path) == 1 {
			record = m.Origin.Record
		}
	}
	if c := w.contactFromRecord(record); c.ID == from.id {
		return c
	}
	return overlay.Contact{ID: from.id}
}

// throughWire encodes and decodes m, and opens its records as package discovery does.
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
