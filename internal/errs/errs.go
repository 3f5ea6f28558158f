// Package errs holds the errors that more than one package of the module returns, so
// that each failure has one variable for errors.Is. The public packages export them
// under the same names.
package errs

import (
	"errors"
	"strings"
)

var (
	// ErrClosed is returned once Close has begun, also by a call that was waiting at
	// that moment.
	ErrClosed = errors.New("smokesignal: closed")
	// ErrNotStarted is returned by a call that needs Start first.
	ErrNotStarted = errors.New("smokesignal: not started")
	// ErrNotConnected is returned when a peer cannot be reached, or when its link
	// ended. The cause is wrapped beside it.
	ErrNotConnected = errors.New("smokesignal: not connected")
	// ErrOtherNetwork is returned when a peer belongs to a network of another name.
	ErrOtherNetwork = errors.New("smokesignal: the peer belongs to another network")
	// ErrNoPeers is returned when there is nobody to send to.
	ErrNoPeers = errors.New("events: no peers")
	// ErrQueueFull is returned by a TryEmit when the queue is full.
	ErrQueueFull = errors.New("events: queue full")
	// ErrSelf is returned when an address or an id is that of this node itself.
	ErrSelf = errors.New("smokesignal: this is the node itself")
	// ErrRelayed is returned when a peer was reached through a relay and no direct
	// connection to it came about.
	ErrRelayed = errors.New("smokesignal: only reached through a relay, no direct connection")
)

// Text returns the text of err without the package at its beginning, for the middle of
// a line: "seed 192.0.2.1:8495: closed".
func Text(err error) string {
	text := err.Error()
	for _, pkg := range [...]string{"smokesignal: ", "events: ", "discovery: ", "health: ", "host: "} {
		if rest, ok := strings.CutPrefix(text, pkg); ok {
			return rest
		}
	}
	return text
}

// Wrap returns an error that says what could not be done, which begins with the package,
// and wraps err, whose own package is left out of the text.
func Wrap(what string, err error) error { return &wrapped{what + ": " + Text(err), err} }

type wrapped struct {
	text string
	err  error
}

func (e *wrapped) Error() string { return e.text }
func (e *wrapped) Unwrap() error { return e.err }

// OneLine returns the first line of the innermost text of err, at most 100 characters of
// it.
func OneLine(err error) string {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			break
		}
		err = inner
	}
	text, _, _ := strings.Cut(strings.TrimSpace(err.Error()), "\n")
	const most = 100
	if r := []rune(text); len(r) > most {
		text = string(r[:most]) + "..."
	}
	return text
}

// Because returns an error that is what and names its cause, and wraps both.
func Because(what, cause error) error { return &caused{what, cause} }

type caused struct{ what, why error }

func (e *caused) Error() string   { return e.what.Error() + ": " + Text(e.why) }
func (e *caused) Unwrap() []error { return []error{e.what, e.why} }
