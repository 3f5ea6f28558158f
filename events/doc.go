// Package events passes named events between the nodes of a network: to one
// peer over a stream of its own (Direct), and to all over a floodsub topic
// (Broadcast). Both take the place of an event emitter that reaches into other
// processes:
//
//	there := events.NewDirect(hostB, events.DirectConfig{})
//	there.On("greet", func(ctx context.Context, ev *events.Event) {
//		var who string
//		if err := ev.Decode(&who); err != nil {
//			return
//		}
//		there.Emit(ctx, ev.From, "thanks", who, 42) // any number of arguments
//	})
//	there.Start()
//	defer there.Close(ctx)
//
//	here := events.NewDirect(hostA, events.DirectConfig{})
//	here.On("thanks", func(ctx context.Context, ev *events.Event) {
//		var who string
//		var n int
//		err := ev.Decode(&who, &n)
//		fmt.Println(who, n, err)
//	})
//	here.Start()
//	defer here.Close(ctx)
//
//	err := here.Emit(ctx, hostB.ID(), "greet", "Ada")
//
// Package smokesignal is made of this one and others; a program that wants a
// whole node starts there.
//
// # What order holds
//
// Direct events of one caller arrive in the order of its calls, across names
// and also when a stream broke in between. Events of callers that run at the
// same time arrive in some order of theirs. At the receiver, the events of one
// peer are handled one after the other, in that order; those of different
// peers may be handled at the same time.
//
// Broadcast events of one sender are handled one after the other, in the order
// in which it emitted them, at every node. No order holds between senders, nor
// between a sender's broadcast and its direct events.
//
// # Can an event be lost, or come twice?
//
// A direct event never comes twice. A nil error of Emit means that it was
// accepted into the peer's queue, not that it arrived: it is lost if the link
// ends before it was written ([Direct.Release] returns how many were), or if
// it was on its way when a stream broke. Events that were still queued then go to
// the next stream. After any error of Emit the event is not sent.
//
// A call ([Direct.Call]) is an event that is answered. Its nil error means that the
// other handler has finished. ErrUnknownOutcome means that it may have run: the
// request had left when ctx ended, the stream broke, or this side closed. It
// never runs twice, and after any other error it has not run and will not,
// except for ErrRemoteHandler (it ran and failed) and ErrUndecodable (its answer
// has other results than expected). Every call has a deadline, ten seconds if its ctx
// has none.
//
// A broadcast comes once to every node that is linked to the network; the
// sender does not hear itself. A nil error means that it was encoded, numbered
// and queued. A broadcast that pubsub or a cut link loses on the way is fetched
// from neighbors, which keep the latest broadcasts ([BroadcastConfig.StoreAge]).
// One that none of them has any more is reported as a [Gap], in its place. For each
// run of a sender, from where a node first heard of it, its delivered
// events and its reported gaps add up to all events that it sent.
//
// Bytes that are published raw, on a [Topic] that others made or beside the events of a
// Broadcast ([Broadcast.OnRaw]), have no such promise: pubsub delivers them at most once,
// and nothing is repaired. Messages that this node drops are counted.
//
// # What a slow handler does to others
//
// A handler that takes its time with a direct event holds back the peer that
// sent it, and no other peer: this node stops reading from that peer, whose
// queue fills, whose Emit then waits. So no memory fills up, and it also means
// that two nodes which flood each other from their handlers can come to wait
// for each other. Therefore Emit does not wait forever: it gives up with its
// ctx, or with [ErrStalled] when for ten seconds nothing could be written.
//
// A call waits in the turn of its caller's events, but its answer waits for no
// handler: a handler may call the node whose event it handles. Two handlers that
// call each other's nodes at the same time, each in the other's turn, wait until
// one of the calls ends with its deadline.
//
// A slow handler of a broadcast hurts its own node only: events wait for it in
// the node's store, and an event that has to make room there before the handler
// reached it becomes a gap. Neighbors do not wait for handlers. Emit waits for room,
// which neighbors make by receiving the events, see [Broadcast.Emit].
//
// Handlers never run on the goroutine of Emit. They may use everything here,
// Emit, On, off and Close included. A panic of one is caught, logged with its
// stack, and counted.
//
// # How far to trust the sender
//
// Event.From is proven, by the connection for a direct event and by a
// signature for a broadcast. That the sender means well is not: names,
// arguments and their sizes are bounded before they get here, what they say is
// for the handler to check. Whatever a stranger sends, it cannot make this
// node crash or hold more than a bounded amount of memory; it is counted
// (see [DirectStats]) and logged at debug level.
//
// # Who owns the bytes
//
// The arguments of Emit and Call belong to the caller again when they return:
// they were encoded into a pooled buffer that is the queue's. What a handler gets,
// the event, its bytes and the values decoded from it, is not used again and may
// be kept, but not changed, as other handlers share it. Keeping a small event may
// keep up to 32 KiB of the events around it in memory. Only the
// OnBorrowed methods are different: their events end with the handler and cost no
// allocation. Of a Direct the bytes end, too; of a Broadcast they may be kept, and keep
// the whole message, up to 768 KiB.
//
// # Arguments
//
// Each argument is encoded by itself: a []byte goes as it is, a proto.Message
// as protobuf, everything else by the [Codec] of the node that sends it, which
// is JSON unless the Config says CBOR. Each says how it was encoded, so every
// node reads every other. A proto.Message inside another value is an ordinary
// struct to the codec. What cannot be encoded (in JSON NaN, a channel, a
// function, text that is not UTF-8) is an error of Emit that names the argument;
// nothing is sent then.
package events
