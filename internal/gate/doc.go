// Package gate hides from pubsub the peers that a node does not want to exchange broadcasts
// with, so that pubsub uses the node's links and not all its connections.
//
// Floodsub sends to every connected peer that announced the topic, and offers no filter.
// So it gets [Gate.Host], a host on which only admitted peers exist:
//
//	g := gate.New(h, gate.Config{})
//	ps, err := pubsub.NewFloodSub(ctx, g.Host())
//	g.SetAdmission(p, gate.Admission{Linked: true}) // pubsub opens a stream to p, and accepts a stream from p
//	g.SetAdmission(p, gate.Admission{})             // both streams are reset, and pubsub forgets p
//
// Package peers decides which peers are admitted: those with links, and guests.
//
// Both ends have to admit each other, and one of them does so first. So the gate keeps a
// stream from a peer that is not admitted yet for two seconds, and opens a stream that was
// refused or broke again, for as long as its peer is admitted and connected.
//
// A peer that is connected only through a relay is hidden from pubsub, even if it is
// admitted, until there is a direct connection to it.
//
// The gate also prevents some failures of pubsub:
//
//   - A peer announces its topics once per stream, and pubsub forgets the topics of a peer
//     when pubsub's own stream to the peer ends. So the gate passes the peer's stream to
//     pubsub only while pubsub has a stream to the peer, and resets it when the latter
//     ends. (So pubsub sends messages to a peer as soon as it knows the peer's topics.)
//   - Pubsub gives up on a peer after four streams that ended within ten minutes. So the
//     gate hides a broken stream: while the peer is admitted, it opens another stream and
//     repeats the announcement of topics on it, unseen by pubsub. A peer that ends its
//     stream between two RPCs (pubsub's messages on the wire) may continue with another.
//   - Pubsub makes one write per message. For a peer that reads nothing, it queues without
//     limit, and after thirty seconds loses the whole queue. The gate writes messages that
//     follow each other closely with one write, and queues at most [Config.MaxPending]
//     bytes. It drops and counts the messages for a peer that has read nothing for
//     [Config.StallTimeout], until the peer reads again. A guest never agreed to keep up,
//     so messages for it are dropped as soon as MaxPending is reached.
//   - Pubsub resets a stream on which an RPC of more than 1 MiB arrives. Some peers send
//     such RPCs, and few recover from the reset. The gate removes these RPCs.
package gate
