package smokesignal

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/event"

	"github.com/go-smokesignal/smokesignal/internal/peers"
)

// An orderStep is one input and the callbacks that it causes, in order. Each callback is
// written with the number of peers that the peer list has while it runs.
type orderStep struct {
	input string // see orderSubject.input
	want  string // callbacks and events of the event bus, separated by "; "
	state string // of the peer afterwards; empty: not looked at
}

// orderTable is the order of callbacks, as the package documentation promises it.
var orderTable = map[string][]orderStep{
	"the first peer, a second, the last": {
		{"pending a", "", "held"},
		{"linked a", "connect 1; added a 1; peers add a 1 held; bus connected; bus added a", "listed"},
		{"pending b", "", "held"},
		{"linked b", "added b 2; peers add b 2 held; bus added b", "listed"},
		{"unlinked b dead", "removed b 1; peers remove b 1; close b 1: dead; bus removed b", ""},
		{"unlinked a dead", "disconnect 0; removed a 0; peers remove a 0; close a 0: dead; bus disconnected; bus removed a", ""},
		{"pending a", "", "held"},
		{"linked a", "connect 1; added a 1; peers add a 1 held; bus connected; bus added a", "listed"},
	},
	"the peer that came first goes first": {
		{"pending a", "", "held"},
		{"pending b", "", "held"},
		{"linked a", "connect 1; added a 1; peers add a 1 held; bus connected; bus added a", "listed"},
		{"linked b", "added b 2; peers add b 2 held; bus added b", "listed"},
		{"unlinked a dead", "removed a 1; peers remove a 1; close a 1: dead; bus removed a", ""},
		{"unlinked b dead", "disconnect 0; removed b 0; peers remove b 0; close b 0: dead; bus disconnected; bus removed b", ""},
	},
	"a half link causes nothing": {
		{"pending a", "", "held"},
		{"unlinked a dead", "", ""},
		{"pending a", "", "held"},
		{"unlinked a purpose", "", ""},
	},
	"news that repeats": {
		{"pending a", "", "held"},
		{"pending a", "", "held"},
		{"linked a", "connect 1; added a 1; peers add a 1 held; bus connected; bus added a", "listed"},
		{"linked a", "", "listed"},
		{"unlinked a dead", "disconnect 0; removed a 0; peers remove a 0; close a 0: dead; bus disconnected; bus removed a", ""},
		{"unlinked a dead", "", ""},
	},
	"a link that ends on purpose drains, and does not while it is made anew": {
		{"pending a", "", "held"},
		{"linked a", "connect 1; added a 1; peers add a 1 held; bus connected; bus added a", "listed"},
		{"unlinked a purpose", "disconnect 0; removed a 0; peers remove a 0; close a 0: purpose; bus disconnected; bus removed a", "draining"},
		{"pending a", "", "held"},
		{"linked a", "connect 1; added a 1; peers add a 1 held; bus connected; bus added a", "listed"},
	},
	"a leaf is on no list": {
		{"leaf c", "", ""},
		{"topic c", "", "leaf"},
		{"pending a", "", "held"},
		{"linked a", "connect 1; added a 1; peers add a 1 held; bus connected; bus added a", "listed"},
		{"away c", "", ""},
		{"topic c", "", "leaf"},
		{"node c", "", ""},
		{"pending c", "", "held"},
		{"linked c", "added c 2; peers add c 2 held; bus added c", "listed"},
	},
	"a leaf says late what it speaks": {
		{"topic c", "", ""},
		{"leaf c", "", "leaf"},
		{"node c", "", ""},
	},
	"the node closes": {
		{"pending a", "", "held"},
		{"linked a", "connect 1; added a 1; peers add a 1 held; bus connected; bus added a", "listed"},
		{"pending b", "", "held"},
		{"linked b", "added b 2; peers add b 2 held; bus added b", "listed"},
		{"pending d", "", "held"},
		{"unlinked a closed", "removed a 1; peers remove a 1; close a 1: closed; bus removed a", ""},
		{"unlinked b closed", "disconnect 0; removed b 0; peers remove b 0; close b 0: closed; bus disconnected; bus removed b", ""},
		{"unlinked d closed", "", ""},
	},
}

// orderEnds are the ends of links that the table names.
var orderEnds = map[string]peers.Ending{"dead": peers.Broken, "purpose": peers.OnPurpose, "closed": peers.Broken}

// TestOrderOfCallbacks: connect, peer added, peers add; disconnect, peer removed, peers
// remove, peer close. The direct events of a peer are held until the callbacks of its
// adding have run.
func TestOrderOfCallbacks(t *testing.T) {
	for name, steps := range orderTable {
		t.Run(name, func(t *testing.T) {
			s := newOrderSubject(t)
			for i, step := range steps {
				if got := s.run(step.input); got != step.want {
					t.Fatalf("step %d, %s: called\n%s, want\n%s", i, step.input, got, step.want)
				}
				p := ID(strings.Fields(step.input)[1])
				if got := s.state(p); step.state != got {
					t.Fatalf("step %d, %s: the peer is %q, want %q", i, step.input, got, step.state)
				}
			}
		})
	}
}

