package smokesignal

import (
	"context"
	"errors"

	"github.com/go-smokesignal/smokesignal/events"
)

// Close flushes what was sent, gives the peers a second to read the direct events to the
// end, tells them, fires disconnect, ends the contexts of handlers and waits for them.
// Each of its three waits (for neighbours to acknowledge, for the callbacks of the
// disconnect, for handlers) is bounded by CloseTimeout. Then nothing of the node is
// left, but handlers that would not return. What was not acknowledged, and who still
// runs, is logged and is no error: call Flush before where it matters. The error says
// that the peer book, the host or the identity file could not be written or closed.
// Close may be called more than once, from several goroutines and before Start; every
// call returns the same. Called from a handler it does not wait for itself beyond
// CloseTimeout; Shutdown, given the handler's context, does not wait for it at all.
func (n *Node) Close() error {
	return n.Shutdown(context.Background())
}

// Shutdown is Close which waits no longer than ctx. Handlers that then still run
// are left to end by themselves. While another call is at work it returns what that
// returns, or the cause of ctx if that ends before, or nil at once if ctx is a handler's.
func (n *Node) Shutdown(ctx context.Context) error {
	if n.life.closing.CompareAndSwap(false, true) {
		n.life.err = n.shutdown(ctx)
		close(n.life.done)
		return n.life.err
	}
	if inHandler(ctx) {
		// Another call is at work and may be waiting for this very handler.
		return nil
	}
	select {
	case <-n.life.done:
		return n.life.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// inHandler tells whether ctx belongs to an event handler or a callback.
func inHandler(ctx context.Context) bool {
	return events.InHandler(ctx) || ctx.Value(callbackKey{}) != nil
}

func (n *Node) shutdown(caller context.Context) error {
	n.life.mu.Lock() // waits for a Start under way
	started := n.life.stage == stageStarted
	n.life.stage = stageClosed
	n.life.mu.Unlock()
	var written error
	if started {
		n.log.Info("closing", "id", n.ID())
		if err := n.within(caller, n.finish); err != nil {
			n.log.Warn("closing: not everything sent was confirmed", "err", err)
		}
		n.watchdog.Close()
		written = n.sources.close() // while there are links to be remembered
		n.driver.Leave(n.ctx)       // fires disconnect
		if err := n.within(caller, func(ctx context.Context) error { return n.callbacks.wait(ctx, caller) }); err != nil {
			n.log.Warn("closing: a callback still runs", "err", err)
		}
	}
	n.endCallbacks()
	err := n.within(caller, func(ctx context.Context) error {
		return errors.Join(n.direct.Close(ctx), n.broadcast.Close(ctx), n.topics.close(ctx), n.callbacks.wait(ctx, caller), n.bus.queue.wait(ctx, caller))
	})
	if err != nil {
		n.log.Warn("closing: a handler still runs", "err", err)
	}
	return errors.Join(written, n.release())
}

// finish refuses new events and waits until the accepted ones have arrived.
func (n *Node) finish(ctx context.Context) error {
	n.direct.Refuse()
	n.broadcast.Refuse()
	err := n.Flush(ctx)
	n.direct.Drain(ctx)
	return err
}

// within calls f with a context that ends after CloseTimeout, or when the caller
// of Shutdown does not want to wait longer. The context keeps the caller's
// values, by which the rooms know a handler that closes its own node.
func (n *Node) within(caller context.Context, f func(context.Context) error) error {
	ctx := caller
	if inHandler(caller) {
		ctx = context.WithoutCancel(caller) // closing itself ends the contexts of handlers
	}
	ctx, cancel := context.WithTimeout(ctx, n.cfg.closeTimeout)
	defer cancel()
	return f(ctx)
}

// release takes away what build made, as far as it came.
func (n *Node) release() error {
	var errs []error
	if n.driver != nil {
		n.driver.Close()
	}
	if n.records != nil {
		n.records.Close()
	}
	if n.gate != nil {
		n.gate.Close()
	}
	if n.cancel != nil {
		n.cancel()
		n.endCallbacks()
	}
	if n.bus != nil {
		n.bus.close()
	}
	if n.protocols != nil {
		n.protocols.Close()
	}
	if n.host != nil {
		errs = append(errs, n.host.Close())
	}
	if n.unclaim != nil {
		n.unclaim()
	}
	if n.identity != nil {
		errs = append(errs, n.identity.Close())
	}
	return errors.Join(errs...)
}
