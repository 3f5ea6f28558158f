package events

import (
	"context"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/events/internal/engine"
	"github.com/go-smokesignal/smokesignal/internal/frame"
)

// A teller tells one neighbour how far we are with the senders it may be waiting
// for, on one long stream. What changes while it writes goes into the next frame.
type markSender struct {
	b    *Broadcast
	peer peer.ID
	leaf bool
	wake chan struct{} // has a value when there is something to tell

	ctx    context.Context
	cancel context.CancelFunc
	// inbound are the streams that the neighbour has opened; the inbox's lock
	// guards them.
	inbound map[network.Stream]struct{}
}

const (
	// Pauses after a stream could not be opened or broke.
	minTellPause = 50 * time.Millisecond
	maxTellPause = 5 * time.Second
)

// Link says that p is a neighbour: we wait until it has what we send, and ask it
// for what we lack. greeting is what its Marks returned when it saw us on the
// topic; nil if there is none. The error is ErrMalformed; the link is made all
// the same. Linking twice takes the greeting again.
func (b *Broadcast) Link(p peer.ID, greeting []byte) error {
	marks, err := decodeMarks(greeting)
	b.driver.mu.Lock()
	defer b.driver.mu.Unlock()
	if b.driver.closed {
		return err
	}
	if l := b.driver.links[p]; l != nil && l.leaf {
		b.driver.unlink(p) // it has become a node
	}
	b.driver.link(p, false)
	now := time.Now()
	if len(greeting) > 0 {
		b.driver.engine.ReceiveGreeting(now, p, marks)
	}
	b.driver.carryOut(now)
	b.driver.changed()
	return err
}

// LinkLeaf is Link for a neighbour with which there is no handshake that could carry
// greetings: each of the two begins every stream on which it tells marks with all
// that it has, and these are its greeting. The leaf has to be on the topic. Linking
// twice does nothing.
func (b *Broadcast) LinkLeaf(p peer.ID) {
	b.driver.mu.Lock()
	defer b.driver.mu.Unlock()
	if b.driver.closed || b.driver.links[p] != nil {
		return
	}
	signal(b.driver.link(p, true).wake) // to greet
	b.driver.carryOut(time.Now())
	b.driver.changed()
}

// link adds a neighbour, unless it is one. It needs mu.
func (in *engineDriver) link(p peer.ID, leaf bool) *markSender {
	l := in.links[p]
	if l == nil {
		l = &markSender{b: in.b, peer: p, leaf: leaf, wake: make(chan struct{}, 1), inbound: make(map[network.Stream]struct{})}
		l.ctx, l.cancel = context.WithCancel(in.b.ctx)
		in.links[p] = l
		if leaf {
			in.engine.AddLeaf(p)
		} else {
			in.engine.AddNeighbor(p)
		}
		in.hadNeighbor.Store(true)
		in.b.tasks.Go(l.run)
	}
	return l
}

// Unlink says that p is no neighbour any more. It does nothing if p is none.
func (b *Broadcast) Unlink(p peer.ID) {
	b.driver.mu.Lock()
	defer b.driver.mu.Unlock()
	if b.driver.links[p] != nil && !b.driver.closed {
		b.driver.unlink(p)
	}
}

// UnlinkLeaf is Unlink if p is linked as a leaf.
func (b *Broadcast) UnlinkLeaf(p peer.ID) {
	b.driver.mu.Lock()
	defer b.driver.mu.Unlock()
	if l := b.driver.links[p]; l != nil && l.leaf && !b.driver.closed {
		b.driver.unlink(p)
	}
}

// unlink removes a neighbour. It needs mu.
func (in *engineDriver) unlink(p peer.ID) {
	l := in.links[p]
	delete(in.links, p)
	l.cancel()
	for s := range l.inbound {
		in.b.tasks.Go(func() { s.Reset() }) // which may block on a frozen connection
	}
	now := time.Now()
	in.engine.RemoveNeighbor(now, p)
	in.carryOut(now)
	in.changed()
}

// run writes marks until the link ends.
func (l *markSender) run() {
	var s network.Stream
	defer func() {
		if s != nil {
			s.Reset()
		}
	}()
	pause := minTellPause
	for {
		select {
		case <-l.wake:
		case <-l.ctx.Done():
			return
		}
		marks := l.dueMarks()
		if len(marks) == 0 && (!l.leaf || s != nil) {
			continue
		}
		err := l.ensureStream(&s)
		if err == nil && len(marks) > 0 {
			err = l.writeMarks(s, appendMarks(nil, marks))
		}
		if err == nil {
			pause = minTellPause
			continue
		}
		if l.ctx.Err() != nil {
			return
		}
		l.b.log.Debug("a neighbour could not be told marks", "peer", l.peer, "error", err)
		if s != nil {
			s.Reset()
			s = nil
		}
		if sleep(l.ctx, pause) != nil {
			return
		}
		pause = min(2*pause, maxTellPause)
		if l.leaf {
			signal(l.wake)
		}
		l.b.driver.withEngine(func(now time.Time, e *engine.Engine[*signedBatch]) { e.RequeueMarks(now, l.peer, marks) })
	}
}

func (l *markSender) dueMarks() (marks []engine.Mark) {
	l.b.driver.mu.Lock()
	defer l.b.driver.mu.Unlock()
	now := time.Now()
	marks = l.b.driver.engine.CollectMarks(now, l.peer, maxMarksAtOnce)
	l.b.driver.carryOut(now)
	return marks
}

// ensureStream opens the stream, unless it is, and greets a leaf on it.
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

// openRepair opens a stream of ProtocolRepair over an existing connection. It is
// reset when ctx ends.
func (b *Broadcast) openRepair(ctx context.Context, p peer.ID) (network.Stream, error) {
	open, cancel := context.WithTimeout(ctx, repairTimeout)
	defer cancel()
	s, err := b.host.NewStream(network.WithNoDial(open, "smokesignal repair"), p, ProtocolRepair)
	if err != nil {
		return nil, err
	}
	if err := s.Scope().SetService(Service); err != nil {
		s.Reset()
		return nil, err
	}
	context.AfterFunc(ctx, func() { s.Reset() })
	return s, nil
}
