// Package health answers one question: is the network whole? It watches the
// seeds of a node through the overlay and says when one is lost and when it is
// back.
//
//	w, err := health.New(health.Config{
//		Key:          key,
//		Session:      session,
//		PingInterval: 10 * time.Second,
//		PingTimeout:  3 * time.Second,
//		Seeds:        seeds,
//		Addrs:        host.Addrs,
//		Neighbors:   links.Peers, // who is linked in the overlay
//		Flood:        links.Flood, // to all of them but one; they call Heard and Receive
//		OnNetsplit:   func(seed string) { fmt.Println("lost", seed) },
//		OnResolved:   func(seed string) { fmt.Println("back", seed) },
//	})
//	if err != nil {
//		return err
//	}
//	w.Start()
//	defer w.Close()
//
// # What is promised
//
// A netsplit is reported once for each seed and loss, when nothing was heard of
// the seed through the overlay for twice the ping interval and the ping timeout,
// and its end once, when the seed is heard again. A seed counts as heard when
// its answer to anybody's ping arrives here, when it becomes a neighbor, when
// anything comes over the link to it, and when discovery has reached it. A link that
// merely stands says nothing: one that was cut silently stands for some time.
//
// Only what was heard can be lost: a seed that this node has not heard since it
// started is not reported here; why it cannot be joined is told by discovery.
//
// Nothing is reported on a node without neighbors. It is alone, which is another
// event, and knows nothing of others; when a neighbor comes, the silence of
// every seed counts from then. What was reported before stays so until the seed
// is heard.
//
// Nothing is reported because this machine was busy or asleep. When the watchdog
// runs late by more than an interval, or the wall clock went on without the
// monotonic one, which is how sleep shows, the silence of every seed counts from
// now; when it runs late by less, an answer gets another ping timeout. And
// somebody must have asked for the seed, a ping timeout ago at least.
//
// The seeds that are this node itself are not watched.
//
// # Who is meant
//
// A seed with /p2p/ID is the node with that id, wherever it is. Any other seed is
// watched as given: whoever has its address is the seed, also after a restart
// with a new identity. So the answer to such a ping is as trustworthy as the
// members of the overlay, any of which may say that it has the address; and
// 127.0.0.1:8495 is whichever node of the overlay listens there on its own
// machine. Where that is not enough, give the id. A name is watched at
// the addresses where discovery found it last.
//
// # The protocol
//
// Signals are flooded over the links of the overlay, each node passing each on
// once, to all neighbors but the one it came from. There are two, in protobuf,
// at most 2 KiB:
//
//	message Signal { oneof kind { Ping ping = 1; Pong pong = 2; } }
//	message Ping {
//	  bytes target = 1;          // peer id, if it is known
//	  repeated bytes addrs = 2;  // multiaddrs, 16 at most, IP address and port count
//	  bytes origin = 3;          // peer id of who asks
//	  bytes session = 4;         // 8 bytes, random for each run of origin
//	  uint64 counter = 5;        // rises with each signal of origin
//	  uint32 interval = 6;       // ping interval of origin in milliseconds
//	  bytes signature = 7;       // always the last field
//	}
//	message Pong {
//	  repeated bytes addrs = 2;  // where the answerer is; those asked for first
//	  bytes answerer = 3;
//	  bytes session = 4;
//	  uint64 counter = 5;
//	  bytes ping_origin = 6;     // which ping is answered
//	  bytes ping_session = 7;
//	  uint64 ping_counter = 8;
//	  bytes signature = 9;       // always the last field
//	}
//
// The signature is made with the key inside the sender's peer id, over the text
// "smokesignal/health/1.0.0 ping" or "... pong", a zero byte, and all bytes of
// the message before the signature field, fields unknown to the reader included.
// Counters begin with the milliseconds of the clock, so they rise from run to
// run.
//
// One ping serves all. A node which has heard of a seed stays silent for 1 to 1.5
// intervals, a random time. If nobody has asked by then, it asks; when somebody
// does, it counts that as asked by itself and waits for the answer, for the ping
// timeout and 33/64 of an interval at least, then asks if there was none. Where the
// interval is longer than the pause between two keepalives of a link, a neighbor of
// the seed need not ask.
// A node passes on one ping for the same target in half an interval (its own or
// that of who asks, the shorter). The target does not pass the ping on: it floods
// a pong, one in that time. All who watch it count the pong, whoever asked. So a
// seed costs two floods an interval, however many watch it.
//
// # What a stranger can do
//
// Nothing without a link. A linked peer is heard a hundred times a second at
// most. What is malformed, forged, or known is not passed on; that a signal is
// known is remembered only when its signature was good, for the last 4096. An
// old answer of a seed whose id is known is recognized by its counter, unless it
// answers this node's own last ping. No address in a signal is ever dialed.
package health
