package events

import (
	"errors"

	"github.com/go-smokesignal/smokesignal/internal/errs"
)

var (
	// ErrClosed is returned after Close has begun, and by calls that were waiting
	// at that moment.
	ErrClosed = errs.ErrClosed
	// ErrNotStarted is returned by an Emit before Start.
	ErrNotStarted = errs.ErrNotStarted
	// ErrNoPeers is returned by a broadcast before the first neighbor came.
	ErrNoPeers = errs.ErrNoPeers
	// ErrPubSubEnded is returned by Broadcast.Emit when the owner of the pubsub
	// has ended it, or has closed the topic that it lent.
	ErrPubSubEnded = errors.New("events: the pubsub below was ended, or its topic closed")
	// ErrQueueFull is returned by a TryEmit when the queue is full.
	ErrQueueFull = errs.ErrQueueFull
)
