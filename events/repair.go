package events

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/go-smokesignal/smokesignal/events/internal/engine"
	"github.com/go-smokesignal/smokesignal/events/internal/order"
	"github.com/go-smokesignal/smokesignal/events/internal/repair"
	"github.com/go-smokesignal/smokesignal/internal/event"
	"github.com/go-smokesignal/smokesignal/internal/frame"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

// A stream of protocol.Repair carries frames (an unsigned varint length, then a
// message):
//
//	message RepairFrame { // exactly one field
//	  Marks told = 1;     // from the side that opened the stream; not answered
//	  Want want = 2;      // from the side that opened the stream
//	  bytes original = 3; // part of an answer: a signed pubsub Message; any number of them ...
//	  Marks end = 4;      // ... and then this
//	}
//	message Want {
//	  bytes sender = 1;
//	  bytes session = 2;   // as in Batch
//	  uint64 start_ms = 3;
//	  uint64 from = 4;     // number of the first missing event
//	  uint64 to = 5;       // number of the next event that is not missing
//	  bool pass_on = 6;    // a neighbor that lacks the events asks its own neighbors
//	}
//
// The field end holds the answering node's mark of the wanted sender, as a Marks
// message. It is empty if that node does not know the sender.
//
// A node keeps one stream open to each neighbor, on which it sends its marks when they
// change. If one of the two is a leaf, that stream begins with all marks. On other,
// short streams a node asks for events that it lacks. The originals in an answer are
// the batches that contain any of the wanted events, in ascending order: at least one,
// and at most 1 MiB in all. To get more, the node asks again. Each original has its
// sender's signature, so the neighbor cannot forge it. A frame with told or want has at
// most 64 KiB and a few bytes. A node serves 8 streams of one neighbor. It resets
// further ones, and streams of peers that are not neighbors.
const (
	numRepairTold     = 1
	numRepairWant     = 2
	numRepairOriginal = 3
	numRepairEnd      = 4

	// Fields 1 to 3 of a Want message identify the sender and its session: see runFields.
	numWantFrom   = 4
	numWantTo     = 5
	numWantPassOn = 6

	maxRepairQuestion = maxMarksSize + 64
	maxRepairAnswer   = 1<<20 + 64
	maxRepairStreams  = 8
	maxUnlinked       = 64 // open streams of peers that are not neighbors yet, which may become neighbors
	// maxMarksAtOnce is how many marks of the largest possible size fit into one frame.
	maxMarksAtOnce = 400
	// answerSize is the most bytes of signed batches in one answer to a request for
	// events.
	answerSize = 1 << 20

	// repairTimeout is how long each step may take: opening a stream, writing once, or
	// reading one frame.
	repairTimeout = 5 * time.Second
	// passOnTimeout is how long a node may ask its neighbors on behalf of the neighbor
	// that waits for the answer. It is less than repairTimeout, after which the waiting
	// neighbor gives up.
	passOnTimeout = 2 * time.Second
)

// repairRequest is a Want message: a request for events.
type repairRequest struct {
	repair.Subject
	from, to uint64
	passOn   bool
}

func (w repairRequest) append(dst []byte) []byte {
	body := frame.AppendBytes(nil, numRunSender, w.Sender)
	body = frame.AppendBytes(body, numRunSession, w.Session.ID[:])
	body = frame.AppendUint(body, numRunStart, w.Session.Start)
	body = frame.AppendUint(body, numWantFrom, w.from)
	body = frame.AppendUint(body, numWantTo, w.to)
	if w.passOn {
		body = frame.AppendUint(body, numWantPassOn, 1)
	}
	return frame.AppendMessage(dst, numRepairWant, body)
}

