package smokesignal

import (
	"context"
	"errors"
	"sync"

	"github.com/go-smokesignal/smokesignal/internal/dispatch"
)

// Close ends the node. It does the following, one after the other:
//
//   - refuse new events;
//   - wait until the neighbors have acknowledged the broadcasts, at most CloseTimeout, but
//     not for a neighbor that answers nothing for a second;
//   - give the peers a second to read the direct events that were sent to them;
//   - end the links, and wait for the callbacks of OnDisconnect and the like, at most
//     CloseTimeout;
//   - end the contexts of handlers, and wait for the handlers, at most CloseTimeout.
//
// Afterwards nothing of the node is left, except handlers that have not returned.
//
// Broadcasts that were not acknowledged and handlers that still run are logged; they are
// not an error. Call Flush before Close where they matter. The error means that the peer
// book, the host or the identity file could not be written or closed.
//
// Close may be called more than once, from several goroutines and before Start; every
// call returns the same error. A handler that calls Close is itself waited for until
// CloseTimeout has passed; call Shutdown with the handler's context instead.
func (n *Node) Close() error {
	return n.Shutdown(context.Background())
}

// Shutdown does the same as Close, but stops waiting when ctx ends. Handlers that still run
// then end by themselves. If ctx is the context of a handler, Shutdown does not wait for
// that handler.
//
// While another call of Close or Shutdown is closing the node, Shutdown waits for it and
// returns its error, or the cause of ctx if ctx ends first. If ctx is the context of a
// handler, it returns nil at once.
func (n *Node) Shutdown(ctx context.Context) error {
	if n.life.closing.CompareAndSwap(false, true) {
		n.life.err = n.shutdown(ctx)
		close(n.life.done)
		return n.life.err
	}
	if inHandler(ctx) {
		// Another call is closing the node, and may be waiting for this handler to return.
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
	return dispatch.InHandler(ctx) || ctx.Value(callbackKey{}) != nil
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
		written = n.overlay.Leave(n.ctx) // ends the links, so OnDisconnect is called
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

// finish refuses new events, and waits until the accepted broadcasts have been acknowledged and
// the accepted direct events have been sent, or until ctx ends.
func (n *Node) finish(ctx context.Context) error {
	var direct error
	var draining sync.WaitGroup
	draining.Go(func() { direct = n.direct.Drain(ctx) })
	broadcast := n.broadcast.Drain(ctx)
	draining.Wait()
	return errors.Join(direct, broadcast)
}

// within calls f with a context that ends after CloseTimeout, or when caller ends, which is
// the context given to Shutdown. The new context keeps the values of caller, so that the
// channels can see that a handler is closing its own node.
func (n *Node) within(caller context.Context, f func(context.Context) error) error {
	ctx := caller
	if inHandler(caller) {
		// Closing the node ends the contexts of handlers. This one must live on, because
		// f is to wait until CloseTimeout.
		ctx = context.WithoutCancel(caller)
	}
	ctx, cancel := context.WithTimeout(ctx, n.cfg.closeTimeout)
	defer cancel()
	return f(ctx)
}

// release closes everything that build has made, also after a build that failed halfway.
// Each part is closed before the parts that it uses.
func (n *Node) release() error {
	var errs []error
	if n.driver != nil {
		n.driver.Close() // shutdown has the error already, as that of n.overlay.Leave
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
