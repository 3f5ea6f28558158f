package discovery

import (
	"context"
	"errors"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/discovery/internal/dialguard"
	"github.com/go-smokesignal/smokesignal/discovery/internal/overlay"
	"github.com/go-smokesignal/smokesignal/discovery/internal/peerrecord"
	"github.com/go-smokesignal/smokesignal/internal/addr"
	"github.com/go-smokesignal/smokesignal/internal/frame"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

const (
	// firstTimeout bounds the silence before the first frame. A peer opens a stream in
	// order to send one.
	firstTimeout = 10 * time.Second
	// readTimeout bounds the silence on an inbound stream. Linked peers send a
	// keepalive every 5 s.
	readTimeout = 30 * time.Second
	// maxInbound bounds the streams that are read from one peer: the present one, and
	// some that the peer has given up.
	maxInbound = 4
)

// serve reads the messages of a peer. libp2p gives it a goroutine for each stream.
func (d *Driver) serve(stream network.Stream) {
	p := stream.Conn().RemotePeer()
	if addr.IsRelayed(stream.Conn().RemoteMultiaddr()) || !d.countStream(p) {
		stream.Reset()
		return
	}
	defer d.uncountStream(p)
	defer resetSoon(stream) // this side has nothing to say on it
	if err := stream.Scope().SetService(protocol.Service); err != nil {
		return
	}
	// A timer and not a deadline ends the silence, since not all streams know deadlines.
	silence := time.AfterFunc(firstTimeout, func() { interrupt(stream) })
	defer silence.Stop()
	defer context.AfterFunc(d.ctx, func() { interrupt(stream) })()
	r := frame.NewReader(stream, overlay.MaxFrame)
	for {
		b, err := r.Next()
		if err != nil {
			// The end of a stream is not worth a line in the log, a broken frame is.
			if errors.Is(err, frame.ErrTooLarge) || errors.Is(err, frame.ErrMalformed) {
				d.log.Debug("a peer sent a bad frame", "peer", p, "error", err)
			}
			return
		}
		silence.Reset(readTimeout)
		if err := d.receive(p, stream.Conn().RemoteMultiaddr(), b); err != nil {
			if d.ctx.Err() == nil {
				d.log.Debug("a peer sent a bad message", "peer", p, "error", err)
			}
			return
		}
	}
}

// errNotItsRecord is returned when a peer sends the record of another as its own.
var errNotItsRecord = errors.New("discovery: the record is not that of its sender")

// receive hands a message that came from p over the address via to the state machine, and
// waits until it is done. After an error no more messages are read from the stream.
func (d *Driver) receive(p peer.ID, via ma.Multiaddr, b []byte) error {
	m, err := overlay.Decode(b)
	if err != nil {
		return err
	}
	if d.linked(p) {
		d.node.Heard(p)
	}
	if m == nil {
		return nil // a kind of message that only later versions know
	}
	from, m, ok := d.openRecords(p, via, m)
	if !ok {
		return errNotItsRecord
	}
	// Signals are for the layer above; the state machine does not know them.
	if signal, ok := m.(overlay.Signal); ok {
		if d.cfg.OnSignal != nil && d.linked(p) {
			d.cfg.OnSignal(p, signal.Payload)
		}
		return nil
	}
	// Waiting keeps a peer from filling the loop's queue.
	return d.ask(d.ctx, func() { d.step(overlay.Received{From: from, Message: m}) })
}

// countStream counts an inbound stream of p and reports whether it may be read.
func (d *Driver) countStream(p peer.ID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ctx.Err() != nil || d.inbound[p] >= maxInbound {
		return false
	}
	d.inbound[p]++
	d.tasks.Add(1)
	return true
}

func (d *Driver) uncountStream(p peer.ID) {
	d.mu.Lock()
	if d.inbound[p]--; d.inbound[p] == 0 {
		delete(d.inbound, p)
	}
	d.mu.Unlock()
	d.tasks.Done()
}

// openContact returns the contact that a signed record makes, with all the addresses that it
// claims.
func openContact(record []byte) (overlay.Contact, error) {
	info, seq, err := peerrecord.Open(record)
	if err != nil {
		return overlay.Contact{}, err
	}
	return overlay.Contact{ID: info.ID, Record: record, Seq: seq, Addrs: info.Addrs}, nil
}

// openRecords verifies the records in m, which came from p over the address via, and keeps
// the addresses in them that may be dialed. It returns p with the addresses that its own
// record names, and reports false when p's own record is forged or another's.
func (d *Driver) openRecords(p peer.ID, via ma.Multiaddr, m overlay.Message) (overlay.Contact, overlay.Message, bool) {
	relays := dialsRelays(d.host)
	open := func(record []byte) (overlay.Contact, bool) {
		c, err := openContact(record)
		if err != nil {
			return overlay.Contact{}, false
		}
		claimed := c.Addrs
		c.Addrs = dialguard.Filter(claimed, via)
		if relays {
			c.Addrs = append(c.Addrs, dialguard.FilterRelayed(claimed, via)...)
		}
		return c, true
	}
	m, ok := overlay.OpenRecords(m, open)
	if !ok {
		return overlay.Contact{}, nil, false
	}
	from := overlay.Contact{ID: p}
	var own []byte // empty for a node that cannot be dialed
	switch v := m.(type) {
	case overlay.Request:
		own = v.Record
	case overlay.Accept:
		own = v.Record
	case overlay.Shuffle:
		if v.Origin.ID == p {
			from = v.Origin
		}
	}
	if len(own) > 0 {
		if from, ok = open(own); !ok || from.ID != p {
			return overlay.Contact{}, nil, false
		}
	}
	return from, m, true
}
