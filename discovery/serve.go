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
	// firstTimeout bounds the time from the opening of a stream to its first frame. A peer
	// opens a stream only when it has a frame to send.
	firstTimeout = 10 * time.Second
	// readTimeout bounds the time between two frames on a stream. Neighbors send a
	// keepalive every five seconds.
	readTimeout = 30 * time.Second
	// maxInbound bounds the streams that are read from one peer: the one that it uses, and
	// some that it has given up, of which this node does not know yet.
	maxInbound = 4
)

// serve reads the messages on a stream that a peer has opened. libp2p calls it on a new
// goroutine for each stream.
func (d *Driver) serve(stream network.Stream) {
	p := stream.Conn().RemotePeer()
	// A stream over a relay is refused, since a relay only serves to make a direct
	// connection. So is a stream of a peer that has too many streams to this node.
	if addr.IsRelayed(stream.Conn().RemoteMultiaddr()) || !d.countStream(p) {
		stream.Reset()
		return
	}
	defer d.uncountStream(p)
	defer resetSoon(stream) // this node writes nothing to the stream
	if err := stream.Scope().SetService(protocol.Service); err != nil {
		return
	}
	// A timer and not a deadline ends a silent stream, since some streams ignore deadlines.
	silence := time.AfterFunc(firstTimeout, func() { interrupt(stream) })
	defer silence.Stop()
	defer context.AfterFunc(d.ctx, func() { interrupt(stream) })()
	r := frame.NewReader(stream, overlay.MaxFrame)
	for {
		b, err := r.Next()
		if err != nil {
			// A broken frame is worth a line in the log; the end of a stream is not.
			if errors.Is(err, frame.ErrTooLarge) || errors.Is(err, frame.ErrMalformed) {
				d.log.Debug("a peer sent a bad frame", "peer", p, "error", err)
			}
			return
		}
		silence.Reset(readTimeout)
		if err := d.receive(p, stream.Conn().RemoteMultiaddr(), b); err != nil {
			if d.ctx.Err() == nil { // when the driver closes, the message is not at fault
				d.log.Debug("a peer sent a bad message", "peer", p, "error", err)
			}
			return
		}
	}
}

// errNotItsRecord is returned when a peer sends the signed record of another node as its own,
// or when a record that its message needs is not valid.
var errNotItsRecord = errors.New("discovery: the record is not that of its sender")

// receive decodes b, a message from p, gives it to the state machine, and waits until the
// state machine has handled it. via is the address of p on this connection. After an error,
// no more messages are read from the stream.
func (d *Driver) receive(p peer.ID, via ma.Multiaddr, b []byte) error {
	m, err := overlay.Decode(b)
	if err != nil {
		return err
	}
	if d.linked(p) { // any message shows the watchdog that a neighbor is alive
		d.node.Heard(p)
	}
	if m == nil {
		return nil // this version does not know this kind of message, which a later version has added
	}
	from, m, ok := d.openRecords(p, via, m)
	if !ok {
		return errNotItsRecord
	}
	// Signals are for the user of the driver; the state machine does not handle them.
	if signal, ok := m.(overlay.Signal); ok {
		if d.cfg.OnSignal != nil && d.linked(p) {
			d.cfg.OnSignal(p, signal.Payload)
		}
		return nil
	}
	// Waiting for the loop keeps a peer from filling the queue with messages.
	return d.ask(d.ctx, func() { d.step(overlay.Received{From: from, Message: m}) })
}

// countStream counts a stream that p has opened, and reports whether it may be read.
func (d *Driver) countStream(p peer.ID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	// Close has begun to wait for tasks, or p has too many streams, so the stream must
	// not be read.
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

// openContact verifies a signed record and returns its contents as a contact, with all
// addresses that are in the record.
func openContact(record []byte) (overlay.Contact, error) {
	info, seq, err := peerrecord.Open(record)
	if err != nil {
		return overlay.Contact{}, err
	}
	return overlay.Contact{ID: info.ID, Record: record, Seq: seq, Addrs: info.Addrs}, nil
}

// openRecords verifies the signed records in the message m from p, and removes the addresses
// that must not be dialed. via is the address of p on this connection. openRecords returns the
// contact of p, with addresses if m holds a record of p, and m. It reports false if a record
// that m needs is not valid, or if the record that p sent as its own belongs to another node.
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
	var own []byte // the record that p sent as its own, if any
	switch v := m.(type) {
	case overlay.Request:
		own = v.Record
	case overlay.Accept:
		own = v.Record
	case overlay.Shuffle:
		if v.Origin.ID == p { // nobody has passed the message on, so p sent its own record
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
