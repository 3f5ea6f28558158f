package events

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/go-smokesignal/smokesignal/events/internal/order"
	"github.com/go-smokesignal/smokesignal/internal/frame"
)

// A stream of ProtocolRepair carries frames (an unsigned varint length, then a
// message) in both directions: questions of who opened it, and an answer to
// each, in their order.
//
//	message RepairFrame { // exactly one field
//	  MarksRequest request = 1; // question
//	  Marks marks = 2;          // answer
//	}
//	message MarksRequest { repeated bytes sender = 1; } // peer ids, 64 at most
//
// The answer to a request that names senders has the marks of those of whom the
// answering node itself heard, in their latest session; so a sender that asks
// for its own mark learns what arrived. The answer to one that names nobody has
// those that a new neighbour is told. A frame has at most 64 KiB, and a few
// bytes for the answer's header; a request 4 KiB. A frame without a known field
// is skipped. A question has to come within 10 s of the last answer, and an answer
// has to be taken within 5 s. Of one peer two streams are served; more, and those
// of peers that are not neighbours, are reset.
const (
	numRepairRequest = 1
	numRepairMarks   = 2

	numRequestSender = 1

	maxRepairFrame    = maxMarksSize + 64
	maxRepairRequest  = 4 << 10
	maxRequestSenders = 64
	maxRepairStreams  = 2

	repairTimeout = 5 * time.Second
	repairIdle    = 10 * time.Second
)

// serve answers a neighbour's questions. libp2p gives it a goroutine a stream.
func (b *Broadcast) serve(s network.Stream) {
	p := s.Conn().RemotePeer()
	if !b.admitRepair(p) {
		s.ResetWithError(network.StreamRateLimited)
		return
	}
	defer b.leaveRepair(p)
	stop := context.AfterFunc(b.ctx, func() { s.ResetWithError(network.StreamShutdown) })
	defer stop()
	if err := b.answerAll(s); err != nil {
		s.ResetWithError(network.StreamProtocolViolation)
		b.log.Debug("a stream of questions ended", "peer", p, "error", err)
		return
	}
	s.Close()
}

