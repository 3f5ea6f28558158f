package forward

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// What is on its way within one direction of a connection: 256 KiB at most. When
// it is full, as during a pause, the sender feels it. It also bounds what gets
// through a Delay: 256 KiB in that time.
const (
	chunkSize = 4 << 10
	chunks    = 64
)

// catchUp is how far a Limit makes up for timers that were late, or for silence.
const catchUp = 20 * time.Millisecond

// A Flow is one direction of all connections of a Forwarder, also of those that
// come later.
type Flow struct {
	mu      sync.Mutex
	changed chan struct{} // closed and replaced with every order
	paused  bool
	drop    bool
	delay   time.Duration
	rate    int       // bytes per second; 0 means unlimited
	free    time.Time // when the limit lets the next byte through
	cutAt   int64     // bytes until the cut, negative for none
	cutHow  End
	count   FlowStats
}

// FlowStats counts bytes of one direction.
type FlowStats struct {
	Forwarded int64
	Dropped   int64
}

func newFlow() *Flow { return &Flow{changed: make(chan struct{}), cutAt: -1} }

// change changes the Flow and wakes whoever waits.
func (f *Flow) change(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
	close(f.changed)
	f.changed = make(chan struct{})
}

// Pause holds everything back, the end of a stream too, until Resume. A sender
// is not told; after 256 KiB and what the system buffers its writes block.
func (f *Flow) Pause() { f.change(func() { f.paused = true }) }

// Resume ends a Pause. Nothing was lost.
func (f *Flow) Resume() { f.change(func() { f.paused = false }) }

// Drop says whether bytes are discarded, as by a path that leads nowhere. A
// connection that lost any stays like that in this direction until it is cut,
// since no path delivers a stream with a hole.
func (f *Flow) Drop(yes bool) { f.change(func() { f.drop = yes }) }

// CutAt ends the connection that carries the nth byte from now on, counted over
// all connections, right behind that byte; zero cuts in front of the next one.
// A negative n forgets the order. It holds for one cut.
func (f *Flow) CutAt(n int64, how End) { f.change(func() { f.cutAt, f.cutHow = max(n, -1), how }) }

// Delay makes each byte take d from now on; zero or less means none. The order
// of bytes stays the same.
func (f *Flow) Delay(d time.Duration) { f.change(func() { f.delay = d }) }

// Limit bounds the bytes per second of all connections together; zero or less means
// unlimited.
func (f *Flow) Limit(rate int) { f.change(func() { f.rate, f.free = max(rate, 0), time.Time{} }) }

func (f *Flow) stats() FlowStats {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.count
}

// chunk is some bytes that came at a time.
type chunk struct {
	b  []byte
	at time.Time
}

// forward passes on what comes from one end of c to the other, until that is over or
// c is cut.
func (f *Flow) forward(c *conn, from, to *net.TCPConn) {
	queue := make(chan chunk, chunks)
	var broken error // of the reading side, once queue is closed
	var reading sync.WaitGroup
	defer reading.Wait()
	reading.Go(func() {
		defer close(queue)
		for {
			b := make([]byte, chunkSize)
			n, err := from.Read(b)
			if n > 0 {
				select {
				case queue <- chunk{b[:n], time.Now()}:
				case <-c.done:
					return
				}
			}
			if err != nil {
				if !errors.Is(err, io.EOF) {
					broken = err
				}
				return
			}
		}
	})
	lost := false // bytes of this connection were dropped
	for ch := range queue {
		for len(ch.b) > 0 {
			n, do := f.next(c, ch, lost)
			switch do {
			case gone:
				return
			case cutNow:
				c.cut(f.cutMode())
				return
			case discard:
				lost = true
			default:
				if _, err := to.Write(ch.b[:n]); err != nil {
					c.cut(Reset)
					return
				}
				if do == writeAndCut {
					c.cut(f.cutMode())
					return
				}
			}
			ch.b = ch.b[n:]
		}
	}
	// The end is held back like bytes are.
	switch _, do := f.next(c, chunk{at: time.Now()}, lost); {
	case do == gone:
	case do == discard:
		<-c.done
	case broken != nil:
		c.cut(Reset)
	default:
		to.CloseWrite()
	}
}

// What to do with the first bytes of a chunk.
type action int

const (
	write action = iota
	writeAndCut
	cutNow
	discard
	gone // the connection was cut meanwhile
)

// next waits until something can be done with the beginning of ch, and says with
// how many bytes. An empty chunk is the end of the stream.
func (f *Flow) next(c *conn, ch chunk, lost bool) (n int, do action) {
	for {
		f.mu.Lock()
		var wait time.Duration
		now := time.Now()
		if due := ch.at.Add(f.delay); due.After(now) {
			wait = due.Sub(now)
		}
		if f.rate > 0 && f.free.After(now) {
			wait = max(wait, f.free.Sub(now))
		}
		if !f.paused && wait <= 0 {
			n, do = f.account(len(ch.b), now, lost)
			f.mu.Unlock()
			return n, do
		}
		paused, changed := f.paused, f.changed
		f.mu.Unlock()
		var due <-chan time.Time
		if !paused {
			due = time.After(wait)
		}
		select {
		case <-changed:
		case <-due:
		case <-c.done:
			return 0, gone
		}
	}
}

// account books up to n bytes and says what to do with them. f.mu is held.
func (f *Flow) account(n int, now time.Time, lost bool) (int, action) {
	if f.drop || lost {
		f.count.Dropped += int64(n)
		return n, discard
	}
	if n == 0 {
		return 0, write
	}
	do := write
	if f.rate > 0 {
		n = min(n, max(f.rate/100, 1)) // ten milliseconds' worth
	}
	if f.cutAt >= 0 {
		if f.cutAt == 0 {
			f.cutAt = -1
			return 0, cutNow
		}
		n = int(min(int64(n), f.cutAt))
		if f.cutAt -= int64(n); f.cutAt == 0 {
			f.cutAt, do = -1, writeAndCut
		}
	}
	if f.rate > 0 {
		if late := now.Add(-catchUp); f.free.Before(late) {
			f.free = late
		}
		f.free = f.free.Add(time.Duration(n) * time.Second / time.Duration(f.rate))
	}
	f.count.Forwarded += int64(n)
	return n, do
}

func (f *Flow) cutMode() End {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.cutHow
}
