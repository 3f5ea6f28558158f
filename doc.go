// Package smokesignal passes events between peers: broadcast them to a whole
// network, or speak to one node. Nodes find each other through seeds, keep a few
// links each, and come back by themselves when they were cut off.
//
//	var chat = smokesignal.Name[string]("chat") // a typed event
//
//	node, err := smokesignal.New(smokesignal.Seeds("192.168.2.100:8495"))
//	if err != nil {
//		return err
//	}
//	chat.On(node.Broadcast(), func(ctx context.Context, from smokesignal.ID, text string) {
//		fmt.Println(from, text)
//	})
//	node.OnConnect(func(ctx context.Context) { chat.Emit(ctx, node.Broadcast(), "HEYO! I'm here") })
//	return node.Run(ctx) // until ctx ends
//
// The package example is a whole program of two nodes; the Synopsis example follows
// the original's, in its order.
//
// It is event passing and no more: no replication, no storage, no agreement. Those
// are built on top, from events.
//
// # Promises
//
// Connect and disconnect: OnConnect runs once when the peer list goes from empty
// to one, OnDisconnect once when it is empty again. On adding the order is OnConnect,
// OnPeerAdded, Peers().OnAdd; on removing OnDisconnect, OnPeerRemoved,
// Peers().OnRemove, Peer.OnClose. A peer is added only when both sides see each
// other, so a broadcast sent in OnConnect reaches it. Its direct events are read
// only after the OnAdd handlers have returned. One id is one peer, however many
// connections there are.
//
// Direct events (Peer.Emit) arrive per caller in the order of the calls, at most
// once. Nil means accepted into the peer's queue; OnClose says how many were not
// written. Emit blocks while the peer is slow.
//
// Calls (Peer.Call, and typed Call) are direct events that are answered: nil means
// that the other node's handler has finished, ErrUnknownOutcome that it may have
// run. No call runs twice, and each has a deadline, ten seconds if none is given.
//
// Broadcasts arrive at every node linked to the network once and in their sender's
// order; the sender does not hear itself, and who sent an event is proven by its
// signature. Nil means accepted: encoded, numbered, stored and queued. Before the
// first peer Emit returns ErrNoPeers; when the node is alone later, what it sends is
// kept for the next peer. Emit blocks rather than overrun its neighbours. What was
// dropped on the way or sent during a cut is repaired from neighbours, which keep
// broadcasts for a while (KeepFor, KeepBytes); what none of them has any more is
// reported by OnGap. For each run of a sender, what is delivered and what is reported
// add up to what it sent.
//
// A netsplit is reported once per seed and loss, when nothing was heard of the seed
// through the overlay for two PingIntervals and the PingTimeout, and its end once.
//
// Healing: a node that lost its last peer tries its seeds and all known addresses at
// once and then after 1, 2, 4, 8, 8 ... seconds, for ever.
//
// NATs: a node behind one joins by dialing nodes that can be dialed. With Relays it can
// be linked to from behind another NAT, by HolePunching; a link is always direct, and
// ErrRelayed says that none came about.
//
// Others: a Topic takes part in a pubsub topic of any libp2p application, with exactly
// its bytes; and any pubsub peer may be on the network's own topic, where Broadcast's
// OnRaw hears what is no event.
//
// Handlers of one sender's events on one channel run one after the other, across
// names; different senders may run at the same time. No handler runs on the
// goroutine of Emit, and On, Emit and Shutdown may be used inside. A panic is
// caught, logged and counted. A slow direct handler slows down its sender alone, a slow
// broadcast handler nobody but itself.
//
// Close flushes, fires disconnect, waits for handlers and leaves nothing behind.
//
// On a host that the application lends (WithHost, WithPubSub) all of this holds, and
// what is the application's is neither changed nor closed: its streams, topics,
// connections and limits.
//
// Bad input: nothing a stranger sends can crash a node, grow its memory without
// bound or speak in another's name. Nothing fails in silence: every failure to
// join, send or deliver is found in an error, a callback, or a counter of Stats; the log,
// which shows nothing until Logger or GOLOG_LOG_LEVEL says so, tells more.
//
// docs/coverage.md names the test that proves each.
//
// # Event bus
//
// What the callbacks tell is emitted on the event bus of the libp2p host as well, in the
// same order, as EvtConnected, EvtPeerAdded, EvtNetsplit, EvtGap and so on, where other
// libp2p code looks for it:
//
//	sub, err := node.Host().EventBus().Subscribe(new(smokesignal.EvtPeerAdded))
//
// # Rooms
//
// The root wires the rooms and decides nothing by itself. Package host is the
// libp2p host, the peer list and the gate through which pubsub sees links instead
// of connections; events has named events, direct and broadcast; discovery knows
// where peers come from and which to keep; health watches whether the network is
// whole. Each has the promises of its own in its package doc.
package smokesignal
