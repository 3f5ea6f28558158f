package smokesignal

import (
	"context"
	"errors"
	"sync"

	"github.com/go-smokesignal/smokesignal/events"
)

// Close ends the node. It refuses new events, waits until the neighbors have acknowledged
// the broadcasts, gives the peers a second to read the direct events to their end, ends
// the links, which fires disconnect, and ends the contexts of handlers and waits for them.
// It waits at most CloseTimeout for the acknowledgements, as long for the callbacks of the
// disconnect, and as long for handlers. Afterwards nothing of the node is left but
// handlers that have not returned.
//
// Broadcasts that were not acknowledged, and handlers that still run, are logged and are
// not an error; call Flush first where they matter. The error means that the peer book,
// the host or the identity file could not be written or closed.
//
// Close may be called more than once, from several goroutines and before Start; every
// call returns the same error. Called from a handler it waits for that handler at most
// CloseTimeout; a Shutdown that is given the handler's context does not wait for it.
func (n *Node) Close() error {
	return n.Shutdown(context.Background())
}

// Shutdown is Close that waits no longer than ctx. Handlers that still run then are left
// to end by themselves. While another call is closing the node, Shutdown returns the error
// of that call, or the cause of ctx if ctx ends first, or nil at once if ctx is that of a
// handler.
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

// inHandler reports whether ctx belongs to an event handler or a callback.
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
			n.log.Warn("closing: not everything sent was confirmed", "error", err)
		}
		n.watchdog.Close()
		written = n.sources.close() // while the peer book can still note the links
		n.driver.Leave(n.ctx)       // fires disconnect
		if err := n.within(caller, func(ctx context.Context) error { return n.callbacks.wait(ctx, caller) }); err != nil {
			n.log.Warn("closing: a callback still runs", "error", err)
		}
	}
	n.endCallbacks()
	err := n.within(caller, func(ctx context.Context) error {
		return errors.Join(n.direct.Close(ctx), n.broadcast.Close(ctx), n.topics.close(ctx), n.callbacks.wait(ctx, caller), n.bus.queue.wait(ctx, caller))
	})
	if err != nil {
		n.log.Warn("closing: a handler still runs", "error", err)
	}
	return errors.Join(written, n.release())
}

// finish refuses new events and waits until the accepted events have arrived.
func (n *Node) finish(ctx context.Context) error {
	var direct error
	var draining sync.WaitGroup
	draining.Go(func() { direct = n.direct.Drain(ctx) })
	broadcast := n.broadcast.Drain(ctx)
	draining.Wait()
	return errors.Join(direct, broadcast)
}

// within calls f with a context that ends after CloseTimeout, or when the context of
// Shutdown's caller ends. It keeps the values of the caller's context, by which the
// channels recognize a handler that closes its own node.
func (n *Node) within(caller context.Context, f func(context.Context) error) error {
	ctx := caller
	if inHandler(caller) {
		// Closing ends the contexts of handlers, this one too.
		ctx = context.WithoutCancel(caller)
	}
	ctx, cancel := context.WithTimeout(ctx, n.cfg.closeTimeout)
	defer cancel()
	return f(ctx)
}

// release closes all that build has made, also after a build that failed halfway. The
// order is that of use: each part is closed before the parts it uses.
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
