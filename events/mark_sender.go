package events

import (
	"context"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/events/internal/engine"
	"github.com/go-smokesignal/smokesignal/internal/frame"
	"github.com/go-smokesignal/smokesignal/internal/notify"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

// markSender is the link to one neighbor. It sends the neighbor our high-water
// marks of the senders that the neighbor may be waiting for, on one long stream.
// Marks that change while it writes go into the next frame.
type markSender struct {
	b    *Broadcast
	peer peer.ID
	leaf bool
	wake notify.Signal // the engine has marks for the neighbor

	ctx    context.Context // ends with the link
	cancel context.CancelFunc
	// inbound are the streams that the neighbor has opened. The driver's mutex
	// guards them.
	inbound map[network.Stream]struct{}
}

const (
	// Pauses after a stream could not be opened or broke.
	minMarkPause = 50 * time.Millisecond
	maxMarkPause = 5 * time.Second
)

// Link makes p a neighbor: Emit waits for it, and it is asked for missing events.
// It is for a Broadcast whose config has Links.
//
// greeting is the result of p's Greeting when p saw this node on the topic. An
// empty greeting means that there was no handshake that could carry one, as with a
// leaf: then both sides begin every stream of marks with all their marks, and the
// first ones are the greeting. Such a neighbor has to be on the topic already.
//
// Linking a neighbor again takes its greeting again, and does nothing without one.
// The error is ErrMalformed, for a greeting that cannot be decoded; the link is
// made all the same.
func (b *Broadcast) Link(p peer.ID, greeting []byte) error {
	marks, err := decodeMarks(greeting)
	b.driver.mu.Lock()
	defer b.driver.mu.Unlock()
	if b.driver.closed {
		return err
	}
	l := b.driver.links[p]
	now := time.Now()
	switch {
	case len(greeting) > 0:
		if l != nil && l.leaf {
			b.driver.removeLink(p) // the leaf has become a node
		}
		b.driver.addLink(p, false)
		b.driver.engine.ReceiveGreeting(now, p, marks)
	case l == nil:
		b.driver.addLink(p, true).wake.Set() // to send our own greeting
	}
	b.driver.carryOut(now)
	b.driver.changed.Broadcast()
	return err
}

// addNeighbor links p without any greeting: neither side learns what the other
// had before.
func (d *engineDriver) addNeighbor(p peer.ID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return
	}
	d.addLink(p, false)
	d.carryOut(time.Now())
	d.changed.Broadcast()
}

// addLink returns the link to p, which it makes if there is none. It needs mu.
func (d *engineDriver) addLink(p peer.ID, leaf bool) *markSender {
	l := d.links[p]
	if l == nil {
		l = &markSender{b: d.b, peer: p, leaf: leaf, wake: notify.NewSignal(), inbound: make(map[network.Stream]struct{})}
		l.ctx, l.cancel = context.WithCancel(d.b.ctx)
		d.links[p] = l
		if leaf {
			d.engine.AddLeaf(p)
		} else {
			d.engine.AddNeighbor(p)
		}
		d.hadNeighbor.Store(true)
		d.b.tasks.Go(l.run)
	}
	return l
}

// Unlink ends the link to p, if there is one.
func (b *Broadcast) Unlink(p peer.ID) {
	b.driver.mu.Lock()
	defer b.driver.mu.Unlock()
	if b.driver.links[p] != nil && !b.driver.closed {
		b.driver.removeLink(p)
	}
}

// removeLink removes a neighbor. It needs mu.
func (d *engineDriver) removeLink(p peer.ID) {
	l := d.links[p]
	delete(d.links, p)
	l.cancel()
	for s := range l.inbound {
		d.b.tasks.Go(func() { s.Reset() }) // it may block on a frozen connection
	}
	now := time.Now()
	d.engine.RemoveNeighbor(now, p)
	d.carryOut(now)
	d.changed.Broadcast()
}

// run sends marks until the link ends.
func (l *markSender) run() {
	var s network.Stream
	defer func() {
		if s != nil {
			s.Reset()
		}
	}()
	pause := minMarkPause
	for {
		select {
		case <-l.wake:
		case <-l.ctx.Done():
			return
		}
		marks := l.dueMarks()
		// A leaf also gets the stream itself, because its beginning is the greeting.
		if len(marks) == 0 && (!l.leaf || s != nil) {
			continue
		}
		err := l.ensureStream(&s)
		if err == nil && len(marks) > 0 {
			err = l.writeMarks(s, appendMarks(nil, marks))
		}
		if err == nil {
			pause = minMarkPause
			continue
		}
		if l.ctx.Err() != nil {
			return
		}
		l.b.log.Debug("marks could not be sent to a neighbor", "peer", l.peer, "error", err)
		if s != nil {
			s.Reset()
			s = nil
		}
		if sleep(l.ctx, pause) != nil {
			return
		}
		pause = min(2*pause, maxMarkPause)
		if l.leaf {
			l.wake.Set() // even without new marks the greeting has to arrive
		}
		l.b.driver.withEngine(func(now time.Time, e *engine.Engine[*signedBatch]) { e.RequeueMarks(now, l.peer, marks) })
	}
}

// dueMarks returns the marks that the neighbor should get now.
func (l *markSender) dueMarks() (marks []engine.Mark) {
	l.b.driver.mu.Lock()
	defer l.b.driver.mu.Unlock()
	now := time.Now()
	marks = l.b.driver.engine.CollectMarks(now, l.peer, maxMarksAtOnce)
	l.b.driver.carryOut(now)
	return marks
}

// ensureStream opens the stream if there is none, and greets a leaf on it.
func (l *markSender) ensureStream(s *network.Stream) (err error) {
	if *s != nil {
		return nil
	}
	if *s, err = l.b.openRepair(l.ctx, l.peer); err != nil || !l.leaf {
		return err
	}
	return l.writeMarks(*s, l.b.Greeting())
}

func (l *markSender) writeMarks(s network.Stream, marks []byte) error {
	s.SetWriteDeadline(time.Now().Add(repairTimeout))
	_, err := s.Write(frame.Append(nil, frame.AppendMessage(nil, numRepairTold, marks)))
	return err
}

// openRepair opens a stream of protocol.Repair over an existing connection. It is
// reset when ctx ends.
func (b *Broadcast) openRepair(ctx context.Context, p peer.ID) (network.Stream, error) {
	open, cancel := context.WithTimeout(ctx, repairTimeout)
	defer cancel()
	// A neighbor without a connection is about to be unlinked; dialing it is left
	// to those who keep the links.
	s, err := b.host.NewStream(network.WithNoDial(open, "smokesignal repair"), p, protocol.Repair)
	if err != nil {
		return nil, err
	}
	if err := s.Scope().SetService(protocol.Service); err != nil {
		s.Reset()
		return nil, err
	}
	context.AfterFunc(ctx, func() { s.Reset() })
	return s, nil
}
