package direct

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/go-smokesignal/smokesignal/internal/event"
	"github.com/go-smokesignal/smokesignal/internal/hosttest"
)

// A peer without a connection is located by one search, however many calls of Emit and
// Call wait, and later calls use the stream that was opened.
func TestFirstEmitLocatesThePeer(t *testing.T) {
	ha, hb := newHost(t, tcp), newHost(t, tcp)
	var searches atomic.Int32
	a := newDirect(t, ha, Config{Locate: func(ctx context.Context, p peer.ID) error {
		searches.Add(1)
		if p != hb.ID() {
			return fmt.Errorf("asked for %s", p)
		}
		return ha.Connect(ctx, peer.AddrInfo{ID: p, Addrs: hb.Addrs()})
	}})
	b := newDirect(t, hb, Config{})
	got := collect(b)
	b.Handle("sum", func(context.Context, *event.Event) ([]any, error) { return []any{3}, nil })

	var all sync.WaitGroup
	for range 20 {
		all.Go(func() { emit(t, a, hb.ID(), "hello") })
	}
	all.Go(func() {
		if _, err := a.Call(t.Context(), hb.ID(), "sum"); err != nil {
			t.Error(err)
		}
	})
	all.Wait()
	for range 20 {
		want(t, got, "hello")
	}
	if n := searches.Load(); n != 1 {
		t.Errorf("%d searches for one peer, want 1", n)
	}
}

// A connected peer is not searched for.
func TestConnectedPeerIsNotLocated(t *testing.T) {
	ha, hb := newHost(t, tcp), newHost(t, tcp)
	hosttest.Connect(t, ha, hb)
	a := newDirect(t, ha, Config{Locate: func(context.Context, peer.ID) error { return errors.New("asked") }})
	got := collect(newDirect(t, hb, Config{}))
	emit(t, a, hb.ID(), "hello")
	want(t, got, "hello")
}

// Emit returns the error of the search, and the event is not sent later.
func TestEmitReturnsTheErrorOfTheSearch(t *testing.T) {
	ha, hb := newHost(t, tcp), newHost(t, tcp)
	nowhere := errors.New("nobody knows it")
	a := newDirect(t, ha, Config{Locate: func(context.Context, peer.ID) error { return nowhere }})
	err := a.Emit(t.Context(), hb.ID(), "hello")
	if !errors.Is(err, nowhere) || !errors.Is(err, ErrNotConnected) {
		t.Errorf("Emit returned %v", err)
	}
	if want := fmt.Sprintf(`events: emit "hello" to %s: not connected: nobody knows it`, hb.ID()); err == nil || err.Error() != want {
		t.Errorf("Emit says\n%v, want\n%s", err, want)
	}
	if _, err := a.Call(t.Context(), hb.ID(), "sum"); !errors.Is(err, nowhere) || errors.Is(err, ErrUnknownOutcome) {
		t.Errorf("Call returned %v", err)
	}
	if n := a.Stats()["unwritten"]; n != 0 {
		t.Errorf("%d events were accepted", n)
	}
	if ha.Network().Connectedness(hb.ID()) == network.Connected {
		t.Error("connected")
	}
}

// staleHost has connections that break when they are used, breaks times; late if their
// streams fail first.
type staleHost struct {
	corehost.Host
	breaks int
	late   bool
}

func (h *staleHost) NewStream(ctx context.Context, p peer.ID, ids ...protocol.ID) (network.Stream, error) {
	if h.breaks--; h.breaks >= 0 {
		if h.late {
			time.AfterFunc(connectionEndWait/4, func() { h.Network().ClosePeer(p) })
		} else {
			h.Network().ClosePeer(p)
		}
		return nil, errors.New("received a stateless reset")
	}
	return h.Host.NewStream(ctx, p, ids...)
}

// A peer whose connection turns out to be dead, old or just made, is located once more and
// only once.
func TestPeerWithAStaleConnectionIsLocatedOnce(t *testing.T) {
	for _, of := range []struct{ connected, late bool }{{true, false}, {true, true}, {false, false}, {false, true}} {
		for breaks := range 3 {
			ha, hb := &staleHost{newHost(t, tcp), breaks, of.late}, newHost(t, tcp)
			const most = 1
			searches := 0 // after a connection was found dead
			if of.connected {
				hosttest.Connect(t, ha, hb)
			} else {
				searches = -1
			}
			a := newDirect(t, ha, Config{Locate: func(ctx context.Context, p peer.ID) error {
				searches++
				return ha.Connect(ctx, peer.AddrInfo{ID: p, Addrs: hb.Addrs()})
			}})
			got := collect(newDirect(t, hb, Config{}))
			err := a.Emit(t.Context(), hb.ID(), "hello")
			if searches != min(breaks, most) {
				t.Errorf("%+v, %d dead connections: %d searches more", of, breaks, searches)
			}
			if breaks > most {
				if !errors.Is(err, ErrNotConnected) {
					t.Errorf("%+v, %d dead connections: %v", of, breaks, err)
				}
				continue
			}
			if err != nil {
				t.Errorf("%+v, %d dead connections: %v", of, breaks, err)
			}
			want(t, got, "hello")
		}
	}
}

// The search gets the context of the Emit, and Emit returns the error of that context.
func TestEndedContextEndsTheSearch(t *testing.T) {
	ha, hb := newHost(t, tcp), newHost(t, tcp)
	searching := make(chan struct{})
	a := newDirect(t, ha, Config{Locate: func(ctx context.Context, _ peer.ID) error {
		close(searching)
		<-ctx.Done()
		return fmt.Errorf("looking for it: %w", ctx.Err())
	}})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-searching; cancel() }()
	if err := a.Emit(ctx, hb.ID(), "hello"); !errors.Is(err, context.Canceled) {
		t.Errorf("Emit returned %v, want %v", err, context.Canceled)
	}
}
