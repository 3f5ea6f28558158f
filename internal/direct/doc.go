// Package direct sends events and calls to single peers, over libp2p streams of its own.
// The methods of Node.Direct and Peer in package smokesignal are a view of it.
//
// # Order
//
// The direct events of one caller arrive in the order of its calls, also across names, and
// also when a stream broke in between. Events of callers that run at the same time arrive in
// some order. The receiver handles the events of one peer one after the other, in that order;
// it may handle those of different peers at the same time.
//
// # Can an event be lost, or come twice?
//
// A direct event never comes twice. A nil error of Emit means that the event was accepted into
// the queue of the peer, not that it arrived. An accepted event is lost if the link ends before
// it was written ([Direct.Release] returns how many were lost so), or if it was on its way when
// a stream broke. Events that were still queued then go to the next stream. After any error of
// Emit the event is not sent.
//
// A call ([Direct.Call]) is an event that is answered. A nil error means that the handler at
// the other node has finished. ErrUnknownOutcome means that the handler may have run: the
// request had left when ctx ended, when the stream broke, or when this side closed. A call
// never runs twice. After any other error it has not run and will not run, except for
// ErrRemoteHandler (it ran and failed) and ErrUndecodable (the answer has other results than
// expected). Every call has a deadline, ten seconds if its ctx has none.
//
// # Slow handlers
//
// A slow handler holds back the peer whose event it handles, and no other peer: this node stops
// reading from that peer, the queue at that peer fills, and Emit there waits. So memory is
// bounded. But two nodes whose handlers flood each other can come to wait for each other, so
// Emit does not wait forever: it gives up when its ctx ends, and with [ErrStalled] when nothing
// could be written for ten seconds.
//
// A call waits in the order of the events of its caller, but its answer waits for no handler:
// so a handler may call the node whose event it handles. Two handlers that call each other's
// nodes at the same time, each while the other waits, wait until one of the calls ends with
// its deadline.
//
// # Trust and memory
//
// The sender of an event is proven by its connection. Names, arguments and sizes are checked
// before a handler sees them. Whatever a peer sends, it cannot crash the node, nor make it hold
// more than a bounded amount of memory.
//
// The arguments of Emit and Call belong to the caller again when they return. The event that a
// handler gets, its bytes and the values that are decoded from it may be kept, but not changed,
// because other handlers share them. Keeping one small event may keep up to 32 KiB of the events
// around it in memory. Events of [Direct.OnBorrowed] are different: they and their bytes are
// used again when the handler returns, and cost no allocation.
package direct
