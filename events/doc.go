// Package events is an ordered broadcast on a libp2p pubsub: every node on a topic handles the
// events of each sender once and in the order in which the sender emitted them. Events that
// pubsub loses are fetched from neighbors, which are the peers on the topic to which a node is
// connected; an event that no neighbor has any more is reported as a [Gap].
//
// Package smokesignal is made of this one and others. A program that wants a whole node starts
// there.
//
// # What order holds
//
// The events of one sender are handled one after the other, in the order in which it emitted
// them, at every node. No order holds between senders.
//
// # Can an event be lost, or come twice?
//
// An event comes once to every node that is connected to the others, directly or through
// neighbors. The sender does not hear itself. A nil error of [Broadcast.Emit] means that the
// event was encoded, numbered and queued; after any error it was not sent. An event that pubsub
// or a broken connection loses on the way is fetched from neighbors, which keep the latest
// events (StoreAge and StoreBytes of the config). For each run of a sender, counted from the
// moment at which a node first heard of it, the delivered events and the events in reported
// gaps add up to all events of that run.
//
// Messages on the topic that are not events ([Broadcast.OnRaw]) have no such promise: pubsub
// delivers each of them at most once, and nothing is repaired. Messages that this node drops
// are counted.
//
// # What a slow handler does to others
//
// A slow handler harms its own node only. Events wait for it in the store of the node; an event
// that has to make space there before the handler reached it becomes a gap. Neighbors do not
// wait for handlers. Emit waits only until the neighbors have received the events.
//
// Handlers never run on the goroutine of Emit. They may call every method, also Emit, off and
// Close. A panic of a handler is caught, logged with its stack, and counted.
//
// # How far to trust the sender
//
// Event.From is proven by a signature. Names, arguments and their sizes are checked before a
// handler sees them; what the arguments say is for the handler to check. Whatever a peer sends,
// it cannot crash the node, nor make it hold more than a bounded amount of memory.
//
// # Who owns the bytes
//
// The arguments of Emit belong to the caller again when it returns. The event that a handler
// gets, its bytes and the values that are decoded from it may be kept, but not changed, because
// other handlers share them. Keeping one small event may keep up to 32 KiB of the events around
// it in memory.
//
// # Arguments
//
// Each argument is encoded by itself: a []byte goes as it is, a proto.Message as protobuf,
// everything else as JSON, or as CBOR if the config says so. Each argument names its encoding,
// so every node reads the events of every other node. A proto.Message inside another value is
// an ordinary struct. An argument that cannot be encoded (a channel, a function, text that is
// not UTF-8, in JSON also NaN) is an error of Emit that names the argument; nothing is sent then.
package events
