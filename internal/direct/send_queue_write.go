package direct

import (
	"context"
	"errors"
	"time"

	"github.com/go-smokesignal/smokesignal/internal/deadline"
	"github.com/go-smokesignal/smokesignal/internal/errs"
)

// writeLoop is the writer: it writes queued events until none is left.
func (l *sendQueue) writeLoop() {
	l.mu.Lock()
	for l.err == nil && l.events > 0 {
		buf := l.queue
		l.queue, l.taken, l.events = nil, l.events, 0
		l.lastTakenCall = l.lastCall
		l.change.Broadcast() // the queue has space again
		l.mu.Unlock()
		l.writeFrames(buf.B)
		buf.Free()
		l.mu.Lock()
	}
	l.writing = false
	if l.err != nil {
		l.finishClosing()
	} else if l.stream != nil && l.stream.broken != nil {
		l.dropStream(l.stream)
	}
	l.change.Broadcast()
	idle := l.idle()
	l.mu.Unlock()
	if idle {
		l.d.removeIdle(l)
	}
}

// writeFrames writes the frames in buf. If the stream breaks, it continues on a new
// one. When it returns, all frames were written or dropped, unless the queue has ended.
func (l *sendQueue) writeFrames(buf []byte) {
	var re redial
	for len(buf) > 0 {
		out := l.currentStream(&re)
		if out == nil {
			return // the queue has ended, or all events were dropped
		}
		n, err := l.writeTo(out, buf)
		l.mu.Lock()
		if err == nil {
			out.sent += l.taken
			l.taken = 0
			l.noteWritten(out, l.lastTakenCall)
			l.mu.Unlock()
			return
		}
		ended, end, call := framesWithin(buf, n)
		buf = buf[end:]
		l.taken -= ended
		if l.err != nil { // finishClosing counts the events that are left
			l.mu.Unlock()
			return
		}
		// The peer ignores a frame that was cut off, so that frame is sent again on the
		// next stream. The peer may or may not have read the frames before it. They
		// count as lost and are not sent again, so that none arrives twice.
		l.countUnwritten(ended, err)
		if out.broken == nil {
			out.broken = err
		}
		l.noteWritten(out, call)
		// A stream that worked for a while shows that the peer is well, so the next
		// stream is opened at once.
		if time.Since(out.opened) > quickLoss {
			re.times = 0
		}
		// The stall timeout starts again after progress, and at the first failure.
		if ended > 0 || re.err == nil {
			re.since = time.Now()
		}
		re.err = err
		l.mu.Unlock()
		l.d.tasks.Go(func() { out.Reset() })
	}
}

const (
	// quickLoss is how long a stream must have worked for the next one to be opened
	// without a pause.
	quickLoss = time.Second
	// The pauses between attempts to open a stream double, from minRedial to maxRedial.
	minRedial = 50 * time.Millisecond
	maxRedial = 2 * time.Second
)

// writeTo writes buf to the stream and returns how many bytes the stream accepted. If
// the peer reads nothing, writeTo keeps trying, but after the stall timeout it marks
// the queue as stalled, so that pushes without space fail.
func (l *sendQueue) writeTo(out *outStream, buf []byte) (n int, err error) {
	timeout := l.d.cfg.StallTimeout
	last := time.Now() // when a byte was last written
	for n < len(buf) {
		m, err := out.writer.Write(buf[n:], timeout/8)
		n += m
		switch {
		case m > 0:
			last = time.Now()
			l.setStalled(false)
		case time.Since(last) >= timeout:
			l.setStalled(true)
		}
		// After a timeout the peer may still continue to read. Any other error means
		// that the stream is broken, or that the queue was closed.
		if err != nil && !errors.Is(err, deadline.ErrTimeout) {
			return n, err
		}
	}
	return n, nil
}

// setStalled sets whether the peer counts as stalled, that is, reads nothing.
func (l *sendQueue) setStalled(stalled bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stalled != stalled {
		l.stalled = stalled
		l.change.Broadcast()
	}
}

// redial records the failures of streams during one call of writeFrames.
type redial struct {
	times int       // how many attempts to open a stream were made
	err   error     // why the last stream broke or could not be opened
	since time.Time // since when no frame was written
}

// currentStream returns the stream of the queue. If that is broken, it tries to open
// another one until the stall timeout. If that fails, it drops all events and returns
// nil. It also returns nil if the queue has ended or the peer refuses this node.
func (l *sendQueue) currentStream(re *redial) *outStream {
	l.mu.Lock()
	defer l.mu.Unlock()
	if out := l.stream; out != nil {
		if out.broken == nil {
			return out
		}
		if l.err == nil && l.dropStream(out) != nil {
			return nil
		}
	}
	if re.err == nil {
		re.since = time.Now()
	}
	for l.err == nil {
		if re.err != nil && time.Since(re.since) >= l.d.cfg.StallTimeout {
			l.dropAll(errs.Because(ErrNotConnected, re.err), 0)
			return nil
		}
		l.mu.Unlock()
		out, err := l.redialAfterPause(re)
		l.mu.Lock()
		if err == nil {
			l.setStream(out)
			return l.stream
		}
		re.err = err
	}
	return nil
}

// redialAfterPause opens a stream. Before all attempts but the first it pauses.
func (l *sendQueue) redialAfterPause(re *redial) (*outStream, error) {
	if re.times > 0 {
		// Without a pause, a peer that resets every stream would keep both sides busy.
		select {
		case <-time.After(min(minRedial<<min(re.times-1, 10), maxRedial)):
		case <-l.ctx.Done():
			return nil, l.ctx.Err()
		}
	}
	re.times++
	ctx, cancel := context.WithDeadline(l.ctx, re.since.Add(l.d.cfg.StallTimeout))
	defer cancel()
	return l.dial(ctx)
}
