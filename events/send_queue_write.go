package events

import (
	"context"
	"errors"
	"time"

	"github.com/go-smokesignal/smokesignal/internal/deadline"
)

// writeLoop is the writer. It leaves when there is nothing to write.
func (l *sendQueue) writeLoop() {
	l.mu.Lock()
	for l.err == nil && l.events > 0 {
		buf := l.queue
		l.queue, l.flight, l.events = nil, l.events, 0
		l.lastTakenCall = l.lastCall
		l.change.Broadcast() // there is room
		l.mu.Unlock()
		l.writeFrames(buf.b)
		buf.free()
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

// writeFrames writes the frames in buf, to more than one stream if need be. Unless
// the lane ends, they are all written or dropped when it returns.
func (l *sendQueue) writeFrames(buf []byte) {
	var re redial
	for len(buf) > 0 {
		out := l.currentStream(&re)
		if out == nil {
			return
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
		if l.err != nil {
			l.mu.Unlock()
			return
		}
		// A frame that was cut is not read by the peer, so it goes to the next
		// stream; those before it may or may not have been read.
		l.countUnwritten(ended, err)
		if out.broken == nil {
			out.broken = err
		}
		l.noteWritten(out, call)
		if time.Since(out.opened) > quickLoss {
			re.times = 0
		}
		if ended > 0 || re.err == nil {
			re.since = time.Now()
		}
		re.err = err
		l.mu.Unlock()
		l.d.tasks.Go(func() { out.Reset() })
	}
}

const (
	// quickLoss is how long a stream has to last before its loss counts as
	// the first again.
	quickLoss = time.Second
	// Pauses between streams that break or cannot be opened.
	minRedial = 50 * time.Millisecond
	maxRedial = 2 * time.Second
)

// writeTo writes buf to the stream and returns how much of it was handed over.
// While nothing can be written it goes on trying: what is queued waits for the
// peer, only those that wait for room are told that it is stalled.
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

func (l *sendQueue) setStalled(stalled bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stalled != stalled {
		l.stalled = stalled
		l.change.Broadcast()
	}
}

// redial is what a send remembers about broken streams.
type redial struct {
	times int       // another one was opened, or tried
	err   error     // why the last one broke or could not be opened
	since time.Time // when that began: no frame was written from then on
}

// currentStream returns the lane's stream. If that is broken it opens another one,
// until the stall timeout is over; then everything is dropped and stream
// returns nil, as it does when the lane has ended.
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
			l.dropAll(&causedError{ErrNotConnected, re.err}, 0)
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

// redialAfterPause dials after a pause.
func (l *sendQueue) redialAfterPause(re *redial) (*outStream, error) {
	if re.times > 0 {
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
