package smokesignal

import (
	"errors"
	"fmt"
	"time"

	"github.com/go-smokesignal/smokesignal/discovery"
	"github.com/go-smokesignal/smokesignal/events"
	"github.com/go-smokesignal/smokesignal/host"
	"github.com/go-smokesignal/smokesignal/internal/direct"
	"github.com/go-smokesignal/smokesignal/internal/errs"
	"github.com/go-smokesignal/smokesignal/internal/event"
)

// Errors of sending. Test for them with errors.Is. After any of them nothing was sent.
var (
	// ErrNotStarted is returned by methods that need a started node, before Start.
	ErrNotStarted = errs.ErrNotStarted
	// ErrClosed is returned once Close has begun, also by a call that was waiting at that
	// moment.
	ErrClosed = errs.ErrClosed
	// ErrNoPeers is returned by a broadcast before the first peer was added, and by
	// Topic.Publish when nobody is on the topic.
	ErrNoPeers = events.ErrNoPeers
	// ErrNotConnected is returned by Ready when the node has no peer, with the reasons, and
	// by Emit and Call of a Peer that cannot be reached, with the cause.
	ErrNotConnected = errs.ErrNotConnected
	// ErrUnknownPeer is returned when no node that could be asked knows where the peer is.
	// errors.Is also finds routing.ErrNotFound of libp2p in it.
	ErrUnknownPeer = discovery.ErrUnknownPeer
	// ErrRefused is returned by Emit and Call when the peer does not accept events from
	// this node now. errors.Is also finds ErrNotConnected in it.
	ErrRefused = direct.ErrRefused
	// ErrStalled is returned by the Emit of a Peer when nothing could be written to the peer
	// for ten seconds.
	ErrStalled = direct.ErrStalled
	// ErrQueueFull is returned by a TryEmit that would have to wait.
	ErrQueueFull = events.ErrQueueFull
	// ErrTooLarge is returned for an event larger than MaxEventSize or with more than 64
	// arguments, and by Topic.Publish for a message larger than Topic.MaxSize.
	ErrTooLarge = event.ErrTooLarge
	// ErrBadName is returned for the name of an event that is not 1 to 128 bytes of UTF-8,
	// or is "*".
	ErrBadName = event.ErrBadName
	// ErrBadArgument is returned for an argument that cannot be encoded, and by a Call
	// whose handler cannot decode its argument. The text says which one, and why.
	ErrBadArgument = event.ErrBadArgument
	// ErrPubSubEnded is returned by a broadcast when the application has ended the pubsub
	// or closed the topic that it lent to the node.
	ErrPubSubEnded = events.ErrPubSubEnded
)

// Errors of receiving and of calls.
var (
	// ErrUndecodable is returned by Event.Decode, and in the loop of Name.All, when an
	// argument is missing or does not fit the type of the variable. It is returned by
	// Call.Do when the answer does not fit; the handler has finished then.
	ErrUndecodable = event.ErrUndecodable
	// ErrNoHandler is returned by a call when the other node has no handler of that name.
	ErrNoHandler = direct.ErrNoHandler
	// ErrRemoteHandler is returned by a call whose handler ran and failed. The error is a
	// *RemoteError, which has its text.
	ErrRemoteHandler = direct.ErrRemoteHandler
	// ErrUnknownOutcome is returned by a call that was sent and got no answer: its handler
	// may have run, may be running, or may never run. The cause is wrapped beside it, such
	// as context.DeadlineExceeded, ErrNotConnected or ErrClosed.
	ErrUnknownOutcome = direct.ErrUnknownOutcome
)

// Errors of starting and joining.
var (
	// ErrStarted is returned by a second Start.
	ErrStarted = errors.New("smokesignal: already started")
	// ErrIdentityInUse is returned by New when another node on this machine uses the
	// IdentityFile.
	ErrIdentityInUse = host.ErrIdentityInUse
	// ErrFull is returned by Connect when this peer list, or that of the other node, is
	// full.
	ErrFull = discovery.ErrFull
	// ErrSelf is returned when the given address, or the given id, is that of this node.
	ErrSelf = errs.ErrSelf
	// ErrOtherNetwork is returned when the other node belongs to a network of another name.
	ErrOtherNetwork = errs.ErrOtherNetwork
	// ErrUnreachable is returned when nobody answers at the address that is dialed.
	ErrUnreachable = discovery.ErrUnreachable
	// ErrRelayed is returned when the other node was reached through a relay, and no direct
	// connection to it came about.
	ErrRelayed = errs.ErrRelayed
	// ErrUnresolvable is returned when DNS has no address for the name in a seed or an address.
	ErrUnresolvable = discovery.ErrUnresolvable
	// ErrNotSmokesignal is returned when the program that answers at an address is not a
	// node. Dial accepts any libp2p program, so it returns this error only for a program
	// that does not speak libp2p.
	ErrNotSmokesignal = discovery.ErrNotSmokesignal
)

// A RemoteError is returned by a call whose handler at the other node failed. errors.Is
// finds ErrRemoteHandler in it.
//
//	type RemoteError struct {
//		// Text is the text of the handler's error, at most 1 KiB of UTF-8. A stranger
//		// wrote it: it may contain line breaks and escape sequences.
//		Text string
//	}
type RemoteError = direct.RemoteError

// An UnconfirmedError is returned by EmitConfirmed and Flush when neighbors have not confirmed
// in time that they have received the broadcasts of this node.
//
//	type UnconfirmedError struct {
//		Peers []ID     // the neighbors that have not confirmed
//		Has   []uint64 // for each of Peers: how many broadcasts of this node it has confirmed
//		Sent  uint64   // how many broadcasts this node has sent
//		Err   error    // why the waiting ended; Unwrap returns it
//	}
type UnconfirmedError = events.UnconfirmedError

// A WrongIDError is returned when the node at an address is not the one that the seed or
// ticket names.
//
//	type WrongIDError struct {
//		Expected ID // as the seed or ticket says
//		Actual   ID // as the node that answered has proven
//	}
type WrongIDError = discovery.WrongIDError

// A ListenError is returned by Start when addresses cannot be listened on. errors.Is finds the
// causes, such as syscall.EADDRINUSE.
//
//	type ListenError struct {
//		Failed []BindError // one for each address that failed, with its Text, Addr and Err
//	}
type ListenError = host.ListenError

// A SeedError says why a seed cannot be used and when it is tried again.
type SeedError struct {
	Seed string    // as it was given to Seeds
	Err  error     // the cause, such as ErrUnreachable
	Next time.Time // when the seed is tried next; zero if no try is planned
}

func (e *SeedError) Error() string { return (*discovery.SeedError)(e).Error() }

// Unwrap returns the cause.
func (e *SeedError) Unwrap() error { return e.Err }

// A CloseError says why a link ended. It is the reason that handlers of Peer.OnClose get.
type CloseError struct {
	Peer ID
	// Unwritten is the number of direct events that Emit had accepted but that were not
	// sent to the peer before the link ended.
	Unwritten int
	// Err says why the link ended.
	Err error
}

func (e *CloseError) Error() string {
	text := "smokesignal: " + errs.Text(e.Err)
	switch e.Unwritten {
	case 0:
		return text
	case 1:
		return text + "; 1 event was not written"
	}
	return fmt.Sprintf("%s; %d events were not written", text, e.Unwritten)
}

// Unwrap returns why the link ended.
func (e *CloseError) Unwrap() error { return e.Err }