func (b *Broadcast) admitRepair(p peer.ID) bool {
	if b.cfg.Serve != nil && !b.cfg.Serve(p) {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stage == broadcastClosed || b.serving[p] >= maxRepairStreams {
		return false
	}
	b.serving[p]++
	b.tasks.Add(1)
	return true
}

func (b *Broadcast) leaveRepair(p peer.ID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.serving[p]--; b.serving[p] == 0 {
		delete(b.serving, p)
	}
	b.tasks.Done()
}

func (b *Broadcast) answerAll(s network.Stream) error {
	if err := s.Scope().SetService(Service); err != nil {
		return err
	}
	r := frame.NewReader(s, maxRepairRequest)
	for {
		s.SetReadDeadline(time.Now().Add(repairIdle))
		msg, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		senders, ok, err := decodeMarksRequest(msg)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		answer := frame.AppendMessage(nil, numRepairMarks, b.answer(senders))
		s.SetWriteDeadline(time.Now().Add(repairTimeout))
		if _, err := s.Write(frame.Append(nil, answer)); err != nil {
			return err
		}
	}
}

// answer returns the Marks of the senders, or of all.
func (b *Broadcast) answer(senders []peer.ID) []byte {
	if len(senders) == 0 {
		return b.Marks()
	}
	var marks []order.Mark
	for _, p := range senders {
		if m, ok := b.in.mark(p); ok {
			marks = append(marks, m)
		}
	}
	return appendMarks(nil, marks)
}

func appendMarksRequest(dst []byte, senders ...peer.ID) []byte {
	var request []byte
	for _, p := range senders {
		request = frame.AppendMessage(request, numRequestSender, p)
	}
	return frame.AppendMessage(dst, numRepairRequest, request)
}

// decodeMarksRequest reads a RepairFrame; ok says that it holds a request.
func decodeMarksRequest(b []byte) (senders []peer.ID, ok bool, err error) {
	body, ok, err := repairField(b, numRepairRequest)
	if !ok || err != nil {
		return nil, false, err
	}
	for f, err := range frame.Fields(body) {
		switch {
		case err != nil:
			return nil, false, err
		case f.Num != numRequestSender || f.Type != protowire.BytesType:
			continue
		case len(senders) == maxRequestSenders:
			return nil, false, fmt.Errorf("%w request: more than %d senders", ErrMalformed, maxRequestSenders)
		}
		p, err := peer.IDFromBytes(f.Bytes)
		if err != nil {
			return nil, false, fmt.Errorf("%w request: %w", ErrMalformed, err)
		}
		senders = append(senders, p)
	}
	return senders, true, nil
}

// repairField returns a field of a RepairFrame; ok says that it is there.
func repairField(b []byte, num protowire.Number) (body []byte, ok bool, err error) {
	for f, err := range frame.Fields(b) {
		if err != nil {
			return nil, false, err
		}
		if f.Num == num && f.Type == protowire.BytesType {
			body, ok = f.Bytes, true
		}
	}
	return body, ok, nil
}

// Pauses between two questions of Flush, growing.
const (
	firstAsk = 2 * time.Millisecond
	lastAsk  = 200 * time.Millisecond
)

// UnconfirmedError says which neighbours did not confirm in time that they have
// received what was sent. Why says why for each; Err is the end of the context.
type UnconfirmedError struct {
	Peers []peer.ID
	Why   []error
	Err   error
}

func (e *UnconfirmedError) Error() string {
	var who []string
	for i, p := range e.Peers {
		who = append(who, fmt.Sprintf("%s (%s)", p, bare(e.Why[i])))
	}
	return fmt.Sprintf("events: broadcasts not confirmed by %s: %v", strings.Join(who, ", "), e.Err)
}

func (e *UnconfirmedError) Unwrap() error { return e.Err }

// Flush waits until every neighbour has received what was sent before the call.
// Who ceases to be a neighbour meanwhile is not waited for; what a neighbour
// itself had to give up as lost counts as received. When ctx ends the error is
// an [*UnconfirmedError]; it is ErrClosed when the Broadcast closes.
func (b *Broadcast) Flush(ctx context.Context) error {
	goal := b.nextNumber()
	if goal == 1 {
		return nil // nothing was ever sent
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(b.ctx, cancel)()
	var (
		mu     sync.Mutex
		missed = &UnconfirmedError{}
		asking sync.WaitGroup
	)
	for _, p := range b.neighbours() {
		asking.Go(func() {
			if err := b.confirm(ctx, p, goal); err != nil {
				mu.Lock()
				defer mu.Unlock()
				missed.Peers = append(missed.Peers, p)
				missed.Why = append(missed.Why, err)
			}
		})
	}
	asking.Wait()
	switch {
	case len(missed.Peers) == 0:
		return nil
	case b.ctx.Err() != nil:
		return ErrClosed
	}
	missed.Err = ctx.Err()
	return missed
}

// confirm asks p until it has received our events below goal. When ctx ends it
// returns why p has not.
func (b *Broadcast) confirm(ctx context.Context, p peer.ID, goal uint64) error {
	q := &question{b: b, peer: p}
	defer q.close()
	why := errors.New("events: not asked")
	for pause := firstAsk; slices.Contains(b.neighbours(), p); pause = min(2*pause, lastAsk) {
		mark, err := q.ask(ctx)
		switch {
		case err == nil && mark.Session == b.session && mark.Next >= goal:
			return nil
		case err == nil:
			why = fmt.Errorf("events: it has %d of %d", max(mark.Next, 1)-1, goal-1)
			if mark.Session != b.session {
				why = fmt.Errorf("events: it has none of %d", goal-1)
			}
		case ctx.Err() == nil:
			why = err
		}
		if sleep(ctx, pause) != nil {
			return why
		}
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// question is a stream on which a peer is asked for its mark of us; it is
// opened when it is needed.
type question struct {
	b      *Broadcast
	peer   peer.ID
	stream network.Stream
	reader *frame.Reader
}

func (q *question) close() {
	if q.stream != nil {
		q.stream.Close()
		q.stream = nil
	}
}

// ask returns the peer's mark of us; the zero mark if it has none.
func (q *question) ask(ctx context.Context) (order.Mark, error) {
	ctx, cancel := context.WithTimeout(ctx, repairTimeout)
	defer cancel()
	mark, err := q.try(ctx)
	if err != nil && q.stream != nil {
		q.stream.Reset()
		q.stream = nil
	}
	return mark, err
}

func (q *question) try(ctx context.Context) (order.Mark, error) {
	if q.stream == nil {
		s, err := q.b.host.NewStream(network.WithNoDial(ctx, "flush"), q.peer, ProtocolRepair)
		if err != nil {
			return order.Mark{}, err
		}
		q.stream, q.reader = s, frame.NewReader(s, maxRepairFrame)
	}
	s := q.stream
	stop := context.AfterFunc(ctx, func() { s.Reset() })
	defer stop()
	self := q.b.host.ID()
	if _, err := s.Write(frame.Append(nil, appendMarksRequest(nil, self))); err != nil {
		return order.Mark{}, err
	}
	for {
		msg, err := q.reader.Next()
		if err != nil {
			return order.Mark{}, err
		}
		body, ok, err := repairField(msg, numRepairMarks)
		if err != nil {
			return order.Mark{}, err
		}
		if !ok {
			continue
		}
		marks, err := decodeMarks(body)
		if err != nil {
			return order.Mark{}, err
		}
		for _, m := range marks {
			if m.Sender == self {
				return m, nil
			}
		}
		return order.Mark{}, nil
	}
}
