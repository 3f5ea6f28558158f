package smokesignal

// Stats counts what a node has done since New, and what went wrong: every failure that is
// in no error and no callback is counted here. It is a snapshot of plain numbers, which
// encoding/json writes and expvar shows:
//
//	expvar.Publish("node", expvar.Func(func() any { return node.Stats() }))
type Stats struct {
	Direct    DirectStats
	Broadcast BroadcastStats
	// PubSub counts what the pubsub below the broadcasts dropped, most of which is
	// repaired. The numbers are Dropped (messages not sent because the queue of a peer was
	// full), Overload (messages dropped because too many signatures waited to be checked),
	// Rejected (messages that were forged, unsigned, or claimed to be this node's), Refused
	// (messages with a field out of bounds), Undeliverable (messages that a full
	// subscription did not accept), Topics (announcements of topics that were not
	// remembered), and Panics. All are zero with a pubsub of the application (WithPubSub).
	PubSub map[string]uint64
	// Gate counts what happened between pubsub and the links: Dropped (messages certainly
	// not delivered to a peer, because it stalled or its stream broke), Stalls (times a peer
	// read nothing, or too little), Reopened (streams that broke and were replaced), Oversize
	// (messages of more than 1 MiB that peers sent), and TurnedAway (plain pubsub peers that
	// came while there were too many). It is empty with a pubsub of the application.
	Gate map[string]uint64
	// Watchdog counts signals, the pings and answers of the watchdog: Received (all), and of
	// these Malformed, Forged (not signed by the node they name), Replayed (old answers of a
	// seed), Duplicate (arrived before, as floods do), Spared (pings not passed on because
	// one for the same seed just was), and Dropped (too many at once); and Unsigned (signals
	// of this node that could not be signed).
	Watchdog map[string]uint64
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

// Stats returns the counters, also before Start and after Close. It does not block.
func (n *Node) Stats() Stats {
	watchdog := n.watchdog.Stats()
	pubsub := n.pubsubCounters.Stats()
	s := Stats{
		Direct:    DirectStats(n.direct.Stats()),
		Broadcast: BroadcastStats(n.broadcast.Stats()),
		PubSub:    pubsub,
		Watchdog: map[string]uint64{
			"Received":  watchdog.Received,
			"Malformed": watchdog.Malformed,
			"Forged":    watchdog.Forged,
			"Replayed":  watchdog.Replayed,
			"Duplicate": watchdog.Duplicate,
			"Spared":    watchdog.Spared,
			"Dropped":   watchdog.Dropped,
			"Unsigned":  watchdog.Unsigned,
		},
		Panics: n.callbacks.panics.Load(),
	}
	if n.gate != nil {
		gate := n.gate.Stats()
		s.Gate = map[string]uint64{
			"Dropped":    gate.Dropped,
			"Stalls":     gate.Stalls,
			"Reopened":   gate.Reopened,
			"Oversize":   gate.Oversize,
			"TurnedAway": n.records.TurnedAway(),
		}
	}
	return s
}
