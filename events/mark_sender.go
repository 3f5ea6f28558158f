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

// markSender is the link to one neighbor. On one long-lived stream it sends the
// neighbor this node's marks: how far this node has received each sender. If marks
// change while it writes, they go into the next frame.
type markSender struct {
	b    *Broadcast
	peer peer.ID
	leaf bool
	// wake is set when the engine has marks to send to the neighbor.
	wake notify.Signal

	ctx    context.Context // ends when the link ends
	cancel context.CancelFunc
	// inbound holds the open repair streams that the neighbor has opened. The mutex of
	// engineDriver guards it.
	inbound map[network.Stream]struct{}
}

const (
	// After a stream could not be opened or has broken, the next attempt is made after
	// a pause, which grows from minMarkPause to maxMarkPause.
	minMarkPause = 50 * time.Millisecond
	maxMarkPause = 5 * time.Second
)

// link makes p a neighbor: Emit waits until p has received the events, and p is asked
// for missing events. It is called only if the config has a Node.
//
// greeting is what the method greeting has returned at p after p had seen this node on
// the topic. It is empty if no message could carry it, as with a leaf. Then each side
// sends all its marks first on every stream of marks that it opens, and the first marks
// to arrive are taken as the greeting. A peer without a greeting must be on the topic
// before link is called.
//
// If p is a neighbor already, a greeting is handled again, and an empty one does
// nothing. link returns ErrMalformed if the greeting cannot be decoded; p becomes a
// neighbor all the same.
func (b *Broadcast) link(p peer.ID, greeting []byte) error {
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
			b.driver.removeLink(p) // p was a leaf; now a node with the same key, which can send a greeting, has taken its place
		}
		b.driver.addLink(p, false)
		b.driver.engine.ReceiveGreeting(now, p, marks)
	case l == nil:
		b.driver.addLink(p, true).wake.Set() // the stream of marks begins with our greeting
	}
	b.driver.carryOut(now)
	b.driver.changed.Broadcast()
	return err
}

// addNeighbor makes p a neighbor without greetings. So neither side learns which events
// the other had received before.
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

// addLink returns the link to p, and makes it if there is none. leaf says whether p is a
// leaf. The caller must hold mu.
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

// unlink ends the link to p. It does nothing if p is not a neighbor.
func (b *Broadcast) unlink(p peer.ID) {
	b.driver.mu.Lock()
	defer b.driver.mu.Unlock()
	if b.driver.links[p] != nil && !b.driver.closed {
		b.driver.removeLink(p)
	}
}

// removeLink ends the link to p. The caller must hold mu.
func (d *engineDriver) removeLink(p peer.ID) {
	l := d.links[p]
	delete(d.links, p)
	l.cancel()
	for s := range l.inbound {
		d.b.tasks.Go(func() { s.Reset() }) // Reset may block if the connection hangs
	}
	now := time.Now()
	d.engine.RemoveNeighbor(now, p)
	d.carryOut(now)
	d.changed.Broadcast()
}

// run sends marks to the neighbor until the link ends.
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
		// A stream to a leaf is opened even without new marks, because the greeting is
		// sent at its beginning.
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
		// The link has ended; that is why the stream failed, so do not try again.
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
			l.wake.Set() // the next attempt must follow even if there are no new marks, because the greeting must arrive
		}
		l.b.driver.withEngine(func(now time.Time, e *engine.Engine[*signedBatch]) { e.RequeueMarks(now, l.peer, marks) })
	}
}

// dueMarks returns the marks that must be sent to the neighbor now.
func (l *markSender) dueMarks() (marks []engine.Mark) {
	l.b.driver.mu.Lock()
	defer l.b.driver.mu.Unlock()
	now := time.Now()
	marks = l.b.driver.engine.CollectMarks(now, l.peer, maxMarksAtOnce)
	l.b.driver.carryOut(now)
	return marks
}

// ensureStream opens the stream of marks to the neighbor and stores it in *s, unless *s
// is an open stream already. If the neighbor is a leaf, it then sends this node's
// greeting on the new stream.
func (l *markSender) ensureStream(s *network.Stream) (err error) {
	if *s != nil {
		return nil
	}
	if *s, err = l.b.openRepair(l.ctx, l.peer); err != nil || !l.leaf {
		return err
	}
	return l.writeMarks(*s, l.b.greeting())
}

func (l *markSender) writeMarks(s network.Stream, marks []byte) error {
	s.SetWriteDeadline(time.Now().Add(repairTimeout))
	_, err := s.Write(frame.Append(nil, frame.AppendMessage(nil, numRepairTold, marks)))
	return err
}

// openRepair opens a stream of protocol.Repair to p over an existing connection. The
// stream is reset when ctx ends.
func (b *Broadcast) openRepair(ctx context.Context, p peer.ID) (network.Stream, error) {
	open, cancel := context.WithTimeout(ctx, repairTimeout)
	defer cancel()
	// A neighbor without a connection will soon be unlinked. So this method does not dial
	// it again; the node decides about that.
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
