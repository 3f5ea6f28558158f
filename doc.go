// Package smokesignal passes events between peers: broadcast them to a whole network, or
// speak to one node. Nodes find each other through seeds, keep a few links each, and come
// back by themselves when they were cut off.
//
//	package main
//
//	import (
//		"context"
//		"fmt"
//		"log"
//		"os"
//
//		"github.com/go-smokesignal/smokesignal"
//	)
//
//	var chat = smokesignal.Name[string]("chat") // a typed event
//
//	func main() {
//		node, err := smokesignal.New(smokesignal.Seeds(os.Args[1:]...))
//		if err != nil {
//			log.Fatal(err)
//		}
//		chat.On(node.Broadcast(), func(ctx context.Context, from smokesignal.ID, text string) {
//			fmt.Println(from, text)
//		})
//		node.OnConnect(func(ctx context.Context) { chat.Emit(ctx, node.Broadcast(), "HEYO! I'm here") })
//		if err := node.Start(context.Background()); err != nil {
//			log.Fatal(err)
//		}
//		fmt.Println(node.Ticket()) // others give this as their seed
//		<-node.Done()
//	}
//
// Start it, and start it again with the ticket that the first one prints. The examples show
// whole programs: a chat, a job queue, presence, and the synopsis of the Node.js library
// smokesignal.
//
// It is event passing and no more: no replication, no storage, no agreement. Build those from
// events.
//
// # Where to look
//
//   - Node: New, Start, Ready, Close; OnConnect and the other callbacks.
//   - Broadcast, from Node.Broadcast: events to all nodes.
//   - Peer, from Node.Peer: events, calls and the link to one node. Direct, from Node.Direct:
//     events and calls that any peer sends to this node.
//   - Name and Call: events and calls with Go types, on all of these.
//   - Topic, from Node.Topic: pubsub topics of other libp2p programs.
//   - Option: everything that New takes.
//
// # Promises
//
// Connect and disconnect: OnConnect runs once when the first peer is added, OnDisconnect once
// when the last one is gone. On adding the order is OnConnect, OnPeerAdded, Peers().OnAdd; on
// removing OnDisconnect, OnPeerRemoved, Peers().OnRemove, Peer.OnClose. A peer is added only
// when both sides see each other, so a broadcast sent in OnConnect reaches it. Its direct
// events are read only after the OnAdd handlers have returned. One id is one peer, however
// many connections there are.
//
// Direct events (Peer.Emit) of one caller arrive in the order of its calls, at most once. Nil
// means accepted into the peer's queue; OnClose says how many were not written. Emit blocks
// while the peer is slow.
//
// Calls (Peer.Call, Call.Do) are direct events that are answered: nil means that the handler at
// the other node has finished, ErrUnknownOutcome that it may have run. No call runs twice, and
// each has a deadline, ten seconds if none is given.
//
// Broadcasts arrive at every node linked to the network, once and in their sender's order. The
// sender does not hear itself, and a signature proves who sent an event. Nil means accepted:
// encoded, numbered, stored and queued. Before the first peer Emit returns ErrNoPeers; while
// the node is alone later, its broadcasts are kept for the next peer. Emit blocks rather than
// overrun its neighbors. What was dropped on the way, or sent during a cut, is repaired from
// neighbors, which keep broadcasts for a while (KeepFor, KeepBytes); OnGap reports what none of
// them has any more. For each run of a sender, what is delivered and what is reported add up to
// what it sent.
//
// A netsplit is reported once per seed and loss, when nothing was heard of the seed through
// the overlay for two PingIntervals and the PingTimeout, and its end once.
//
// Healing: a node that lost its last peer tries its seeds and all known addresses at once and
// then after 1, 2, 4, 8, 8 ... seconds, for ever.
//
// NATs: a node behind one joins by dialing nodes that can be dialed. With Relays, nodes behind
// other NATs can link to it by HolePunching. A link is always direct, and ErrRelayed says that
// no direct connection came about.
//
// Other programs: a Topic takes part in a pubsub topic of any libp2p application, with exactly
// its bytes. Any pubsub peer may be on the network's own topic, where Broadcast.OnRaw hears
// messages that are not events.
//
// Handlers of one sender's events on one channel run one after the other, across names;
// different senders may run at the same time. No handler runs on the goroutine of Emit, and
// On, Emit and Shutdown may be used inside. A panic is caught, logged and counted. A slow
// direct handler slows down its sender only, a slow broadcast handler only its own node.
//
// Close flushes, fires disconnect, waits for handlers and leaves nothing behind.
//
// On a host that the application lends (WithHost, WithPubSub) all of this holds, and nothing of
// the application is changed or closed: streams, topics, connections and limits.
//
// Bad input: nothing that a stranger sends can crash a node, grow its memory without bound or
// speak in another's name. Nothing fails in silence: every failure to join, send or deliver is
// an error, a callback, or a counter of Stats. The log tells more, see Logger.
//
// docs/coverage.md names the test that proves each promise.
//
// # Event bus
//
// The callbacks of a Node are also emitted on the event bus of its libp2p host, in the same
// order, as EvtConnected, EvtPeerAdded, EvtNetsplit, EvtGap and so on, where other libp2p code
// looks for them:
//
//	sub, err := node.Host().EventBus().Subscribe(new(smokesignal.EvtPeerAdded))
//
// # Packages
//
// This package wires four others and decides nothing by itself. Package host makes the libp2p
// host; events has named events, direct and broadcast; discovery finds nodes and chooses which
// to keep; health watches whether the network is whole. They can be used on their own; each
// has promises of its own in its documentation.
package smokesignal
