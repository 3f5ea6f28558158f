package events

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/events/internal/engine"
	"github.com/go-smokesignal/smokesignal/events/internal/order"
	"github.com/go-smokesignal/smokesignal/events/internal/store"
	"github.com/go-smokesignal/smokesignal/internal/bubble"
	"github.com/go-smokesignal/smokesignal/internal/dispatch"
	"github.com/go-smokesignal/smokesignal/internal/logging"
	"github.com/go-smokesignal/smokesignal/internal/notify"
	"github.com/go-smokesignal/smokesignal/internal/wiring"
)

// newReceiver returns a Broadcast that only receives, without a network.
func newReceiver(t *testing.T, admit func(context.Context, peer.ID) error) *Broadcast {
	log := logging.Package("events", nil)
	b := &Broadcast{log: log, dispatcher: dispatch.New(log), node: &wiring.Broadcasts{Admit: admit}, ctx: t.Context()}
	b.driver = engineDriver{b: b, capacity: notify.NewSignal(), engine: engine.New[*signedBatch]("ourselves", rawSession(0), engine.Config{
		Order: order.Config{MaxSenders: 2 * maxQueues},
		Store: store.Config{MaxBytes: 64 << 20}, // so that only the queues are short
	})}
	b.deliverer.init(b)
	return b
}

// The number of senders whose events wait for slow handlers is bounded: beyond it the
// events of new senders are dropped and counted, the waiting senders are delivered, and
// later new ones again.
func TestWaitingSendersAreBounded(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		admitted := make(chan struct{})
		b := newReceiver(t, func(context.Context, peer.ID) error {
			<-admitted
			return nil
		})
		defer b.driver.close()
		receive := func(sender peer.ID, first uint64) {
			t.Helper()
			o, err := parseSignedBatch(&pb.Message{Data: batchOf(t, rawSession(1), first, "x")})
			if err != nil {
				t.Fatal(err)
			}
			b.driver.mu.Lock()
			defer b.driver.mu.Unlock()
			now := time.Now()
			b.driver.receiveBatch(now, sender, o, "neighbor")
			b.driver.carryOut(now)
		}
		stored := func(sender peer.ID) int {
			b.driver.mu.Lock()
			defer b.driver.mu.Unlock()
			return len(b.driver.engine.StoredEntries(sender, rawSession(1), 1, 10, 1<<20))
		}
		for i := range maxQueues {
			receive(peer.ID(fmt.Sprint(i)), 1)
		}
		if st := b.Stats(); st["overrun"] != 0 {
			t.Fatalf("%d events are dropped of as many senders as may wait", st["overrun"])
		}
		const more = 100
		for i := range more {
			receive(peer.ID(fmt.Sprint("more ", i)), 1)
		}
		time.Sleep(2 * time.Minute) // until the store lets go what nobody is going to read
		known := peer.ID(fmt.Sprint(maxQueues - 1))
		if dropped, waiting := stored("more 0"), stored(known); dropped != 0 || waiting != 1 {
			t.Errorf("%d batches are kept of a sender that was dropped, %d of one that waits", dropped, waiting)
		}
		receive(known, 2)
		if n, st := b.deliverer.turns.Len(), b.Stats(); n != maxQueues || st["overrun"] != more {
			t.Errorf("%d senders wait, %d events were dropped, want %d and %d", n, st["overrun"], maxQueues, more)
		}
		close(admitted)
		synctest.Wait()
		receive("more 1", 2)
		synctest.Wait()
		if st := b.Stats(); st["delivered"] != maxQueues+2 || st["overrun"] != more || st["lost"] != 0 || b.deliverer.turns.Len() != 0 {
			t.Errorf("%d senders are left, %+v", b.deliverer.turns.Len(), st)
		}
	})
}
