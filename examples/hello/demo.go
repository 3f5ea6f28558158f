package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal"
)

// demo lets five nodes find each other through one of them, kills that one, and
// lets it come back. A line appears when what it says has happened, with the time
// since the beginning; nothing waits for anything else. The demo fails if ctx ends
// first.
func demo(ctx context.Context, out io.Writer) error {
	d := &drama{ctx: ctx, out: out, began: time.Now(), nodes: map[string]*smokesignal.Node{}, news: make(chan struct{}, 1)}
	defer d.end()

	d.enter("alice", smokesignal.Listen("127.0.0.1:0"))
	at := d.address("alice")
	d.line("alice listens at %s", at)
	for _, name := range []string{"bob", "carol", "dave", "erin"} {
		d.enter(name, smokesignal.Listen("127.0.0.1:0"), smokesignal.Seeds(at))
	}
	d.line("bob, carol, dave and erin start; all they know is this address, their seed")
	d.wait("everybody is connected", func() bool { return d.all((*smokesignal.Node).Connected) })
	d.wait("the network is whole", d.whole)
	d.broadcast("bob", "HEYO! I'm here")

	d.kill("alice")
	d.wait("the network is whole without its seed", d.whole)
	d.broadcast("carol", "Still there?")

	ticket := d.ticket("dave")
	d.enter("alice", smokesignal.Listen(at), smokesignal.Seeds(ticket))
	d.line("alice starts again, with a new id; all she knows is a ticket of dave")
	d.wait("the network is whole again", d.whole)
	d.broadcast("alice", "I'm back!")
	return d.err
}

// drama is who plays in the demo, and what happens to them. After an error its
// methods do nothing.
type drama struct {
	ctx   context.Context
	out   io.Writer
	began time.Time
	err   error // the first one

	names []string // of who is alive, in order
	nodes map[string]*smokesignal.Node
	dead  []*smokesignal.Node

	news  chan struct{} // a token when something has happened
	mu    sync.Mutex
	heard []string // by whom, each text once it has arrived
}

// Few links, so that it shows when one is missing: with the three to five of the
// default these five would all be linked to each other.
const minLinks, maxLinks = 2, 3

var said = smokesignal.Name[string]("said")

// line writes a line.
func (d *drama) line(format string, args ...any) {
	if d.err == nil {
		_, d.err = fmt.Fprintf(d.out, "%6d ms  %s\n", time.Since(d.began).Milliseconds(), fmt.Sprintf(format, args...))
	}
}

// enter starts a node.
func (d *drama) enter(name string, opts ...smokesignal.Option) {
	if d.err != nil {
		return
	}
	opts = append(opts, smokesignal.PeerLimits(minLinks, maxLinks))
	var node *smokesignal.Node
	if node, d.err = smokesignal.New(opts...); d.err != nil {
		return
	}
	d.nodes[name] = node
	d.names = append(d.names, name)
	slices.Sort(d.names)
	said.On(node.Broadcast(), func(_ context.Context, _ smokesignal.ID, text string) {
		d.mu.Lock()
		d.heard = append(d.heard, name+" "+text)
		d.mu.Unlock()
		d.tell()
	})
	node.OnPeerAdded(func(context.Context, *smokesignal.Peer) { d.tell() })
	node.OnPeerRemoved(func(context.Context, *smokesignal.Peer) { d.tell() })
	d.err = node.Start(d.ctx)
}

// tell wakes up until.
func (d *drama) tell() {
	select {
	case d.news <- struct{}{}:
	default: // there is a token already
	}
}

// until waits until done holds; what says that in words.
func (d *drama) until(what string, done func() bool) {
	for d.err == nil && !done() {
		select {
		case <-d.news:
		case <-d.ctx.Done():
			d.err = fmt.Errorf("%w after %v, before it came true that %s; links: %s",
				context.Cause(d.ctx), time.Since(d.began).Round(time.Millisecond), what, d.links())
		}
	}
}

