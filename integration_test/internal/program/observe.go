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

// Observe sets handlers for the links and seeds of node. They call add with a Record for each
// event, in which proc is the name of the process. Observe must be called before Start, and add
// must not block.
func Observe(node *smokesignal.Node, proc string, add func(checker.Record)) {
	report := func(k checker.Kind, r checker.Record) {
		r.Proc, r.Kind = proc, k
		add(r)
	}
	node.OnConnect(func(context.Context) { report(checker.Connect, checker.Record{Up: node.Connected()}) })
	node.OnDisconnect(func(context.Context) { report(checker.Disconnect, checker.Record{Up: node.Connected()}) })
	var mu sync.Mutex
	known := map[smokesignal.ID]bool{}
	node.OnPeerAdded(func(_ context.Context, p *smokesignal.Peer) {
		mu.Lock()
		first := !known[p.ID()]
		known[p.ID()] = true
		mu.Unlock()
		if first { // only once, because the handlers of a peer stay registered when its link ends
			p.OnClose(func(_ context.Context, reason error) {
				report(checker.PeerClose, checker.Record{Peer: p.ID().String(), Err: errText(reason), Code: Code(reason)})
			})
		}
		report(checker.PeerAdded, checker.Record{Peer: p.ID().String(), Up: node.Connected()})
	})
	node.OnPeerRemoved(func(_ context.Context, p *smokesignal.Peer) {
		report(checker.PeerRemoved, checker.Record{Peer: p.ID().String(), Up: node.Connected()})
	})
	node.Peers().OnAdd(func(_ context.Context, p *smokesignal.Peer) {
		report(checker.ListAdd, checker.Record{Peer: p.ID().String(), Up: node.Connected()})
	})
	node.Peers().OnRemove(func(_ context.Context, p *smokesignal.Peer) {
		report(checker.ListRemove, checker.Record{Peer: p.ID().String(), Up: node.Connected()})
	})
	node.OnNetsplit(func(_ context.Context, s smokesignal.Seed) {
		report(checker.Netsplit, checker.Record{Seed: s.Seed})
	})
	node.OnNetsplitResolved(func(_ context.Context, s smokesignal.Seed) {
		report(checker.Resolved, checker.Record{Seed: s.Seed})
	})
	node.OnSeedError(func(_ context.Context, err *smokesignal.SeedError) {
		report(checker.SeedError, checker.Record{Seed: err.Seed, Err: err.Error(), Code: Code(err)})
	})
}

// observeEvents calls add with a record for every event and every gap that arrives, in order.
// The events must have the arguments that node.emit writes.
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

// padding returns the payload of the event with number seq: size bytes that differ from
// those of the events before and after it.
func padding(seq uint64, size int) []byte {
	pad := make([]byte, size)
	for i := range pad {
		pad[i] = byte(seq + uint64(i))
	}
	return pad
}

// damage returns the index of the first byte of pad that differs from the padding of the event
// with number seq, or -1 if pad is intact.
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

// Code returns a short word for an error, for Record.Code: the name of the library's
// error variable or type, "deadline" for a context deadline, "other" for any other error
// and "" for nil.
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
