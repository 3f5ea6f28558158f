// Package gate shows pubsub the links of a node in place of all its connections.
//
// Floodsub sends to every connected peer that announced the topic, and asks no filter.
// So it is given [Gate.Host], a host on which only admitted peers exist:
//
//	g := gate.New(h, gate.Config{})
//	ps, err := pubsub.NewFloodSub(ctx, g.Host())
//	g.SetAdmission(p, gate.Admission{Linked: true}) // pubsub opens its stream to p, and accepts the one of p
//	g.SetAdmission(p, gate.Admission{})             // both streams are reset, and p is gone for pubsub
//
// Package peers decides which peers are admitted: those with links, and guests.
//
// Both ends have to admit each other, and one of them is first. So the stream of a peer
// that is not admitted yet is kept for two seconds, and a stream that was refused or
// broke is opened again for as long as its peer is admitted and connected.
//
// A peer that is connected through a relay only does not exist for pubsub, admitted or
// not, until there is a direct connection to it.
//
// The gate also prevents some failures of pubsub:
//
//   - Topics are announced once per stream, and pubsub forgets the topics of a peer when
//     its own stream to the peer ends. So the gate hands over the peer's stream only
//     while pubsub holds one to that peer, and resets it when that one ends. (It follows
//     that messages go to a peer as soon as the peer is seen on a topic.)
//   - Pubsub gives up on a peer after four streams that ended within ten minutes. So a
//     peer does not exist for pubsub between two streams. When a stream breaks and its
//     peer is still admitted, the gate opens another and repeats the announcement on it,
//     unseen by pubsub. A peer that ends its stream between two RPCs may continue with
//     another.
//   - Pubsub writes each message by itself. It queues without bound for a peer that reads
//     nothing, and after thirty seconds loses the whole queue. The gate writes messages
//     that follow closely together, and holds at most [Config.MaxPending]. Messages for a
//     peer that has read nothing for [Config.StallTimeout] are dropped and counted until
//     it reads again. Nobody has asked a guest to keep up, so its messages are dropped as
//     soon as MaxPending is reached.
//   - Pubsub resets a stream on which an RPC of more than 1 MiB arrives. Some peers send
//     such RPCs, and few recover from the reset. The gate leaves them out.
package gate