// An orderSubject is a node that is not on a network. It learns of links and peers as
// from its own components.
type orderSubject struct {
	t    *testing.T
	node *Node
	sub  event.Subscription

	mu  sync.Mutex
	log []string
}

func newOrderSubject(t *testing.T) *orderSubject {
	n, err := New(Listen("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	s := &orderSubject{t: t, node: n}
	s.sub, err = n.Host().EventBus().Subscribe([]any{
		new(EvtConnected), new(EvtDisconnected), new(EvtPeerAdded), new(EvtPeerRemoved),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.sub.Close() })
	n.OnConnect(func(context.Context) { s.note("connect %d", n.Peers().Len()) })
	n.OnDisconnect(func(context.Context) { s.note("disconnect %d", n.Peers().Len()) })
	n.OnPeerAdded(func(_ context.Context, p *Peer) { s.note("added %s %d", string(p.ID()), n.Peers().Len()) })
	n.OnPeerRemoved(func(_ context.Context, p *Peer) { s.note("removed %s %d", string(p.ID()), n.Peers().Len()) })
	n.Peers().OnRemove(func(_ context.Context, p *Peer) { s.note("peers remove %s %d", string(p.ID()), n.Peers().Len()) })
	n.Peers().OnAdd(func(_ context.Context, p *Peer) {
		held := ""
		if s.held(p.ID()) {
			held = " held"
		}
		s.note("peers add %s %d%s", string(p.ID()), n.Peers().Len(), held)
	})
	for _, id := range []ID{"a", "b", "c", "d"} {
		n.Peer(id).OnClose(func(_ context.Context, reason error) {
			s.note("close %s %d: %s", string(id), n.Peers().Len(), s.reason(reason))
		})
	}
	return s
}

func (s *orderSubject) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = append(s.log, fmt.Sprintf(format, args...))
}

// reason returns the word of the table for the reason of a CloseError.
func (s *orderSubject) reason(err error) string {
	for word := range orderEnds {
		if strings.HasSuffix(err.Error(), word) {
			return word
		}
	}
	return err.Error()
}

// run gives one input and returns the callbacks that ran, then the events on the bus.
func (s *orderSubject) run(input string) string {
	s.t.Helper()
	words := strings.Fields(input)
	s.input(words[0], ID(words[1]), words[2:])
	if err := s.node.callbacks.wait(s.t.Context(), s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	if err := s.node.bus.queue.wait(s.t.Context(), s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	called := slices.Clone(s.log)
	s.log = nil
	s.mu.Unlock()
	for len(s.sub.Out()) > 0 {
		switch ev := (<-s.sub.Out()).(type) {
		case EvtConnected:
			called = append(called, "bus connected")
		case EvtDisconnected:
			called = append(called, "bus disconnected")
		case EvtPeerAdded:
			called = append(called, "bus added "+string(ev.Peer))
		case EvtPeerRemoved:
			called = append(called, "bus removed "+string(ev.Peer))
		}
	}
	return strings.Join(called, "; ")
}

func (s *orderSubject) input(verb string, p ID, args []string) {
	n := s.node
	switch verb {
	case "pending":
		n.records.Pending(p)
	case "linked":
		n.records.Linked(p, nil)
	case "unlinked":
		n.overlay.Unlinked(p, errors.New(args[0]), orderEnds[args[0]])
	case "topic":
		n.records.TopicChanged(p, true)
	case "away":
		n.records.TopicChanged(p, false)
	case "leaf":
		n.records.Spoke(p, peers.Abilities{Repair: true})
	case "node":
		n.records.Spoke(p, peers.Abilities{Overlay: true, Repair: true})
	default:
		s.t.Fatalf("no input %q", verb)
	}
}

// held reports whether the direct events of p have to wait.
func (s *orderSubject) held(p ID) bool {
	ctx, cancel := context.WithDeadline(context.Background(), time.Now().Add(-time.Second))
	defer cancel()
	return s.node.records.Admit(ctx, p) != nil
}

// state returns the roles that the node gives p.
func (s *orderSubject) state(p ID) string {
	n := s.node
	var words []string
	for _, is := range []struct {
		word string
		true bool
	}{
		{"listed", n.records.Has(p)},
		{"held", s.held(p)},
		{"draining", n.records.Standing(p).Link == peers.Draining},
		{"leaf", n.host.ConnManager().IsProtected(p, leafTag)},
	} {
		if is.true {
			words = append(words, is.word)
		}
	}
	return strings.Join(words, " ")
}

// A callback that panics, or ends its goroutine, keeps no later callback from running.
func TestPanickingCallbackKeepsNoneFromRunning(t *testing.T) {
	s := newOrderSubject(t)
	s.node.OnPeerAdded(func(context.Context, *Peer) { panic("the user's") })
	s.node.OnPeerRemoved(func(context.Context, *Peer) { runtime.Goexit() })
	for _, step := range orderTable["the first peer, a second, the last"] {
		if got := s.run(step.input); got != step.want {
			t.Fatalf("%s: called\n%s, want\n%s", step.input, got, step.want)
		}
	}
	if n := s.node.Stats().Panics; n != 5 {
		t.Errorf("%d panics are counted, want 5", n)
	}
}
