// Package deadline writes to streams whose readers may be slow, without blocking for
// long and without setting a deadline at every write.
package deadline

import (
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"
)

// ChunkSize is the largest number of bytes that a [Writer] passes to its stream at once. So a
// long write makes progress step by step, and is not mistaken for a write to a stalled reader.
const ChunkSize = 64 << 10

var (
	// ErrTimeout is returned by Write when the timeout is over before the stream has accepted
	// all bytes. The stream can still be used.
	ErrTimeout = errors.New("deadline: the reader is slow")
	// ErrStopped is returned by Write after Stop.
	ErrStopped = errors.New("deadline: the writer was stopped")
)

// A Stream is a stream that a [Writer] can write to.
type Stream interface {
	io.Writer
	SetWriteDeadline(time.Time) error
}

// A Writer writes to a stream in pieces, each within a limited time. One goroutine at
// a time may call Write. Stop may be called from any goroutine.
type Writer struct {
	stream  Stream
	end     time.Time // the stream's write deadline
	stopped atomic.Bool
}

// NewWriter returns a Writer to s. Only the Writer may set the write deadline of s.
func NewWriter(s Stream) *Writer { return &Writer{stream: s} }

// Write writes b, but at most [ChunkSize] bytes, and returns how many bytes the stream
// accepted. If the stream does not accept the bytes, Write returns [ErrTimeout] after a time
// between half of timeout and timeout. After any other error the stream is broken.
func (w *Writer) Write(b []byte, timeout time.Duration) (int, error) {
	// Setting a deadline costs about as much as a write. So the deadline is set again only
	// when less than half of the timeout is left.
	if now := time.Now(); w.end.Sub(now) < timeout/2 {
		w.end = now.Add(timeout)
		w.stream.SetWriteDeadline(w.end)
	}
	// Stop sets stopped first and the deadline after it. So if the lines above have replaced
	// the deadline that Stop set, stopped is already true.
	if w.stopped.Load() {
		return 0, ErrStopped
	}
	n, err := w.stream.Write(b[:min(len(b), ChunkSize)])
	switch {
	case err == nil:
		return n, nil
	case w.stopped.Load():
		return n, ErrStopped
	case IsTimeout(err) && !time.Now().Before(w.end):
		return n, ErrTimeout
	}
	// libp2p also returns errors that report to be timeouts when a connection ends. They
	// come before the deadline, and mean that the stream is broken.
	return n, err
}

// Stop ends a blocked Write and makes later ones fail. It does not block. It does not close
// the stream, because that can block if the connection is frozen; the caller has to do it.
func (w *Writer) Stop() {
	w.stopped.Store(true)
	w.stream.SetWriteDeadline(time.Now())
}

// IsTimeout reports whether err means that a deadline has passed, or is another timeout of
// package net.
func IsTimeout(err error) bool {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return true
	}
	t, ok := errors.AsType[net.Error](err)
	return ok && t.Timeout()
}