// wait writes what has come true when it has, and who has how many links then.
func (d *drama) wait(what string, done func() bool) {
	d.until(what, done)
	d.line("%s; links: %s", what, d.links())
}

// broadcast lets a node speak to all, and waits until all the others have heard it.
func (d *drama) broadcast(from, text string) {
	if d.err != nil {
		return
	}
	var others []string
	for _, name := range d.names {
		if name != from {
			others = append(others, name)
		}
	}
	sent := time.Now()
	d.err = said.Emit(d.ctx, d.nodes[from].Broadcast(), text)
	d.until(fmt.Sprintf("%q of %s is heard by %s", text, from, list(others)), func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		for _, name := range others {
			if !slices.Contains(d.heard, name+" "+text) {
				return false
			}
		}
		return true
	})
	d.line("%s broadcasts %q; %s have it %s later", from, text, list(others), since(sent))
}

// kill ends all connections of a node at once, without the goodbye of Close, as when
// its process is killed.
func (d *drama) kill(name string) {
	if d.err != nil {
		return
	}
	node := d.nodes[name]
	delete(d.nodes, name)
	d.names = slices.DeleteFunc(d.names, func(n string) bool { return n == name })
	d.dead = append(d.dead, node)
	d.line("%s is killed: her connections break off without a goodbye", name)
	closed := make(chan error, 1)
	go func() { closed <- node.Host().Close() }()
	d.wait("everybody has noticed", func() bool {
		return d.all(func(other *smokesignal.Node) bool { return !other.Peer(node.ID()).Linked() })
	})
	if d.err == nil {
		d.err = <-closed
	}
}

// all tells whether something is true of all who are alive.
func (d *drama) all(is func(*smokesignal.Node) bool) bool {
	for _, node := range d.nodes {
		if !is(node) {
			return false
		}
	}
	return true
}

// whole tells whether everybody has enough links, all of them to others who are
// alive and have them too, and all are reached from each over links.
func (d *drama) whole() bool {
	byID := map[smokesignal.ID]*smokesignal.Node{}
	for _, node := range d.nodes {
		byID[node.ID()] = node
	}
	enough := min(minLinks, len(d.nodes)-1)
	reached := map[smokesignal.ID]bool{}
	var visit func(*smokesignal.Node) bool
	visit = func(node *smokesignal.Node) bool {
		reached[node.ID()] = true
		if node.Peers().Len() < enough {
			return false
		}
		for peer := range node.Peers().All() {
			other := byID[peer.ID()]
			if other == nil || !other.Peer(node.ID()).Linked() || !reached[other.ID()] && !visit(other) {
				return false
			}
		}
		return true
	}
	return visit(d.nodes[d.names[0]]) && len(reached) == len(d.nodes)
}

// links tells who has how many.
func (d *drama) links() string {
	var parts []string
	for _, name := range d.names {
		parts = append(parts, fmt.Sprintf("%s %d", name, d.nodes[name].Peers().Len()))
	}
	return strings.Join(parts, ", ")
}

// address is where a node listens.
func (d *drama) address(name string) (at string) {
	if d.err == nil {
		at, d.err = d.nodes[name].Addrs()[0].ValueForProtocol(multiaddr.P_TCP)
	}
	return "127.0.0.1:" + at
}

func (d *drama) ticket(name string) (text string) {
	if d.err == nil {
		text, d.err = d.nodes[name].Ticket()
	}
	return text
}

// end closes all nodes at once.
func (d *drama) end() {
	var closing sync.WaitGroup
	for _, node := range d.nodes {
		closing.Go(func() { node.Close() })
	}
	for _, node := range d.dead {
		closing.Go(func() { node.Close() })
	}
	closing.Wait()
}

func list(names []string) string {
	last := len(names) - 1
	return strings.Join(names[:last], ", ") + " and " + names[last]
}

func since(t time.Time) string { return fmt.Sprintf("%.1f ms", time.Since(t).Seconds()*1000) }
