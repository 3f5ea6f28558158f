package smokesignal

import (
	"fmt"
	"log/slog"
	"reflect"
	"sync"

	"github.com/libp2p/go-libp2p/core/event"
)

// The events below are emitted on the event bus of the node's libp2p host, see
// Host().EventBus(), where other libp2p code looks for them. They report the same as the
// callbacks of Node, in the same order.
type (
	// EvtConnected is emitted when the first peer was added.
	EvtConnected struct{}
	// EvtDisconnected is emitted when the last peer is gone.
	EvtDisconnected struct{}
	// EvtPeerAdded is emitted when a peer was added to the peer list.
	EvtPeerAdded struct{ Peer ID }
	// EvtPeerRemoved is emitted when a peer was removed from the peer list. Reason is a
	// *CloseError.
	EvtPeerRemoved struct {
		Peer   ID
		Reason error
	}
	// EvtNetsplit is emitted when a seed can no longer be heard through the network, although
	// this node has peers. Seed is the seed's text as it was given to Seeds.
	EvtNetsplit struct{ Seed string }
	// EvtNetsplitResolved is emitted when a seed for which EvtNetsplit was emitted is heard
	// again.
	EvtNetsplitResolved struct{ Seed string }
	// EvtGap is emitted when broadcasts of a sender are missing and will not arrive.
	EvtGap struct{ Gap Gap }
	// EvtSeedError is emitted when the reason why a seed cannot be used has changed.
	EvtSeedError struct{ Err *SeedError }
)

// busEvents emits events on the event bus of a host, in order. A subscriber that does not
// read delays the events that follow, but does not delay the callbacks of Node.
type busEvents struct {
	bus   event.Bus
	queue *callbacks
	log   *slog.Logger

	mu       sync.Mutex
	emitters map[reflect.Type]event.Emitter // by the type of the events
	closed   bool
}

// emit queues evt, which is a struct, for the goroutine that emits events on the event bus of
// the host. It does not wait for subscribers.
func emit[E any](b *busEvents, evt E) {
	b.queue.post(func() {
		emitter, err := emitterFor[E](b)
		if err == nil {
			err = emitter.Emit(evt)
		}
		if err != nil {
			b.log.Debug("an event is missing on the event bus", "event", fmt.Sprintf("%T", evt), "error", err)
		}
	})
}

// emitterFor returns the emitter for events of type E on the host's event bus. It makes a new
// emitter for the first event of a type.
func emitterFor[E any](b *busEvents) (event.Emitter, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, ErrClosed
	}
	kind := reflect.TypeFor[E]()
	if b.emitters[kind] != nil {
		return b.emitters[kind], nil
	}
	emitter, err := b.bus.Emitter(new(E))
	if err != nil {
		return nil, err
	}
	if b.emitters == nil {
		b.emitters = map[reflect.Type]event.Emitter{}
	}
	b.emitters[kind] = emitter
	return emitter, nil
}

// close closes the emitters.
func (b *busEvents) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for _, emitter := range b.emitters {
		emitter.Close()
	}
}
