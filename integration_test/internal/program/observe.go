package program

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/checker"
)

// Observe reports what node tells the handlers of its links and seeds as
// records of the process proc. It has to be called before Start. add must not
// block.
func Observe(node *smokesignal.Node, proc string, add func(checker.Record)) {
	tell := func(k checker.Kind, r checker.Record) {
		r.Proc, r.Kind = proc, k
		add(r)
	}
	node.OnConnect(func(context.Context) { tell(checker.Connect, checker.Record{Up: node.Connected()}) })
	node.OnDisconnect(func(context.Context) { tell(checker.Disconnect, checker.Record{Up: node.Connected()}) })
	var mu sync.Mutex
	known := map[smokesignal.ID]bool{}
	node.OnPeerAdded(func(_ context.Context, p *smokesignal.Peer) {
		mu.Lock()
		first := !known[p.ID()]
		known[p.ID()] = true
		mu.Unlock()
		if first { // handlers of a peer outlast its links
			p.OnClose(func(_ context.Context, reason error) {
				tell(checker.PeerClose, checker.Record{Peer: p.ID().String(), Err: errText(reason), Code: Code(reason)})
			})
		}
		tell(checker.PeerAdded, checker.Record{Peer: p.ID().String(), Up: node.Connected()})
	})
	node.OnPeerRemoved(func(_ context.Context, p *smokesignal.Peer) {
		tell(checker.PeerRemoved, checker.Record{Peer: p.ID().String(), Up: node.Connected()})
	})
	node.Peers().OnAdd(func(_ context.Context, p *smokesignal.Peer) {
		tell(checker.ListAdd, checker.Record{Peer: p.ID().String(), Up: node.Connected()})
	})
	node.Peers().OnRemove(func(_ context.Context, p *smokesignal.Peer) {
		tell(checker.ListRemove, checker.Record{Peer: p.ID().String(), Up: node.Connected()})
	})
	node.OnNetsplit(func(_ context.Context, s smokesignal.Seed) {
		tell(checker.Netsplit, checker.Record{Seed: s.Seed})
	})
	node.OnNetsplitResolved(func(_ context.Context, s smokesignal.Seed) {
		tell(checker.Resolved, checker.Record{Seed: s.Seed})
	})
	node.OnSeedError(func(_ context.Context, err *smokesignal.SeedError) {
		tell(checker.SeedError, checker.Record{Seed: err.Seed, Err: err.Error(), Code: Code(err)})
	})
}

// observeEvents reports every event that arrives and, in its place, every gap. All events
// have to be numbered ones as node programs emit them.
func observeEvents(node *smokesignal.Node, add func(checker.Record)) {
	node.Broadcast().OnGap(func(_ context.Context, g smokesignal.Gap) {
		add(checker.Record{
			Kind: checker.Gap, Peer: g.From.String(), Session: hex.EncodeToString(g.Session[:]),
			Seq: g.First, To: g.Last,
		})
	})
	for channel, source := range map[string]smokesignal.Source{
		checker.Broadcast: node.Broadcast(), checker.Direct: node.Direct(),
	} {
		source.On("*", func(_ context.Context, ev *smokesignal.Event) {
			r := checker.Record{Kind: checker.Received, Peer: ev.From.String(), Channel: channel, Name: ev.Name}
			var pad []byte
			if err := ev.Decode(&r.Run, &r.Seq, &pad); err != nil {
				r.Kind, r.Err = checker.Damaged, err.Error()
			} else if i := damage(pad, r.Seq); i >= 0 {
				r.Kind, r.Err = checker.Damaged, fmt.Sprintf("byte %d of %d is wrong", i, len(pad))
			}
			add(r)
		})
	}
}

// padding is the payload of event number seq: size bytes that nothing but the
// sender of this event would write.
func padding(seq uint64, size int) []byte {
	pad := make([]byte, size)
	for i := range pad {
		pad[i] = byte(seq + uint64(i))
	}
	return pad
}

// damage returns the index of the first byte that padding would not have
// written, -1 if there is none.
func damage(pad []byte, seq uint64) int {
	for i, b := range pad {
		if b != byte(seq+uint64(i)) {
			return i
		}
	}
	return -1
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// Code is the short word for an error that a record carries: the name of the
// library's variable or type, "deadline" for an ended context, "other" for
// the rest and "" for nil.
func Code(err error) string {
	if err == nil {
		return ""
	}
	for _, known := range []struct {
		code string
		err  error
	}{
		{"ErrClosed", smokesignal.ErrClosed},
		{"ErrNotStarted", smokesignal.ErrNotStarted},
		{"ErrNoPeers", smokesignal.ErrNoPeers},
		{"ErrTooLarge", smokesignal.ErrTooLarge},
		{"ErrStalled", smokesignal.ErrStalled},
		{"ErrFull", smokesignal.ErrFull},
		{"ErrSelf", smokesignal.ErrSelf},
		{"ErrOtherNetwork", smokesignal.ErrOtherNetwork},
		{"ErrRelayed", smokesignal.ErrRelayed},
		{"ErrUnresolvable", smokesignal.ErrUnresolvable},
		{"ErrNotSmokesignal", smokesignal.ErrNotSmokesignal},
		{"ErrUnreachable", smokesignal.ErrUnreachable},
		{"ErrStarted", smokesignal.ErrStarted},
	} {
		if errors.Is(err, known.err) {
			return known.code
		}
	}
	if _, ok := errors.AsType[*smokesignal.WrongIDError](err); ok {
		return "WrongIDError"
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return "deadline"
	}
	return "other"
}
