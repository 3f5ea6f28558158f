// Package directdial keeps libp2p's swarm from a panic: a swarm that is closed while a dial
// with network.WithForceDirectDial chooses its addresses dereferences nil.
package directdial

import (
	"context"
	"sync"
	"time"
)

// settleTime is how long Close waits after the last dial with network.WithForceDirectDial
// has ended. When the context of such a dial is canceled, the dial returns at once. But the
// swarm may still choose addresses for it, for some microseconds, on a goroutine for which
// nobody can wait.
const settleTime = 50 * time.Millisecond

// Directness says whether a dial must yield a direct connection.
type Directness int

const (
	// Plain is a dial that any connection satisfies. Closing the swarm during such a dial
	// is harmless.
	Plain Directness = iota
	// Forced is a dial with network.WithForceDirectDial, which only a direct connection
	// satisfies. Closing the swarm while it chooses the addresses of such a dial is a panic.
	Forced
)

// Dials counts the dials on one host, and waits for them before the host is closed.
type Dials struct {
	ctx    context.Context // ends when Close begins
	cancel context.CancelCauseFunc
	dials  sync.WaitGroup

	mu          sync.Mutex
	closed      bool
	forcedEnded time.Time // when a dial with network.WithForceDirectDial last ended
}

// New returns a Dials without any dial.
func New() *Dials {
	g := &Dials{}
	g.ctx, g.cancel = context.WithCancelCause(context.Background())
	return g
}

// Begin counts a dial, or several, until end is called. The dial must use the returned
// context, which ends with ctx or when Close begins. After Close the error is the cause
// that Close was given.
func (g *Dials) Begin(ctx context.Context, kind Directness) (dial context.Context, end func(), err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, nil, context.Cause(g.ctx)
	}
	g.dials.Add(1)
	dial, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(g.ctx, func() { cancel(context.Cause(g.ctx)) })
	return dial, func() {
		stop()
		cancel(nil)
		g.countEnd(kind)
	}, nil
}

func (g *Dials) countEnd(kind Directness) {
	if kind == Forced {
		g.mu.Lock()
		g.forcedEnded = time.Now()
		g.mu.Unlock()
	}
	g.dials.Done()
}

// Close refuses new dials, ends the contexts of the dials under way with cause, and returns
// when these dials have ended and the swarm may be closed. If a dial with
// network.WithForceDirectDial has ended less than settleTime ago, Close waits until
// settleTime is over. Close may be called again.
func (g *Dials) Close(cause error) {
	g.mu.Lock()
	g.closed = true
	g.cancel(cause) // before Begin sees closed, and returns the cause
	g.mu.Unlock()
	g.dials.Wait()
	g.mu.Lock()
	ended := g.forcedEnded
	g.mu.Unlock()
	if !ended.IsZero() {
		time.Sleep(time.Until(ended.Add(settleTime))) // returns at once if settleTime is over already
	}
}
