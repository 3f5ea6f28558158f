// Package forward is a TCP forwarder that breaks on command: a test puts it
// between two nodes and pauses, delays, limits, swallows or cuts what goes
// through, in each direction by itself.
//
//	f, err := forward.New("127.0.0.1:8495")
//	defer f.Close()
//	// somebody connects to f.Addr() ...
//	f.Up.Pause()              // what they send waits
//	f.Down.CutAt(100, forward.Reset) // and after 100 more bytes of answers both ends are reset
//
// A node is reached through it alone if it listens on an address that nobody is
// told and advertises that of the forwarder.
package forward

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"
)

// An End is how a connection is cut.
type End int

const (
	// Close ends both streams behind what was forwarded. An end that sends at
	// that moment may see a reset instead.
	Close End = iota
	// Reset lets both ends see a reset, which may take with it what was
	// forwarded last.
	Reset
)

// A Forwarder listens on the loopback interface and passes every connection
// on to its target. All methods, also those of its Flows, may be called from any
// goroutine.
type Forwarder struct {
	Up   *Flow // what goes to the target
	Down *Flow // what comes from it

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

// Stats counts what a Forwarder did so far.
type Stats struct {
	Open     int // connections that stand now
	Accepted int // connections ever, refused ones too
	Up, Down FlowStats
}

// New returns a Forwarder from a free port of 127.0.0.1 to target, a host:port,
// which is dialled anew for each connection: nobody has to listen there yet. A
// connection whose target cannot be reached is reset. Close has to be called.
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

// Addr is the host:port to connect to.
func (f *Forwarder) Addr() string { return f.listener.Addr().String() }

// Refuse says whether new connections are reset as soon as they come. Those
// that stand are not touched, see Cut.
func (f *Forwarder) Refuse(yes bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refusing = yes
}

// Cut ends all connections that stand, with what is still on its way in them.
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

// Close stops listening, resets all connections and waits until nothing of the
// Forwarder is left. It may be called more than once.
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

// connect passes one connection on until it ends.
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

// conn is one connection with both its ends.
type conn struct {
	ends [2]*net.TCPConn
	once sync.Once
	done chan struct{} // closed when it was cut
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

// reset makes the other side see a reset instead of an end.
func reset(c *net.TCPConn) {
	c.SetLinger(0)
	c.Close()
}
