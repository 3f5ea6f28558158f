package smokesignal

// Stats counts what a node has done since New, and what went wrong: every failure that is
// in no error and no callback is counted here. It is a snapshot of plain numbers, which
// encoding/json writes and expvar shows:
//
//	expvar.Publish("node", expvar.Func(func() any { return node.Stats() }))
type Stats struct {
	// Direct counts faults of direct events and calls:
	//
	//	unwritten    events that Emit accepted and that were not written to a stream
	//	malformed    streams that were reset because a peer sent bytes that are not events
	//	refused      streams that were refused: too many, another network, not linked
	//	undecodable  events and calls that a typed handler could not decode
	//	unhandled    events and calls without a handler
	//	panics       handlers that panicked or called runtime.Goexit
	Direct map[string]uint64
	// Broadcast counts broadcasts. For each run of a sender, counted from its first event that
	// this node learned of, delivered, lost and overrun add up to what the sender has sent.
	//
	//	emitted      events that this node sent
	//	delivered    events that were handled
	//	lost         events that no neighbor had any more
	//	overrun      events dropped because handlers were too slow, or at Close
	//	repaired     batches that neighbors gave to this node on request
	//	repairs      batches that this node gave to neighbors on request
	//	duplicates   batches that arrived again, or after they were given up
	//	old_sessions batches of an earlier run of their sender
	//	foreign      messages that were not events, while there was no handler of OnRaw
	//	raw          messages that handlers of OnRaw got
	//	raw_dropped  messages for OnRaw dropped because handlers were too slow, or at Close
	//	unsigned     messages without a signature, which were dropped
	//	undecodable  events that are malformed, or that a typed handler could not decode
	//	unhandled    events without a handler
	//	panics       handlers that panicked or called runtime.Goexit
	Broadcast map[string]uint64
	// PubSub counts messages that the pubsub below the broadcasts did not send or deliver,
	// most of which are repaired. All are zero with a pubsub of the application (WithPubSub).
	//
	//	dropped       messages not sent because the queue for a peer was full
	//	overload      messages dropped because too many waited for the check of their signature
	//	rejected      messages that were forged, unsigned, or claimed to be from this node
	//	refused       messages with a field that is larger than allowed
	//	undeliverable messages dropped because the queue of the subscription was full
	//	topics        topics of peers that were not remembered, because there were too many
	//	panics        panics of this library on goroutines of pubsub
	PubSub map[string]uint64
	// Gate counts what happened between pubsub and the links. It is empty with a pubsub of the
	// application.
	//
	//	dropped      messages certainly not delivered to a peer: it stalled, or its stream broke
	//	stalls       times that a peer read nothing, or too little
	//	reopened     streams that broke and were replaced
	//	oversize     messages of more than 1 MiB that peers sent
	//	turned_away  plain pubsub peers that came while there were too many
	Gate map[string]uint64
	// Watchdog counts signals, which are the pings and answers of the watchdog.
	//
	//	received   signals that arrived; the next six count some of them
	//	malformed  signals whose bytes are wrong
	//	forged     signals that the node they name has not signed
	//	replayed   old answers of a seed
	//	duplicate  signals that had arrived before, which is usual for a flood
	//	spared     pings not passed on, because one for the same seed just was
	//	dropped    signals that came while too many others were being handled
	//	unsigned   signals of this node that could not be signed
	Watchdog map[string]uint64
	// Panics counts the panics of callbacks of a Node, its Peers and a Peer, such as
	// OnConnect. Those of event handlers are counted in Direct and Broadcast.
	Panics uint64
}

// Stats returns the counters, also before Start and after Close. It does not block.
func (n *Node) Stats() Stats {
	s := Stats{
		Direct:    n.direct.Stats(),
		Broadcast: n.broadcast.Stats(),
		PubSub:    n.pubsubCounters.Stats(),
		Watchdog:  n.watchdog.Stats(),
		Panics:    n.callbacks.panics.Load(),
	}
	if n.gate != nil {
		gate := n.gate.Stats()
		s.Gate = map[string]uint64{
			"dropped":     gate.Dropped,
			"stalls":      gate.Stalls,
			"reopened":    gate.Reopened,
			"oversize":    gate.Oversize,
			"turned_away": n.records.TurnedAway(),
		}
	}
	return s
}
