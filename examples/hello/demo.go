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

// demo starts five nodes that find each other through one of them, kills this one, and
// starts it again. It prints a line as soon as the event in the line has happened, with the
// time since the demo began. There are no fixed delays. demo fails if ctx ends before the
// last line.
func demo(ctx context.Context, out io.Writer) error {
	d := &story{ctx: ctx, out: out, began: time.Now(), nodes: map[string]*smokesignal.Node{}, changed: make(chan struct{}, 1)}
	defer d.closeAll()

	d.start("alice", smokesignal.Listen("127.0.0.1:0"))
	at := d.address("alice")
	d.printLine("alice listens at %s", at)
	for _, name := range []string{"bob", "carol", "dave", "erin"} {
		d.start(name, smokesignal.Listen("127.0.0.1:0"), smokesignal.Seeds(at))
	}
	d.printLine("bob, carol, dave and erin start; they know only this address, their seed")
	d.waitAndPrint("everybody is connected", func() bool { return d.each((*smokesignal.Node).Connected) })
	d.waitAndPrint("the network is whole", d.isWhole)
	d.broadcast("bob", "HEYO! I'm here")

	d.kill("alice")
	d.waitAndPrint("the network is whole without its seed", d.isWhole)
	d.broadcast("carol", "Still there?")

	ticket := d.ticket("dave")
	d.start("alice", smokesignal.Listen(at), smokesignal.Seeds(ticket))
	d.printLine("alice starts again, with a new id; she knows only a ticket of dave")
	d.waitAndPrint("the network is whole again", d.isWhole)
	d.broadcast("alice", "I'm back!")
	return d.err
}

// story holds the nodes of the demo and the events they received. After an error its methods
// do nothing.
type story struct {
	ctx   context.Context
	out   io.Writer
	began time.Time
	err   error // the first error

	living []string                     // the names of the running nodes, sorted
	nodes  map[string]*smokesignal.Node // the running nodes, by name
	dead   []*smokesignal.Node          // the killed nodes

	changed  chan struct{} // has an element after the links or the received events have changed
	mu       sync.Mutex
	received []string // an entry "NAME TEXT" for each text that a node received
}

// The least and the largest number of links per node. With the defaults, 3 and 5, each of the
// five nodes could be linked to all the others, and a lost node would leave no hole to mend.
const minLinks, maxLinks = 2, 3

var announced = smokesignal.Name[string]("said")

// printLine prints a line that begins with the time since the demo began.
func (d *story) printLine(format string, args ...any) {
	if d.err == nil {
		_, d.err = fmt.Fprintf(d.out, "%6d ms  %s\n", time.Since(d.began).Milliseconds(), fmt.Sprintf(format, args...))
	}
}

// start starts a node with the options opts, and calls it name.
func (d *story) start(name string, opts ...smokesignal.Option) {
	if d.err != nil {
		return
	}
	opts = append(opts, smokesignal.PeerLimits(minLinks, maxLinks))
	var node *smokesignal.Node
	if node, d.err = smokesignal.New(opts...); d.err != nil {
		return
	}
	d.nodes[name] = node
	d.living = append(d.living, name)
	slices.Sort(d.living)
	announced.On(node.Broadcast(), func(_ context.Context, _ smokesignal.ID, text string) {
		d.mu.Lock()
		d.received = append(d.received, name+" "+text)
		d.mu.Unlock()
		d.signalChange()
	})
	node.OnPeerAdded(func(context.Context, *smokesignal.Peer) { d.signalChange() })
	node.OnPeerRemoved(func(context.Context, *smokesignal.Peer) { d.signalChange() })
	d.err = node.Start(d.ctx)
}

// signalChange makes waitUntil check its condition again.
func (d *story) signalChange() {
	select {
	case d.changed <- struct{}{}:
	default: // waitUntil has not taken the last signal yet, and one is enough
	}
}

// waitUntil waits until done returns true. what describes the state in which it does, for the
// error message.
func (d *story) waitUntil(what string, done func() bool) {
	for d.err == nil && !done() {
		select {
		case <-d.changed:
		case <-d.ctx.Done():
			d.err = fmt.Errorf("%w after %v, before this was true: %s; links: %s",
				context.Cause(d.ctx), time.Since(d.began).Round(time.Millisecond), what, d.links())
		}
	}
}

// waitAndPrint waits until done returns true. Then it prints what, which describes that state,
// and the number of each node's links.
func (d *story) waitAndPrint(what string, done func() bool) {
	d.waitUntil(what, done)
	d.printLine("%s; links: %s", what, d.links())
}

// broadcast sends a text from the node with the name from to all nodes, and waits until all
// others have received it.
func (d *story) broadcast(from, text string) {
	if d.err != nil {
		return
	}
	var others []string
	for _, name := range d.living {
		if name != from {
			others = append(others, name)
		}
	}
	sent := time.Now()
	d.err = announced.Emit(d.ctx, d.nodes[from].Broadcast(), text)
	d.waitUntil(fmt.Sprintf("the broadcast %q of %s has arrived at %s", text, from, list(others)), func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		for _, name := range others {
			if !slices.Contains(d.received, name+" "+text) {
				return false
			}
		}
		return true
	})
	d.printLine("%s broadcasts %q; %s have received it %s later", from, text, list(others), since(sent))
}

// kill breaks all connections of a node at once, without the goodbye that Close sends, as if
// its process had been killed.
func (d *story) kill(name string) {
	if d.err != nil {
		return
	}
	node := d.nodes[name]
	delete(d.nodes, name)
	d.living = slices.DeleteFunc(d.living, func(n string) bool { return n == name })
	d.dead = append(d.dead, node)
	d.printLine("%s is killed: her connections break without a goodbye", name)
	closed := make(chan error, 1)
	go func() { closed <- node.Host().Close() }()
	d.waitAndPrint("everybody has noticed", func() bool {
		return d.each(func(other *smokesignal.Node) bool { return !other.Peer(node.ID()).Linked() })
	})
	if d.err == nil {
		d.err = <-closed
	}
}

// each reports whether the function is returns true for every running node.
func (d *story) each(is func(*smokesignal.Node) bool) bool {
	for _, node := range d.nodes {
		if !is(node) {
			return false
		}
	}
	return true
}

// isWhole reports whether the running nodes form one network: every node has enough links,
// both ends of each link are running and know the link, and a path of links leads from every
// node to every other.
func (d *story) isWhole() bool {
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
	return visit(d.nodes[d.living[0]]) && len(reached) == len(d.nodes)
}

// links returns each node's name and number of links.
func (d *story) links() string {
	var parts []string
	for _, name := range d.living {
		parts = append(parts, fmt.Sprintf("%s %d", name, d.nodes[name].Peers().Len()))
	}
	return strings.Join(parts, ", ")
}

// address returns the host:port at which a node listens.
func (d *story) address(name string) (at string) {
	if d.err == nil {
		at, d.err = d.nodes[name].Addrs()[0].ValueForProtocol(multiaddr.P_TCP)
	}
	return "127.0.0.1:" + at
}

func (d *story) ticket(name string) (text string) {
	if d.err == nil {
		text, d.err = d.nodes[name].Ticket()
	}
	return text
}

// closeAll closes all nodes, the killed ones too, at the same time.
func (d *story) closeAll() {
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
