package events

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/events/internal/order"
	"github.com/go-smokesignal/smokesignal/internal/frame"
)

const (
	// maxRepairFrame holds 1024 marks.
	maxRepairFrame = 128 << 10
	// repairTimeout bounds one question with its answer.
	repairTimeout = 5 * time.Second
	// firstAsk and lastAsk bound the pause between two questions of Flush.
	firstAsk = 2 * time.Millisecond
	lastAsk  = 100 * time.Millisecond
)

// Field numbers of the Repair message.
const (
	numMarksRequest = 1
	numMarks        = 2
)

// serve answers a neighbour's questions. libp2p gives it a goroutine per stream,
// and its limits bound the streams of one peer.
func (b *Broadcast) serve(s network.Stream) {
	p := s.Conn().RemotePeer()
	if b.cfg.Serve != nil && !b.cfg.Serve(p) || b.ctx.Err() != nil || s.Scope().SetService(Service) != nil {
		s.Reset()
		return
	}
	defer s.Close()
	stop := context.AfterFunc(b.ctx, func() { s.Reset() })
	defer stop()
	r := frame.NewReader(s, maxRepairFrame)
	for {
		if s.SetDeadline(time.Now().Add(repairTimeout)) != nil {
			return
		}
		msg, err := r.Next()
		if err != nil {
			s.Reset()
			return
		}
		if !asksMarks(msg) {
			continue // a question of a later version
		}
		answer := frame.AppendMessage(nil, numMarks, appendMarks(nil, b.marks()))
		if _, err := s.Write(frame.Append(nil, answer)); err != nil {
			s.Reset()
			return
		}
	}
}

func asksMarks(msg []byte) bool {
	for f, err := range frame.Fields(msg) {
		if err != nil {
			return false
		}
		if f.Num == numMarksRequest {
			return true
		}
	}
	return false
}

// Flush waits until every neighbour has received what was emitted so far, or has
// ceased to be one. Its error, when ctx ends, names those who did not confirm.
func (b *Broadcast) Flush(ctx context.Context) error {
	b.mu.Lock()
	goal := b.next
	b.mu.Unlock()
	if goal == 1 {
		return nil // nothing was ever sent
	}
	neighbours := b.cfg.Neighbours()
	results := make(chan error, len(neighbours))
	for _, p := range neighbours {
		go func() { results <- b.confirm(ctx, p, goal) }()
	}
	var missing []string
	for range neighbours {
		if err := <-results; err != nil {
			missing = append(missing, err.Error())
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("events: flush: not confirmed by %s: %w", strings.Join(missing, ", "), context.Cause(ctx))
	}
	return nil
}

// confirm asks p until it has received our events below goal.
func (b *Broadcast) confirm(ctx context.Context, p peer.ID, goal uint64) error {
	var s network.Stream
	defer func() {
		if s != nil {
			s.Reset()
		}
	}()
	var r *frame.Reader
	for pause := firstAsk; ; pause = min(2*pause, lastAsk) {
		if !b.isNeighbour(p) {
			return nil
		}
		var err error
		if s == nil {
			if s, err = b.host.NewStream(network.WithNoDial(ctx, "flush"), p, ProtocolRepair); err == nil {
				r = frame.NewReader(s, maxRepairFrame)
			}
		}
		if err == nil {
			var mark order.Mark
			if mark, err = b.ask(ctx, s, r); err == nil && mark.Session == b.session && mark.Next >= goal {
				return nil
			}
			if err != nil {
				s.Reset()
				s = nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s", p)
		case <-time.After(pause):
		}
	}
}

func (b *Broadcast) isNeighbour(p peer.ID) bool {
	for _, q := range b.cfg.Neighbours() {
		if p == q {
			return true
		}
	}
	return false
}

// ask returns the mark that the other side has of us.
func (b *Broadcast) ask(ctx context.Context, s network.Stream, r *frame.Reader) (order.Mark, error) {
	if err := s.SetDeadline(time.Now().Add(repairTimeout)); err != nil {
		return order.Mark{}, err
	}
	stop := context.AfterFunc(ctx, func() { s.SetDeadline(time.Now()) })
	defer stop()
	if _, err := s.Write(frame.Append(nil, frame.AppendMessage(nil, numMarksRequest, ""))); err != nil {
		return order.Mark{}, err
	}
	msg, err := r.Next()
	if err != nil {
		return order.Mark{}, err
	}
	for f, err := range frame.Fields(msg) {
		if err != nil {
			return order.Mark{}, err
		}
		if f.Num != numMarks {
			continue
		}
		marks, err := decodeMarks(f.Bytes)
		if err != nil {
			return order.Mark{}, err
		}
		for _, m := range marks {
			if m.Sender == b.host.ID() {
				return m, nil
			}
		}
		return order.Mark{}, nil
	}
	return order.Mark{}, errors.New("events: no marks in the answer")
}
