package integration_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"

	"github.com/go-smokesignal/smokesignal"
)

// TestBurstThroughBorrowedPubSub: through pubsubs at their defaults, with queues of 32,
// nothing is lost without a report and nothing comes out of order. In the line a relay
// has to pass everything on; with gossipsub it may be that the mesh leaves a neighbor
// out.
func TestBurstThroughBorrowedPubSub(t *testing.T) {
	for name, make := range pubsubs {
		t.Run(name+"/three in a line", func(t *testing.T) {
			nodes := nodesOnLentPubSubs(t, 3, make)
			introduce(t, nodes[0], nodes[1])
			introduce(t, nodes[1], nodes[2])
			burst(t, nodes, nodes[:1], map[size]uint64{byDefault: 10_000, long: 10_000, full: 100_000}[chosen()])
		})
		t.Run(name+"/five, each with each", func(t *testing.T) {
			nodes := nodesOnLentPubSubs(t, 5, make)
			for i, a := range nodes {
				for _, b := range nodes[:i] {
					introduce(t, a, b)
				}
			}
			burst(t, nodes, nodes, map[size]uint64{byDefault: 500, long: 5_000, full: 20_000}[chosen()])
		})
	}
	t.Run("gossipsub with a mesh of two/five, each with each", func(t *testing.T) {
		params := pubsub.DefaultGossipSubParams()
		params.D, params.Dlo, params.Dhi, params.Dout, params.Dscore = 2, 1, 2, 0, 1
		nodes := nodesOnLentPubSubs(t, 5, pubsub.NewGossipSub, pubsub.WithGossipSubParams(params))
		for i, a := range nodes {
			for _, b := range nodes[:i] {
				introduce(t, a, b)
			}
		}
		burst(t, nodes, nodes, map[size]uint64{byDefault: 200, long: 2_000, full: 10_000}[chosen()])
	})
	t.Run("gossipsub with the options for sharing/three in a line", func(t *testing.T) {
		var nodes []*smokesignal.Node
		for range 3 {
			h := rawHost(t)
			nodes = append(nodes, lentNode(t, h, smokesignal.WithPubSub(lentPubSub(t, h, pubsub.NewGossipSub, smokesignal.PubSubOptions()...))))
		}
		introduce(t, nodes[0], nodes[1])
		introduce(t, nodes[1], nodes[2])
		burst(t, nodes, nodes[:1], map[size]uint64{byDefault: 10_000, long: 10_000, full: 100_000}[chosen()])
	})
}

// burst makes the senders emit as fast as they can, and demands of every other node an
// account of all.
func burst(t *testing.T, nodes, senders []*smokesignal.Node, each uint64) {
	t.Helper()
	type account struct {
		*tally
		from *smokesignal.Node
	}
	var accounts []account
	for i, to := range nodes {
		for _, from := range senders {
			if to != from {
				accounts = append(accounts, account{newTally(t, fmt.Sprintf("n%d", i), to, from.ID(), nil), from})
			}
		}
	}
	began := time.Now()
	var emitting sync.WaitGroup
	for _, from := range senders {
		emitting.Go(func() {
			if err := emitNumbered(within(t, 2*soon), from, 1, each+1, 300); err != nil {
				t.Error(err)
			}
		})
	}
	emitting.Wait()
	emitted := time.Since(began)
	var delivered, reported uint64
	for _, y := range accounts {
		d, r := y.wait(each+1, 2*soon)
		delivered, reported = delivered+d, reported+r
		if d+r != each {
			t.Errorf("%s: %d delivered and %d reported, sent %d", y.who, d, r, each)
		}
	}
	var repaired uint64
	for _, n := range nodes {
		repaired += n.Stats().Broadcast["repaired"]
	}
	if reported > 0 {
		t.Errorf("%d were reported as lost, and nobody was cut off", reported)
	}
	t.Logf("%d events of each of %d, emitted in %v, accounted for after %v: %d delivered, %d reported; %d batches were repaired",
		each, len(senders), emitted.Round(time.Millisecond), time.Since(began).Round(time.Millisecond), delivered, reported, repaired)
}
