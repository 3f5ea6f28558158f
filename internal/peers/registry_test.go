package peers

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	mocknet "github.com/libp2p/go-libp2p/p2p/net/mock"

	"github.com/go-smokesignal/smokesignal/internal/bubble"
	"github.com/go-smokesignal/smokesignal/internal/logging"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

// newRegistry returns a registry on a host that is connected to nobody.
func newRegistry(t *testing.T) *Registry {
	t.Helper()
	h, err := mocknet.New().GenPeer()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	r := New(Config{Host: h, Min: 1, Max: 2, Log: logging.Package("host", nil)})
	t.Cleanup(r.Close)
	return r
}

// Each follower gets each change, in the same order, and the list of neighbors changes
// after direct events and before the watchdog. Changes from before Follow are not lost.
func TestFollowersFollowInOrder(t *testing.T) {
	r := newRegistry(t)
	var got []string
	follower := func(name string) func(*Transition) {
		return func(c *Transition) {
			listed := ""
			if r.Has(c.Peer) {
				listed = " listed"
			}
			got = append(got, name+" "+string(c.Peer)+" "+c.Is.Link.String()+listed)
		}
	}
	want := func(lines ...string) {
		t.Helper()
		if !slices.Equal(got, lines) {
			t.Fatalf("followed\n%q, want\n%q", got, lines)
		}
		got = nil
	}
	r.Pending("a")
	err := r.Follow(Followers{
		Callbacks: follower("callbacks"), Watchdog: follower("watchdog"), Direct: follower("direct"),
		Broadcast: follower("broadcast"), Overlay: follower("overlay"), Gate: follower("gate"),
	})
	if err != nil {
		t.Fatal(err)
	}
	want("gate a pending", "overlay a pending", "broadcast a pending", "direct a pending",
		"watchdog a pending", "callbacks a pending")
	r.Linked("a", nil)
	want("gate a linked", "overlay a linked", "broadcast a linked", "direct a linked",
		"watchdog a linked listed", "callbacks a linked listed")
	r.Unlinked("a", errReason, Broken)
	want("gate a none listed", "overlay a none listed", "broadcast a none listed", "direct a none listed",
		"watchdog a none", "callbacks a none")
}

// The list has the neighbors in the order in which they were added, and knows the limits.
func TestListOfNeighbors(t *testing.T) {
	r := newRegistry(t)
	if err := r.Follow(Followers{}); err != nil {
		t.Fatal(err)
	}
	if r.Full() || r.Sufficient() {
		t.Error("an empty list is full or sufficient")
	}
	for _, p := range []peer.ID{"b", "a"} {
		r.Pending(p)
		r.Linked(p, nil)
	}
	if !r.Full() || !r.Sufficient() || !r.Has("a") || r.Len() != 2 || !slices.Equal(r.Neighbors(), []peer.ID{"b", "a"}) {
		t.Errorf("neighbors %q, full %v, sufficient %v", r.Neighbors(), r.Full(), r.Sufficient())
	}
	r.Unlinked("b", errReason, Broken)
	if r.Full() || !r.Sufficient() || r.Has("b") || r.Standing("b") != (Standing{}) {
		t.Errorf("neighbors %q, full %v, sufficient %v", r.Neighbors(), r.Full(), r.Sufficient())
	}
}

// Admit waits until the callbacks of the adding have run, until the handshake fails, or
// until its context ends.
func TestAdmitWaits(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var added Transition
		r := newRegistry(t)
		if err := r.Follow(Followers{Callbacks: func(c *Transition) {
			if c.Added() {
				added = *c
			}
		}}); err != nil {
			t.Fatal(err)
		}
		admitted := func(want bool) {
			t.Helper()
			ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, errReason)
			defer cancel()
			if err := r.Admit(ctx, "a"); (err == nil) != want || err != nil && !errors.Is(err, errReason) {
				t.Fatalf("admitted: %v, want %v", err, want)
			}
		}
		admitted(true)
		r.Pending("a")
		admitted(false)
		r.Linked("a", nil)
		admitted(false)
		time.AfterFunc(time.Millisecond, func() { r.Release(&added) })
		admitted(true)
		r.Unlinked("a", errReason, Broken)
		r.Pending("a")
		r.Release(&added) // of the link before
		admitted(false)
		time.AfterFunc(time.Millisecond, func() { r.Unlinked("a", errReason, Broken) })
		admitted(true)
		r.Pending("a")
		time.AfterFunc(time.Millisecond, r.Close)
		admitted(true)
	})
}

// A link drains by the clock.
func TestRegistryDrains(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r := newRegistry(t)
		gone := make(chan struct{})
		if err := r.Follow(Followers{Gate: func(c *Transition) {
			if c.Was.Link == Draining {
				close(gone)
			}
		}}); err != nil {
			t.Fatal(err)
		}
		r.Pending("a")
		r.Linked("a", nil)
		start := time.Now()
		r.Unlinked("a", errReason, OnPurpose)
		<-gone
		if took := time.Since(start); took != drainTime {
			t.Errorf("it drained for %v", took)
		}
	})
}

// The registry learns from the host what peers speak, also those that were connected
// before, and when they are gone.
func TestRegistryLearnsFromTheHost(t *testing.T) {
	net, err := mocknet.FullMeshLinked(3)
	if err != nil {
		t.Fatal(err)
	}
	defer net.Close()
	hosts := net.Hosts()
	before, after := hosts[1], hosts[2]
	before.SetStreamHandler(protocol.Overlay, nil)
	after.SetStreamHandler(protocol.Repair, nil)
	if _, err := net.ConnectPeers(hosts[0].ID(), before.ID()); err != nil {
		t.Fatal(err)
	}
	r := New(Config{Host: hosts[0], Log: logging.Package("host", nil)})
	defer r.Close()
	changes := make(chan Transition, 100)
	identified := make(chan peer.ID, 100)
	err = r.Follow(Followers{
		Callbacks:  func(c *Transition) { changes <- *c },
		Identified: func(p peer.ID, is Standing) { identified <- p },
	})
	if err != nil {
		t.Fatal(err)
	}
	want := func(p peer.ID, role Role) {
		t.Helper()
		for {
			select {
			case c := <-changes:
				if c.Peer == p && c.Is.Role == role {
					return
				}
			case <-time.After(20 * time.Second):
				t.Fatalf("%v is not %v", p, role)
			}
		}
	}
	want(before.ID(), Node)
	if _, err := net.ConnectPeers(hosts[0].ID(), after.ID()); err != nil {
		t.Fatal(err)
	}
	want(after.ID(), Leaf)
	for p := range identified {
		if p == after.ID() {
			break
		}
	}
	if nodes := r.Nodes(); !slices.Equal(nodes, []peer.ID{before.ID()}) {
		t.Errorf("the nodes are %v", nodes)
	}
	if err := net.DisconnectPeers(hosts[0].ID(), before.ID()); err != nil {
		t.Fatal(err)
	}
	want(before.ID(), Unknown)
}
