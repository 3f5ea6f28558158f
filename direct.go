package smokesignal

import (
	"context"

	"github.com/go-smokesignal/smokesignal/internal/direct"
)

// A Direct receives the events and calls that peers send to this node alone. Node.Direct
// returns it. To send a direct event, or to receive the events of one peer only, use a
// Peer. All methods may be called from several goroutines, and from handlers.
type Direct struct {
	channel *direct.Direct
}

// Direct returns the receiver of the events and calls that peers send to this node alone.
// To send them, use Peer.
func (n *Node) Direct() *Direct { return &n.channels.direct }

// On calls f for the direct events of that name from any peer, or for every direct event
// if the name is "*". off removes f: no call begins after off has returned; a call that
// runs is not waited for.
//
// The events of one peer are handled one after the other, in order, also across names; f
// may run for several peers at once. While f runs, the next events of the same peer wait,
// and in the end that peer's Emit blocks; other peers are not affected. The ctx of f ends
// when the node closes. A panic of f is caught, counted and logged.
func (d *Direct) On(name string, f func(context.Context, *Event)) (off func()) {
	return d.channel.On(name, handler(f))
}

// Handle registers f to answer the calls of that name from any peer; with the name "*", f
// answers the calls that no other handler answers. The results of f are the arguments of
// the answer, and its error goes to the caller as text. off removes f. Call.Handle is the
// same with types.
//
// If several handlers have the same name, the one registered last answers; a handler for
// one peer (Peer.Handle) takes precedence. As with handlers of events, the caller's next
// events and calls wait until f returns. If f panics, the caller gets ErrRemoteHandler.
func (d *Direct) Handle(name string, f func(context.Context, *Event) (results []any, err error)) (off func()) {
	return d.channel.Handle(name, callHandler(f))
}

// The methods below exist for Name, whose events are typed: with them it makes one allocation
// less per event.

func (d *Direct) onBorrowed(name string, f func(context.Context, *Event)) (off func()) {
	return d.channel.OnBorrowed("", name, handler(f))
}

func (d *Direct) closing() <-chan struct{} { return d.channel.Done() }
