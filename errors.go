package smokesignal

import (
	"errors"
	"fmt"

	"github.com/go-smokesignal/smokesignal/discovery"
	"github.com/go-smokesignal/smokesignal/events"
)

// Errors of sending; test for them with errors.Is.
var (
	// ErrNotStarted: the node has not been started.
	ErrNotStarted = events.ErrNotStarted
	// ErrNoPeers: a broadcast would reach nobody, since there never was a peer.
	ErrNoPeers = events.ErrNoPeers
	// ErrTooLarge: the event is larger than MaxEventSize, or has more than 64 arguments.
	// Nothing was sent.
	ErrTooLarge = events.ErrTooLarge
	// ErrStalled: nothing could be written to the peer for ten seconds.
	ErrStalled = events.ErrStalled
	// ErrQueueFull: a TryEmit found no room.
	ErrQueueFull = events.ErrQueueFull
	// ErrBadName: an event name must be 1 to 128 bytes of UTF-8, and not "*".
	ErrBadName = events.ErrBadName
	// ErrBadArgument: an argument cannot be encoded, or the other node of a call expects
	// another type.
	ErrBadArgument = events.ErrBadArgument
	// ErrUndecodable: an argument is missing or does not fit the variable.
	ErrUndecodable = events.ErrUndecodable
	// ErrPubSubEnded: the application has ended the pubsub that it lent, or closed a topic.
	ErrPubSubEnded = events.ErrPubSubEnded
	// ErrRefused: the peer does not take events from this node now.
	ErrRefused = events.ErrRefused
	// ErrClosed: the node is closed, or closing.
	ErrClosed = events.ErrClosed
)

// Errors of calls. With any other one the call has not run and will not; but
// ErrUndecodable of package events says that its answer was not what was expected.
var (
	// ErrNoHandler: the other node does not answer calls of that name.
	ErrNoHandler = events.ErrNoHandler
	// ErrRemoteHandler: the handler ran and failed; a *RemoteError has its text.
	ErrRemoteHandler = events.ErrRemoteHandler
	// ErrUnknownOutcome: no answer came, the handler may have run or not. The cause
	// is wrapped beside it.
	ErrUnknownOutcome = events.ErrUnknownOutcome
)

// Errors of starting and joining.
var (
	// ErrStarted: Start was called before.
	ErrStarted = errors.New("smokesignal: already started")
	// ErrNotConnected: the node has no peer (Ready says why), or the peer that a
	// direct event is for cannot be reached.
	ErrNotConnected = events.ErrNotConnected
	// ErrFull: the peer list, ours or theirs, has no room.
	ErrFull = discovery.ErrFull
	// ErrSelf: the address is that of this node.
	ErrSelf = discovery.ErrSelf
	// ErrOtherNetwork: the node there belongs to a network of another name.
	ErrOtherNetwork = discovery.ErrOtherNetwork
	// ErrUnreachable: nobody answers at the address.
	ErrUnreachable = discovery.ErrUnreachable
	// ErrRelayed: the node was reached through a relay, and no direct connection to
	// it came about.
	ErrRelayed = discovery.ErrRelayed
	// ErrUnresolvable: the name has no address.
	ErrUnresolvable = discovery.ErrUnresolvable
	// ErrUnknownPeer: nobody that could be asked knows where the peer is. It is
	// routing.ErrNotFound of libp2p, too.
	ErrUnknownPeer = discovery.ErrUnknownPeer
	// ErrNotSmokesignal: something answers there that is no smokesignal node: it speaks
	// another protocol altogether or, except for Connect, is a libp2p host without ours.
	ErrNotSmokesignal = discovery.ErrNotSmokesignal
)

type (
	// RemoteError is what the handler of a call at the other node returned.
	RemoteError = events.RemoteError
	// UnconfirmedError names neighbors.
	UnconfirmedError = events.UnconfirmedError
	// SeedError says why a seed cannot be used and when it is tried again.
	SeedError = discovery.SeedError
	// WrongIDError says that another node answered than the one asked for.
	WrongIDError = discovery.WrongIDError
)

// CloseError is the reason that OnClose gets.
type CloseError struct {
	Peer ID
	// Unwritten counts the direct events that Emit had accepted and that were not
	// written to the peer.
	Unwritten int
	// Err says why the link ended.
	Err error
}

func (e *CloseError) Error() string {
	text := fmt.Sprintf("smokesignal: %v", e.Err)
	switch e.Unwritten {
	case 0:
		return text
	case 1:
		return text + "; 1 event was not written"
	}
	return fmt.Sprintf("%s; %d events were not written", text, e.Unwritten)
}

func (e *CloseError) Unwrap() error { return e.Err }
