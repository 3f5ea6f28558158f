package events

import (
	"errors"
	"fmt"
	"strings"

	"github.com/libp2p/go-libp2p/core/peer"
)

var (
	// ErrClosed is returned once Close has begun, and by a call that was
	// waiting at that moment.
	ErrClosed = errors.New("events: closed")
	// ErrNotStarted is returned by an Emit before Start.
	ErrNotStarted = errors.New("events: not started")
	// ErrNoPeers is returned by a broadcast before the first peer came.
	ErrNoPeers = errors.New("events: no peers")
	// ErrNotConnected is returned by a direct Emit when the peer cannot be
	// reached or its link ended; the cause is wrapped beside it.
	ErrNotConnected = errors.New("events: not connected")
	// ErrOtherNetwork is returned by a direct Emit to a peer that said it
	// belongs to another network. The errors also wrap ErrNotConnected.
	ErrOtherNetwork = errors.New("events: the peer belongs to another network")
	// ErrRefused is returned by a direct Emit to a peer that does not take
	// events from this node now. The errors also wrap ErrNotConnected.
	ErrRefused = errors.New("events: refused by the peer")
	// ErrStalled is returned by an Emit that waited for room while nothing
	// could be written to the peer for the stall timeout.
	ErrStalled = errors.New("events: stalled")
	// ErrPubSubEnded is returned by Broadcast.Emit when somebody has ended the pubsub
	// below, or closed the topic that they had joined.
	ErrPubSubEnded = errors.New("events: the pubsub below was ended, or its topic closed")
	// ErrQueueFull is returned by a TryEmit when there is no room.
	ErrQueueFull = errors.New("events: queue full")
	// ErrTooLarge is returned for an event above the maximum event size, and
	// for one with more than 64 arguments. Nothing was sent.
	ErrTooLarge = errors.New("events: too large")
	// ErrBadName is returned for an event name that is not 1 to 128 bytes of
	// UTF-8, or that is "*". Nothing was sent.
	ErrBadName = errors.New("events: bad event name")
	// ErrBadArgument is returned for an argument that cannot be encoded. The
	// message gives its index and the cause; nothing was sent.
	ErrBadArgument = errors.New("events: bad argument")
	// ErrUndecodable is returned by Event.Decode when an argument is missing
	// or does not fit the variable. The message gives its index.
	ErrUndecodable = errors.New("events: undecodable")
	// ErrMalformed is returned for bytes that are not an event.
	ErrMalformed = errors.New("events: malformed")
)

// because is an error of ours together with what caused it.
type because struct{ what, why error }

func (e *because) Error() string   { return e.what.Error() + ": " + bare(e.why) }
func (e *because) Unwrap() []error { return []error{e.what, e.why} }

// emitError says which event or call to whom failed.
type emitError struct {
	what string // "emit" or "call"
	to   peer.ID
	name string
	err  error
}

func (e *emitError) Error() string {
	return fmt.Sprintf("events: %s %s to %s: %s", e.what, quote(e.name), e.to, bare(e.err))
}
func (e *emitError) Unwrap() error { return e.err }

// bare is the error's text without the package, for the middle of a line.
func bare(err error) string { return strings.TrimPrefix(err.Error(), "events: ") }
