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

// ChunkSize is the most that a [Writer] gives to its stream at once, so that a long
// write is seen to make progress.
const ChunkSize = 64 << 10

var (
	// ErrTimeout is returned by Write when its time is over before the stream has
	// accepted all bytes. The stream is intact.
	ErrTimeout = errors.New("deadline: the reader is slow")
	// ErrStopped is returned by Write after Stop.
	ErrStopped = errors.New("deadline: the writer was stopped")
)

// A Stream is what a [Writer] needs of a stream.
type Stream interface {
	io.Writer
	SetWriteDeadline(time.Time) error
}

// A Writer writes to a stream in pieces, each within a limited time. One goroutine at
// a time may call Write; Stop may be called from any.
type Writer struct {
	stream  Stream
	end     time.Time // the stream's write deadline
	stopped atomic.Bool
}

// NewWriter returns a Writer to s. Only the Writer may set the write deadline of s.
func NewWriter(s Stream) *Writer { return &Writer{stream: s} }

// Write writes b, but at most [ChunkSize] bytes, and returns how many bytes the stream
// accepted. It blocks for half of timeout at least, and for timeout at most, while the
// stream does not accept them; then it returns [ErrTimeout]. After any other error the
// stream is broken.
func (w *Writer) Write(b []byte, timeout time.Duration) (int, error) {
	// Setting the deadline costs about as much as a write, so one serves for as many
	// writes as begin in its first half.
	if now := time.Now(); w.end.Sub(now) < timeout/2 {
		w.end = now.Add(timeout)
		w.stream.SetWriteDeadline(w.end)
	}
	// Stop sets the deadline after it has set stopped. So if the line above has
	// overwritten Stop's deadline, stopped is seen here.
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
	// The connections of libp2p also end with errors that call themselves timeouts.
	// They come before the deadline, and mean that the stream is broken.
	return n, err
}

// Stop ends a blocked Write, and makes later ones fail. It does not block. The stream
// stays open: resetting it can block when the connection is frozen, and is left to the
// caller.
func (w *Writer) Stop() {
	w.stopped.Store(true)
	w.stream.SetWriteDeadline(time.Now())
}

// IsTimeout reports whether err means that a deadline has passed.
func IsTimeout(err error) bool {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return true
	}
	t, ok := errors.AsType[net.Error](err)
	return ok && t.Timeout()
}
