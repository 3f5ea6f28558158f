package integration_test

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-smokesignal/smokesignal"
)

// TestVirtualFlushGoesOn: Flush waits for the broadcasts too when direct events turned
// out to be lost, and its error counts both.
func TestVirtualFlushGoesOn(t *testing.T) {
	for name, heals := range map[string]bool{"the broadcast arrives": true, "it does not": false} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, v *virtual) {
				v.gather(3, []int{0})
				a, near, far := v.nodes[0], v.nodes[1], v.nodes[2]
				var heard atomic.Int64
				for _, m := range v.nodes[1:] {
					m.Broadcast().On("x", func(context.Context, *smokesignal.Event) { heard.Add(1) })
				}
				v.sides(func(ip netip.Addr) int {
					if ip == a.IP {
						return 1
					}
					return 0
				})
				if err := a.Broadcast().Emit(t.Context(), "x", 1); err != nil {
					t.Fatal(err)
				}
				for range 2 { // more than QUIC sends before it is answered
					if err := a.Peer(near.ID()).Emit(t.Context(), "x", make([]byte, 400_000)); err != nil {
						t.Fatal(err)
					}
				}
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				flushed := make(chan error, 1)
				go func() { flushed <- a.Flush(ctx) }()
				synctest.Wait()
				if err := a.Peer(near.ID()).Disconnect(); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				select {
				case err := <-flushed:
					t.Fatalf("Flush did not wait for the broadcast: %v", err)
				default:
				}
				if heals {
					v.heal()
				}
				err := <-flushed
				lost, ok := errors.AsType[*smokesignal.UnconfirmedError](err)
				switch {
				case err == nil || !strings.Contains(err.Error(), "3"):
					t.Errorf("Flush counts %v, want 2 direct events", err)
				case heals && (ok || heard.Load() == 0):
					t.Errorf("Flush returned %v when the broadcast was handled %d times", err, heard.Load())
				case !heals && (!ok || len(lost.Peers) != 1 || lost.Peers[0] != far.ID()):
					t.Errorf("Flush counts %v, want the broadcast that %v has not", err, far.ID())
				}
			})
		})
	}
}

// TestVirtualCloseDelivers: the emitted events arrive though the node is closed at once,
// also what QUIC has yet to send.
func TestVirtualCloseDelivers(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, v *virtual) {
		v.gather(2, []int{0})
		a, b := v.nodes[0], v.nodes[1]
		var arrived atomic.Int64
		b.Direct().On("x", func(context.Context, *smokesignal.Event) { arrived.Add(1) })
		const total = 500
		for range total {
			if err := a.Peer(b.ID()).Emit(t.Context(), "x", make([]byte, 1000)); err != nil {
				t.Fatal(err)
			}
		}
		if err := v.close(a.Node); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if n := arrived.Load(); n != total {
			t.Errorf("%d of %d events arrived", n, total)
		}
	})
}
