package direct

import (
	"context"
	"errors"
	"time"

	"github.com/go-smokesignal/smokesignal/internal/deadline"
	"github.com/go-smokesignal/smokesignal/internal/errs"
)

// writeLoop is the writer. It returns when there is nothing left to write.
func (l *sendQueue) writeLoop() {
	l.mu.Lock()
	for l.err == nil && l.events > 0 {
		buf := l.queue
		l.queue, l.flight, l.events = nil, l.events, 0
		l.lastTakenCall = l.lastCall
		l.change.Broadcast() // the queue has room again
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

// writeFrames writes the frames in buf, and goes on with a new stream when one breaks.
// When it returns, all of them are written or dropped, unless the queue has ended.
func (l *sendQueue) writeFrames(buf []byte) {
	var re redial
	for len(buf) > 0 {
		out := l.currentStream(&re)
		if out == nil {
			return // the queue has ended, or everything was dropped
		}
		n, err := l.writeTo(out, buf)
		l.mu.Lock()
		if err == nil {
			out.sent += l.flight
			l.flight = 0
			l.noteWritten(out, l.lastTakenCall)
			l.mu.Unlock()
			return
		}
		ended, end, call := framesWithin(buf, n)
		buf = buf[end:]
		l.flight -= ended
		if l.err != nil { // finishClosing counts the rest
			l.mu.Unlock()
			return
		}
		// The peer ignores a frame that was cut off, so that frame goes to the next
		// stream. The peer may or may not have read the frames before it, so they
		// count as lost and are not sent twice.
		l.countUnwritten(ended, err)
		if out.broken == nil {
			out.broken = err
		}
		l.noteWritten(out, call)
		// A stream that worked for a while shows that the peer is well: reopen at once.
		if time.Since(out.opened) > quickLoss {
			re.times = 0
		}
		// Progress, or the first failure, starts the stall timeout anew.
		if ended > 0 || re.err == nil {
			re.since = time.Now()
		}
		re.err = err
		l.mu.Unlock()
		l.d.tasks.Go(func() { out.Reset() })
	}
}

const (
	// quickLoss is how long a stream has to last for the pauses to begin with the
	// shortest again.
	quickLoss = time.Second
	// The pauses between attempts to open a stream double from minRedial to maxRedial.
	minRedial = 50 * time.Millisecond
	maxRedial = 2 * time.Second
)

// writeTo writes buf to the stream and returns how many bytes the stream accepted.
// While the peer reads nothing it goes on trying, as queued events wait for the peer.
// But it marks the queue as stalled, so that pushes without room fail.
func (l *sendQueue) writeTo(out *outStream, buf []byte) (n int, err error) {
	timeout := l.d.cfg.StallTimeout
	last := time.Now() // of progress
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
		// A slow reader may still catch up. Any other error means that the stream
		// is broken, or that the queue was closed.
		if err != nil && !errors.Is(err, deadline.ErrTimeout) {
			return n, err
		}
	}
	return n, nil
}

// setStalled sets whether the peer counts as stalled.
func (l *sendQueue) setStalled(stalled bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stalled != stalled {
		l.stalled = stalled
		l.change.Broadcast()
	}
}

// redial is the history of broken streams during one writeFrames.
type redial struct {
	times int       // how often a stream was opened, or tried to
	err   error     // why the last one broke or could not be opened
	since time.Time // no frame was written from then on
}

// currentStream returns the stream of the queue. If that is broken it opens another one,
// and tries so for the stall timeout. Then it drops everything and returns nil. It also
// returns nil when the queue has ended or the peer refuses us.
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

// redialAfterPause dials, after a pause unless this is the first attempt.
func (l *sendQueue) redialAfterPause(re *redial) (*outStream, error) {
	if re.times > 0 {
		// Without the pause, a peer that resets each stream would keep both sides busy.
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