func decodeRepairRequest(b []byte) (w repairRequest, err error) {
	var run runFields
	for f, err := range frame.Fields(b) {
		if err != nil {
			return w, fmt.Errorf("%w want: %w", event.ErrMalformed, err)
		}
		found, err := run.read(f)
		if err != nil {
			return w, fmt.Errorf("%w want: %w", event.ErrMalformed, err)
		}
		switch {
		case found, f.Type != protowire.VarintType:
			// run.read has decoded the field, or the field is of a later version of the
			// protocol.
		case f.Num == numWantFrom:
			w.from = f.Uint
		case f.Num == numWantTo:
			w.to = f.Uint
		case f.Num == numWantPassOn:
			w.passOn = f.Uint != 0
		}
	}
	w.Sender = run.sender
	if w.Sender == "" || w.from < 1 || w.from >= w.to || w.to > order.MaxNumber {
		return w, fmt.Errorf("%w want: events %d to %d of sender %s", event.ErrMalformed, w.from, w.to, w.Sender)
	}
	if w.Session, err = run.key(); err != nil {
		return w, fmt.Errorf("%w want: %w", event.ErrMalformed, err)
	}
	return w, nil
}

// serve handles a stream that a peer has opened: it receives the neighbor's marks and
// answers its requests. libp2p calls it on a new goroutine for each stream.
func (b *Broadcast) serve(s network.Stream) {
	p := s.Conn().RemotePeer()
	if err := b.admitRepair(p, s); err != nil {
		b.log.Debug("a repair stream was refused", "peer", p, "error", err)
		s.ResetWithError(network.StreamRateLimited)
		return
	}
	defer b.leaveRepair(p, s)
	stop := context.AfterFunc(b.ctx, func() { s.ResetWithError(network.StreamShutdown) })
	defer stop()
	if err := b.serveFrames(p, s); err != nil {
		s.ResetWithError(network.StreamProtocolViolation)
		b.log.Debug("a repair stream ended", "peer", p, "error", err)
		return
	}
	s.Close()
}

// admitRepair waits until p is a neighbor and then adds the stream to its link. Of two
// new neighbors, one always completes the link first, so its stream can arrive before
// the other has completed the link.
func (b *Broadcast) admitRepair(p peer.ID, s network.Stream) error {
	ctx, cancel := context.WithTimeout(b.ctx, repairTimeout)
	defer cancel()
	b.driver.mu.Lock()
	// Streams of neighbors are limited below. Those of other peers are limited here,
	// all together, because anybody can open them.
	if b.driver.unlinkedStreams >= maxUnlinked && b.driver.links[p] == nil {
		b.driver.mu.Unlock()
		return fmt.Errorf("events: peers that are not neighbors have opened %d repair streams already", maxUnlinked)
	}
	b.driver.unlinkedStreams++
	b.driver.mu.Unlock()
	defer func() {
		b.driver.mu.Lock()
		defer b.driver.mu.Unlock()
		b.driver.unlinkedStreams--
	}()
	var admitted, full bool
	err := b.driver.waitUntil(ctx, func() bool {
		l := b.driver.links[p]
		if l == nil || b.driver.closed {
			return b.driver.closed
		}
		// The peer is a neighbor. Its stream is accepted if it has not too many.
		if full = len(l.inbound) >= maxRepairStreams; !full {
			admitted = true
			l.inbound[s] = struct{}{}
			b.tasks.Add(1)
		}
		return true
	})
	switch {
	case admitted:
		return nil // the stream was added, even if ctx has ended since
	case full:
		return fmt.Errorf("events: the neighbor has %d repair streams open already", maxRepairStreams)
	case err != nil:
		return err
	}
	return ErrClosed
}

// leaveRepair removes an ended stream from the link to p.
func (b *Broadcast) leaveRepair(p peer.ID, s network.Stream) {
	b.driver.mu.Lock()
	defer b.driver.mu.Unlock()
	if l := b.driver.links[p]; l != nil {
		delete(l.inbound, s)
	}
	b.tasks.Done()
}

