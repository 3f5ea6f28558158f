package events

import (
	"errors"

	"github.com/go-smokesignal/smokesignal/internal/errs"
	"github.com/go-smokesignal/smokesignal/internal/event"
)

var (
	// ErrClosed is returned after Close or Drain has begun, and by calls that were
	// waiting at that moment.
	ErrClosed = errs.ErrClosed
	// ErrNoPeers is returned by an Emit before this node has had its first neighbor.
	ErrNoPeers = errs.ErrNoPeers
	// ErrPubSubEnded is returned by an Emit when the application has ended the pubsub
	// that it has passed to New, or has closed the topic.
	ErrPubSubEnded = errors.New("events: the pubsub was ended, or its topic closed")
	// ErrQueueFull is returned by TryEmit when it would have to wait.
	ErrQueueFull = errs.ErrQueueFull
	// ErrTooLarge is returned for an event that is larger than MaxEventSize of the
	// config, and for one with more than 64 arguments. Nothing was sent.
	ErrTooLarge = event.ErrTooLarge
	// ErrBadName is returned for an event name that is not 1 to 128 bytes of UTF-8, or
	// that is "*". Nothing was sent.
	ErrBadName = event.ErrBadName
	// ErrBadArgument is returned for an argument that cannot be encoded. The error
	// gives the number of the argument and the cause. Nothing was sent.
	ErrBadArgument = event.ErrBadArgument
	// ErrUndecodable is returned by Event.Decode when an argument is missing or does
	// not fit its variable. The error gives the number of the argument.
	ErrUndecodable = event.ErrUndecodable
)
