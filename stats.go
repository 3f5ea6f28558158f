package smokesignal

import (
	"github.com/go-smokesignal/smokesignal/events"
	"github.com/go-smokesignal/smokesignal/health"
	"github.com/go-smokesignal/smokesignal/internal/gate"
)

// Stats counts what a node has done since New, and what went wrong: whatever is in no
// error and no callback is here. What each number means is told in its package.
type Stats struct {
	Direct    events.DirectStats
	Broadcast events.BroadcastStats
	// PubSub is what the pubsub below the broadcasts lost; most of it is repaired. It goes
	// on counting. Of a pubsub that was lent it stays zero.
	PubSub *events.PubSubStats
	// Gate is between pubsub and the links; zero with a pubsub that was lent.
	Gate     gate.Stats
	Watchdog health.Stats
	// Panics is how often a callback panicked, such as OnConnect, or OnClose of a peer.
	// Those of event handlers are in Direct and Broadcast.
	Panics uint64
}

// Stats returns the counters, also before Start and after Close.
func (n *Node) Stats() Stats {
	s := Stats{
		Direct: n.direct.Stats(), Broadcast: n.broadcast.Stats(), PubSub: &n.pubsubStats,
		Watchdog: n.watchdog.Stats(), Panics: n.calls.panics.Load(),
	}
	if n.gate != nil {
		s.Gate = n.gate.Stats()
	}
	return s
}
