// Package errs holds the errors that more than one package of the module returns, so
// that each failure has one variable for errors.Is.
package errs

import (
	"errors"
	"strings"
)

// The public packages export these errors under the same names. The root package's page says
// when each is returned.
var (
	ErrClosed       = errors.New("smokesignal: closed")
	ErrNotStarted   = errors.New("smokesignal: not started")
	ErrNotConnected = errors.New("smokesignal: not connected")
	ErrOtherNetwork = errors.New("smokesignal: the peer belongs to another network")
	ErrNoPeers      = errors.New("events: no peers")
	ErrQueueFull    = errors.New("events: queue full")
	ErrSelf         = errors.New("smokesignal: this is the node itself")
	ErrRelayed      = errors.New("smokesignal: only reached through a relay, no direct connection")
)

// Text returns the text of err without the name of the package at its beginning, for use
// inside a longer text, such as "seed 192.0.2.1:8495: closed".
func Text(err error) string {
	text := err.Error()
	for _, pkg := range [...]string{"smokesignal: ", "events: ", "discovery: ", "health: ", "host: "} {
		if rest, ok := strings.CutPrefix(text, pkg); ok {
			return rest
		}
	}
	return text
}

// Wrap returns an error that wraps err. Its text is what, which begins with the name of a
// package and says what could not be done, followed by the Text of err.
func Wrap(what string, err error) error { return &wrapped{what + ": " + Text(err), err} }

type wrapped struct {
	text string
	err  error
}

func (e *wrapped) Error() string { return e.text }
func (e *wrapped) Unwrap() error { return e.err }

// OneLine returns the first line of the text of the innermost error that err wraps, shortened
// to 100 characters.
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

// Because returns an error that wraps both what and cause. Its text is that of what, followed
// by that of cause.
func Because(what, cause error) error { return &wrappedCause{what, cause} }

type wrappedCause struct{ err, cause error }

func (e *wrappedCause) Error() string   { return e.err.Error() + ": " + Text(e.cause) }
func (e *wrappedCause) Unwrap() []error { return []error{e.err, e.cause} }
