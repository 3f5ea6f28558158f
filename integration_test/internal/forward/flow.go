package forward

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// The sizes of the buffer for one direction of a connection: 64 chunks of 4 KiB. When the
// buffer is full, for example during a pause, the writes of the sender block. With a delay, at
// most these 256 KiB can be on their way, which limits the rate.
const (
	chunkSize = 4 << 10
	chunks    = 64
)

// catchUp is how much unused time a Limit may make up for: after a late timer or a silence, it
// lets the bytes of at most 20 ms through at once.
const catchUp = 20 * time.Millisecond

// A Flow is one direction of all connections of a Forwarder, those made later included.
type Flow struct {
	mu      sync.Mutex
	changed chan struct{} // closed and replaced when a setting changes
	paused  bool
	drop    bool
	delay   time.Duration
	rate    int       // bytes per second; 0 means unlimited
	free    time.Time // when the rate permits the next byte
	cutAt   int64     // after how many more bytes a connection is cut; negative: never
	cutHow  End
	count   FlowStats
}

// FlowStats counts the bytes of one direction.
type FlowStats struct {
	Forwarded int64
	Dropped   int64
}

func newFlow() *Flow { return &Flow{changed: make(chan struct{}), cutAt: -1} }

// change calls set, which changes a setting of f, and wakes the goroutines that wait for a
// change.
func (f *Flow) change(set func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	set()
	close(f.changed)
	f.changed = make(chan struct{})
}

// Pause holds back all bytes and the end of a stream until Resume. The sender does not
// notice until the buffers of the Flow and of the system are full; then its writes
// block.
func (f *Flow) Pause() { f.change(func() { f.paused = true }) }

// Resume ends a Pause. No bytes are lost.
func (f *Flow) Resume() { f.change(func() { f.paused = false }) }

// Drop discards all bytes if yes is true, as a broken path does. A connection that has
// lost bytes stays silent in this direction until it is cut, even after Drop(false),
// since no real path delivers a stream with missing bytes.
func (f *Flow) Drop(yes bool) { f.change(func() { f.drop = yes }) }

// CutAt cuts the connection that carries the nth byte in this direction from now on, right
// after this byte. Bytes are counted over all connections. Zero cuts before the next byte, and
// a negative n cancels CutAt. how is the way to cut it.
func (f *Flow) CutAt(n int64, how End) { f.change(func() { f.cutAt, f.cutHow = max(n, -1), how }) }

// Delay delays each byte by d from now on. Zero or less means no delay. The order of
// the bytes stays the same.
func (f *Flow) Delay(d time.Duration) { f.change(func() { f.delay = d }) }

// Limit sets the largest number of bytes per second in this direction, of all connections
// together. Zero or less means unlimited.
func (f *Flow) Limit(rate int) { f.change(func() { f.rate, f.free = max(rate, 0), time.Time{} }) }

func (f *Flow) stats() FlowStats {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.count
}

// A chunk holds bytes that were read from one end of a connection, and the time of the read.
type chunk struct {
	b  []byte
	at time.Time
}

// forward copies bytes from the end from of the connection c to its end to, until the stream
// ends or c is cut.
func (f *Flow) forward(c *conn, from, to *net.TCPConn) {
	queue := make(chan chunk, chunks)
	var broken error // the error with which reading ended; set before queue is closed
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
	// A pause or a delay also delays the end of the stream.
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

// An action says what the Flow does with the first bytes of a chunk.
type action int

const (
	write action = iota
	writeAndCut
	cutNow
	discard
	gone // the connection has been cut
)

// next waits until the settings permit the first bytes of ch. It returns their number and what
// to do with them. An empty chunk stands for the end of the stream. lost is true if bytes of c
// in this direction were dropped before.
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

// account decides what to do with the next bytes, at most n, and counts them. It returns their
// number and the action for them. lost is true if bytes of the connection were dropped before.
// The caller holds f.mu.
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
		n = min(n, max(f.rate/100, 1)) // the bytes of ten milliseconds
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
