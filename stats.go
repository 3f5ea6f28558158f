package smokesignal

// Stats counts what a node has done since New, and what went wrong: every failure that is
// in no error and no callback is counted here. It is a snapshot of plain numbers, which
// encoding/json writes and expvar shows:
//
//	expvar.Publish("node", expvar.Func(func() any { return node.Stats() }))
type Stats struct {
	Direct    DirectStats
	Broadcast BroadcastStats
	PubSub    PubSubStats   // zero with a pubsub of the application (WithPubSub)
	Gate      GateStats     // zero with a pubsub of the application (WithPubSub)
	Watchdog  WatchdogStats // zero if PingInterval is zero
	// Panics counts the panics of callbacks of a Node, its Peers and a Peer, such as
	// OnConnect. Those of event handlers are counted in Direct and Broadcast.
	Panics uint64
}

// DirectStats counts direct events and calls.
type DirectStats struct {
	Unwritten   uint64 // events that Emit accepted and that were not written to a stream
	Malformed   uint64 // streams that were reset because a peer sent nonsense
	Refused     uint64 // streams that were refused: too many, another network, not linked
	Undecodable uint64 // events and calls that a typed handler could not decode
	Unhandled   uint64 // events and calls without a handler
	Panics      uint64 // of handlers
}

// BroadcastStats counts broadcasts. Of each run of a sender, counted from its first event or
// mark that the node learned, Delivered, Lost and Overrun add up to what it sent.
type BroadcastStats struct {
	Emitted     uint64 // events that this node sent
	Delivered   uint64 // events that were handled
	Lost        uint64 // events that no neighbor had any more
	Overrun     uint64 // events dropped because handlers were too slow, or at Close
	Repaired    uint64 // batches that neighbors gave to this node on request
	Repairs     uint64 // batches that this node gave to neighbors on request
	Duplicates  uint64 // batches that arrived again, or too late
	OldSessions uint64 // batches of an earlier run of their sender
	Foreign     uint64 // messages that were not events, while there was no OnRaw handler
	Raw         uint64 // messages that OnRaw handlers got
	RawDropped  uint64 // messages for OnRaw dropped because handlers were too slow, or at Close
	Unsigned    uint64 // messages without a signature, which were dropped
	Undecodable uint64 // events that are malformed, or that a typed handler could not decode
	Unhandled   uint64 // events without a handler
	Panics      uint64 // of handlers
}

// PubSubStats counts what the pubsub below the broadcasts dropped. Most of it is repaired.
type PubSubStats struct {
	Dropped       uint64 // messages not sent because the queue of a peer was full
	Overload      uint64 // messages dropped because too many signatures waited to be checked
	Rejected      uint64 // messages that were forged, unsigned, or claimed to be this node's
	Refused       uint64 // messages with a field out of bounds
	Undeliverable uint64 // messages that a full subscription did not accept
	Topics        uint64 // announcements of topics that were not remembered
	Panics        uint64 // of our code on the goroutines of pubsub
}

// GateStats counts what happened between pubsub and the links.
type GateStats struct {
	Dropped  uint64 // messages certainly not delivered to a peer: it stalled or its stream broke
	Stalls   uint64 // times a peer read nothing, or too little
	Reopened uint64 // streams that broke and were replaced
	Oversize uint64 // messages of more than 1 MiB that peers sent
	// TurnedAway counts plain pubsub peers that came while there were too many.
	TurnedAway uint64
}

// WatchdogStats counts the pings and answers of the watchdog (its signals).
type WatchdogStats struct {
	Received  uint64 // all signals, bad ones too
	Malformed uint64 // signals that were too large or damaged
	Forged    uint64 // signals not signed by the node they name
	Replayed  uint64 // old answers of a seed
	Duplicate uint64 // signals that had arrived before, as floods do
	Spared    uint64 // pings not passed on because one for the same seed just was
	Dropped   uint64 // signals of a neighbor that sent too many, or while too many waited
	Unsigned  uint64 // signals of this node that could not be signed
}

// Stats returns the counters, also before Start and after Close. It does not block.
func (n *Node) Stats() Stats {
	s := Stats{
		Direct:    DirectStats(n.direct.Stats()),
		Broadcast: BroadcastStats(n.broadcast.Stats()),
		PubSub: PubSubStats{
			Dropped:       n.pubsubStats.Dropped.Load(),
			Overload:      n.pubsubStats.Overload.Load(),
			Rejected:      n.pubsubStats.Rejected.Load(),
			Refused:       n.pubsubStats.Refused.Load(),
			Undeliverable: n.pubsubStats.Undeliverable.Load(),
			Topics:        n.pubsubStats.Topics.Load(),
			Panics:        n.pubsubStats.Panics.Load(),
		},
		Watchdog: WatchdogStats(n.watchdog.Stats()),
		Panics:   n.callbacks.panics.Load(),
	}
	if n.gate != nil {
		g := n.gate.Stats()
		s.Gate = GateStats{
			Dropped: g.Dropped, Stalls: g.Stalls, Reopened: g.Reopened, Oversize: g.Oversize,
			TurnedAway: n.records.TurnedAway(),
		}
	}
	return s
}
