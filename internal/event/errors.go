package event

import "errors"

var (
	// ErrTooLarge is returned for an event above the maximum event size, and for one
	// with more than 64 arguments. Nothing was sent.
	ErrTooLarge = errors.New("events: too large")
	// ErrBadName is returned for an event name that is not 1 to 128 bytes of UTF-8, or
	// that is "*". Nothing was sent.
	ErrBadName = errors.New("events: bad event name")
	// ErrBadArgument is returned for an argument that cannot be encoded, and by a call
	// whose handler cannot read the arguments. The error gives the number of the
	// argument and the cause. No event was sent, and no handler has run.
	ErrBadArgument = errors.New("events: bad argument")
	// ErrUndecodable is returned by Event.Decode when an argument is missing or does
	// not fit its variable. The error gives the number of the argument.
	ErrUndecodable = errors.New("events: undecodable")
	// ErrMalformed is returned for bytes that are not a valid event, batch or list of
	// marks.
	ErrMalformed = errors.New("events: malformed")
)