// serveFrames handles the frames of a stream until p closes it.
func (b *Broadcast) serveFrames(p peer.ID, s network.Stream) error {
	if err := s.Scope().SetService(protocol.Service); err != nil {
		return err
	}
	r := frame.NewReader(s, maxRepairQuestion)
	r.SetTimeout(s, repairTimeout)
	for first := true; ; first = false {
		msg, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		num, body, err := repairField(msg)
		if err != nil {
			return err
		}
		switch num {
		case numRepairTold:
			if err := b.receiveMarks(p, body, first); err != nil {
				return err
			}
		case numRepairWant:
			w, err := decodeRepairRequest(body)
			if err != nil {
				return err
			}
			if err := b.answerRequest(p, s, w); err != nil {
				return err
			}
		}
	}
}

// repairField returns the field that a RepairFrame contains. num is 0 if the frame
// contains no known field.
func repairField(b []byte) (num protowire.Number, body []byte, err error) {
	for f, err := range frame.Fields(b) {
		if err != nil {
			return 0, nil, err
		}
		if f.Num <= numRepairEnd && f.Type == protowire.BytesType {
			num, body = f.Num, f.Bytes
		}
	}
	return num, body, nil
}

// receiveMarks passes the marks of a neighbor to the engine. first means that they are
// the first ones on their stream; a leaf's first marks are its greeting.
func (b *Broadcast) receiveMarks(p peer.ID, body []byte, first bool) error {
	marks, err := decodeMarks(body)
	if err != nil {
		return err
	}
	b.driver.mu.Lock()
	defer b.driver.mu.Unlock()
	l := b.driver.links[p]
	if l == nil || b.driver.closed {
		return nil
	}
	now := time.Now()
	// A leaf takes no part in a handshake that could carry its greeting, so the first
	// marks on its stream are its greeting.
	if l.leaf && first {
		b.driver.engine.ReceiveGreeting(now, p, marks)
	} else {
		b.driver.engine.ReceiveMarks(now, p, marks)
	}
	b.driver.carryOut(now)
	b.driver.changed.Broadcast()
	return nil
}

// answerRequest sends a neighbor the stored batches that it asks for.
func (b *Broadcast) answerRequest(p peer.ID, s network.Stream, w repairRequest) error {
	b.driver.withEngine(func(now time.Time, e *engine.Engine[*signedBatch]) { e.Heard(now, p) })
	list := b.driver.stored(w)
	// Without the first missing event the neighbor can deliver none of the others, so
	// ask other neighbors for it.
	if w.passOn && (len(list) == 0 || list[0].first > w.from) {
		b.passOn(p, w)
		list = b.driver.stored(w)
	}
	for _, o := range list {
		msg, err := o.encode()
		if err != nil {
			return err
		}
		s.SetWriteDeadline(time.Now().Add(repairTimeout))
		if _, err := s.Write(frame.Append(nil, frame.AppendMessage(nil, numRepairOriginal, msg))); err != nil {
			return err
		}
		b.stats.repairs.Add(1)
	}
	var end []byte
	if m, ok := b.driver.mark(w.Sender); ok {
		end = appendMarks(nil, []engine.Mark{m}) // the End of an answer is a Marks message with a single mark
	}
	s.SetWriteDeadline(time.Now().Add(repairTimeout))
	_, err := s.Write(frame.Append(nil, frame.AppendMessage(nil, numRepairEnd, end)))
	return err
}

// passOn asks the neighbors other than p for the events that p wants, one after the
// other, until one has the first of them.
func (b *Broadcast) passOn(p peer.ID, w repairRequest) {
	ctx, cancel := context.WithTimeout(b.ctx, passOnTimeout)
	defer cancel()
	for _, other := range b.driver.others(p) {
		if ctx.Err() != nil {
			return
		}
		a := repair.Ask{Peer: other, Subject: w.Subject, From: w.from, To: w.to}
		if _, err := b.fetch(ctx, a, false); err != nil {
			b.log.Debug("a neighbor could not be asked for events", "peer", other, "error", err)
		}
		// The first wanted event, without which the neighbor can deliver none of the
		// others, has arrived. So no other neighbor is asked.
		if list := b.driver.stored(w); len(list) > 0 && list[0].first <= w.from {
			return
		}
	}
}

