// Package forward is a TCP forwarder with faults. A test puts it between two nodes, and
// pauses, delays, limits, drops or cuts the traffic of each direction.
//
//	f, err := forward.New("127.0.0.1:8495")
//	defer f.Close()
//	// a node connects to f.Addr() ...
//	f.Up.Pause()              // bytes to the target wait
//	f.Down.CutAt(100, forward.Reset) // after 100 more bytes from the target both ends are reset
//
// Peers reach a node only through the forwarder if the node advertises the address of
// the forwarder in place of its own.
package forward

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"
)

// An End is a way to cut a connection.
type End int

const (
	// Close ends both streams after the bytes forwarded so far. An end that is
	// sending may see a reset instead.
	Close End = iota
	// Reset resets both streams. The bytes forwarded last may be lost.
	Reset
)

// A Forwarder listens on the loopback interface and forwards every connection to its
// target. Its methods and those of its Flows may be called from several goroutines.
type Forwarder struct {
	Up   *Flow // to the target
	Down *Flow // from the target

	target   string
	listener *net.TCPListener
	ctx      context.Context // ends with Close
	cancel   context.CancelFunc
	tasks    sync.WaitGroup

	mu       sync.Mutex
	refusing bool
	accepted int
	conns    map[*conn]bool // nil after Close
}

// Stats are the counters of a Forwarder.
type Stats struct {
	Open     int // connections open now
	Accepted int // connections so far, including refused ones
	Up, Down FlowStats
}

// New returns a Forwarder from a free port of 127.0.0.1 to target, a host:port. It
// dials target for each connection, so target need not listen yet. A connection is
// reset if target cannot be reached. The caller has to call Close.
func New(target string) (*Forwarder, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("forward: listen on the loopback interface: %w", err)
	}
	f := &Forwarder{Up: newFlow(), Down: newFlow(), target: target, listener: l.(*net.TCPListener), conns: map[*conn]bool{}}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	f.tasks.Go(f.accept)
	return f, nil
}

// Addr returns the host:port to connect to.
func (f *Forwarder) Addr() string { return f.listener.Addr().String() }

// Refuse makes the Forwarder reset new connections if yes is true. It leaves open
// connections alone; see Cut.
func (f *Forwarder) Refuse(yes bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refusing = yes
}

// Cut cuts all open connections. Bytes that the Forwarder has buffered are lost.
func (f *Forwarder) Cut(how End) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cutAll(how)
}

func (f *Forwarder) cutAll(how End) {
	for c := range f.conns {
		c.cut(how)
	}
}

// Stats returns the counters.
func (f *Forwarder) Stats() Stats {
	f.mu.Lock()
	defer f.mu.Unlock()
	return Stats{Open: len(f.conns), Accepted: f.accepted, Up: f.Up.stats(), Down: f.Down.stats()}
}

// Close stops listening, resets all connections and waits for all goroutines. It may be
// called more than once.
func (f *Forwarder) Close() {
	f.cancel()
	f.listener.Close()
	f.mu.Lock()
	f.cutAll(Reset)
	f.conns = nil
	f.mu.Unlock()
	f.tasks.Wait()
}

func (f *Forwarder) accept() {
	for {
		near, err := f.listener.AcceptTCP()
		if f.ctx.Err() != nil {
			if err == nil {
				reset(near)
			}
			return
		}
		if err != nil { // such as too many open files
			time.Sleep(10 * time.Millisecond)
			continue
		}
		f.mu.Lock()
		f.accepted++
		refusing := f.refusing
		f.mu.Unlock()
		if refusing {
			reset(near)
			continue
		}
		f.tasks.Go(func() { f.connect(near) })
	}
}

// connect forwards one connection until it ends.
func (f *Forwarder) connect(near *net.TCPConn) {
	var d net.Dialer
	far, err := d.DialContext(f.ctx, "tcp", f.target)
	if err != nil {
		reset(near)
		return
	}
	c := &conn{ends: [2]*net.TCPConn{near, far.(*net.TCPConn)}, done: make(chan struct{})}
	f.mu.Lock()
	if f.conns == nil || f.refusing {
		f.mu.Unlock()
		c.cut(Reset)
		return
	}
	f.conns[c] = true
	f.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { f.Up.forward(c, c.ends[0], c.ends[1]) })
	both.Go(func() { f.Down.forward(c, c.ends[1], c.ends[0]) })
	both.Wait()
	c.cut(Close)
	f.mu.Lock()
	delete(f.conns, c)
	f.mu.Unlock()
}

// A conn is one connection with its two ends.
type conn struct {
	ends [2]*net.TCPConn
	once sync.Once
	done chan struct{} // closed by cut
}

func (c *conn) cut(how End) {
	c.once.Do(func() {
		close(c.done)
		for _, end := range c.ends {
			if how == Reset {
				reset(end)
			} else {
				end.Close()
			}
		}
	})
}

// reset closes c with a reset in place of an orderly end.
func reset(c *net.TCPConn) {
	c.SetLinger(0)
	c.Close()
}
