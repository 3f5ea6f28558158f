package smokesignal

import (
	"context"

	"github.com/go-smokesignal/smokesignal/events"
	"github.com/go-smokesignal/smokesignal/internal/handling"
)

// A Direct is the channel on which events and calls arrive that any peer sends to this
// node alone. Node.Direct returns it. To send one use a Peer, and to hear one peer only,
// too. All methods may be called from several goroutines, and from handlers.
type Direct struct {
	channel *events.Direct
}

// Direct returns the channel on which events arrive that any peer sends to this node
// alone. To send one, see Peer.
func (n *Node) Direct() *Direct { return &n.channels.direct }

// On calls f for the direct events of that name from any peer, or for every direct event
// if the name is "*". off removes f: no call begins after off has returned; a call that
// runs is not waited for.
//
// The events of one peer are handled one after the other, in order, also across names; f
// may run for several peers at once. A slow f holds back the peer whose event it handles
// and no other peer. The ctx of f ends when the node closes. A panic of f is caught,
// counted and logged.
func (d *Direct) On(name string, f func(context.Context, *Event)) (off func()) {
	return d.channel.On(name, handler(f))
}

// Handle lets f answer the calls of that name from any peer, or with "*" those that no
// other handler answers. The results of f are the arguments of the answer, and its error
// goes to the caller as text. off removes f. Call.Handle is the same with types.
//
// Of several handlers for one name the last one answers, and a handler for one peer
// (Peer.Handle) goes first. f runs as a handler of events does; a panic is an error to the
// caller.
func (d *Direct) Handle(name string, f func(context.Context, *Event) (results []any, err error)) (off func()) {
	return d.channel.Handle(name, callHandler(f))
}

// The methods below are for typed events, see Name.

func (d *Direct) onBorrowed(name string, f func(context.Context, *Event)) (off func()) {
	return d.channel.OnBorrowed("", name, handling.Borrower[events.Event]{Handle: handler(f)})
}

func (d *Direct) closing() <-chan struct{} { return d.channel.Done() }