// repairFrom asks a neighbor for events, as the engine has decided, and reports the
// outcome to the engine.
func (b *Broadcast) repairFrom(a repair.Ask) {
	got, err := b.fetch(b.ctx, a, !a.Backfill)
	answer := repair.Found
	switch {
	case err != nil:
		answer = repair.Failed
		b.log.Debug("a neighbor could not be asked for events", "peer", a.Peer, "sender", a.Sender, "error", err)
	case got == 0:
		answer = repair.NotFound
	}
	b.driver.withEngine(func(now time.Time, e *engine.Engine[*signedBatch]) { e.FinishAsk(now, a, got, answer) })
}

// fetch sends the ask a for missing events to a neighbor, and passes the batches that
// arrive to the engine. If passOn is set, a neighbor that lacks the events asks its own
// neighbors for them. got is the number after the last event that arrived, or 0 if none
// arrived.
func (b *Broadcast) fetch(ctx context.Context, a repair.Ask, passOn bool) (got uint64, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := b.openRepair(ctx, a.Peer)
	if err != nil {
		return 0, err
	}
	defer s.Close()
	w := repairRequest{Subject: a.Subject, from: a.From, to: a.To, passOn: passOn}
	s.SetDeadline(time.Now().Add(repairTimeout))
	if _, err := s.Write(frame.Append(nil, w.append(nil))); err != nil {
		return 0, err
	}
	r := frame.NewReader(s, maxRepairAnswer)
	for size := 0; ; {
		s.SetReadDeadline(time.Now().Add(repairTimeout))
		msg, err := r.Next()
		if err != nil {
			return got, err
		}
		num, body, err := repairField(msg)
		if err != nil {
			return got, err
		}
		switch num {
		case numRepairOriginal:
			o, err := decodeSignedBatch(body, a.Sender, b.cfg.Topic)
			if err != nil {
				return got, err
			}
			// The neighbor must send only the events it was asked for, or it could fill
			// the store.
			if size += len(body); o.session != a.Session || o.nextSeq() <= a.From || o.first >= a.To || size > answerSize+maxRepairAnswer {
				return got, fmt.Errorf("%w answer: events %d to %d were not asked for", event.ErrMalformed, o.first, o.nextSeq())
			}
			got = max(got, o.nextSeq())
			b.driver.withEngine(func(now time.Time, e *engine.Engine[*signedBatch]) {
				e.ReceiveRepair(now, a, b.driver.engineBatch(o))
			})
			b.stats.repaired.Add(1)
		case numRepairEnd:
			return got, b.receiveEndMark(a, body)
		}
	}
}

// receiveEndMark passes the mark at the end of an answer to the engine.
func (b *Broadcast) receiveEndMark(a repair.Ask, body []byte) error {
	if len(body) == 0 {
		return nil
	}
	marks, err := decodeMarks(body)
	if err != nil {
		return err
	}
	b.driver.withEngine(func(now time.Time, e *engine.Engine[*signedBatch]) {
		// The link may have ended while the neighbor was being asked.
		if b.driver.links[a.Peer] != nil {
			e.ReceiveMarks(now, a.Peer, marks)
		}
	})
	return nil
}

// stored returns the stored batches that contain events of a request.
func (d *engineDriver) stored(w repairRequest) (list []*signedBatch) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, b := range d.engine.StoredEntries(w.Sender, w.Session, w.from, w.to, answerSize) {
		list = append(list, b.Value)
	}
	return list
}

// others returns the neighbors other than p.
func (d *engineDriver) others(p peer.ID) []peer.ID {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.engine.OtherNeighbors(p)
}

// mark returns this node's mark of the sender p.
func (d *engineDriver) mark(p peer.ID) (engine.Mark, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.engine.Mark(p)
}
