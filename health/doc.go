// Package health answers one question: is the network whole? It watches the seeds of a
// node through the overlay and reports when one is lost and when it is back.
//
//	w, err := health.New(health.Config{
//		Key:          key,
//		PingInterval: 10 * time.Second,
//		PingTimeout:  3 * time.Second,
//		Seeds:        seeds,
//		Addrs:        host.Addrs,
//		Neighbors:    links.Peers, // the peers linked in the overlay
//		Flood:        links.Flood, // to all of them but one; there, Heard and Receive are called
//		OnNetsplit:   func(seed string) { fmt.Println("lost", seed) },
//		OnResolved:   func(seed string) { fmt.Println("back", seed) },
//	})
//	if err != nil {
//		return err
//	}
//	w.Start()
//	defer w.Close()
//
// # Promises
//
// A netsplit is reported once for each seed and loss: when nothing was heard of the
// seed through the overlay for twice the ping interval plus the ping timeout. Its end
// is reported once, when the seed is heard again. A seed is heard when its answer to
// anybody's ping arrives, when it becomes a neighbor, when anything arrives over the
// link to it, and when discovery has reached it. The existence of a link proves
// nothing: a link that was cut without a word exists for some time.
//
// Only a seed that was heard can be lost. A seed that this node has not heard since it
// started is not reported here; discovery reports why it cannot be joined.
//
// A node without neighbors reports nothing. It is alone, which is another event, and
// knows nothing of others. When a neighbor comes, the silence of every seed is counted
// from that moment. A netsplit that was reported before stays one until the seed is
// heard.
//
// Nothing is reported because this machine was busy or asleep. The silence of every
// seed is counted anew when the watchdog runs late by more than an interval, or when
// the wall clock went on without the monotonic one, as it does during sleep. When it
// runs late by less, but by more than half a ping timeout, answers get another ping
// timeout. (Lateness of up to 100 ms is usual and has no effect.) And no seed is lost
// unless somebody has pinged it at least a ping timeout ago.
//
// Seeds that are this node itself are not watched.
//
// # Which node a seed is
//
// A seed with /p2p/ID is the node with that id, wherever it is. Any other seed is
// whichever node has its address, also after a restart with a new identity. So the
// answer to such a ping is as trustworthy as the members of the overlay, each of which
// can claim the address; and 127.0.0.1:8495 is any node of the overlay that listens
// there on its own machine. Give the id where that is not enough. A name is watched at
// the addresses where discovery found it last.
//
// # The protocol
//
// Signals are flooded over the links of the overlay: each node forwards each signal
// once, to all neighbors but the one from which it arrived. There are two kinds, in
// protobuf and of at most 2 KiB:
//
//	message Signal { oneof kind { Ping ping = 1; Pong pong = 2; } }
//	message Ping {
//	  bytes target = 1;          // peer id, if it is known
//	  repeated bytes addrs = 2;  // multiaddrs, 16 at most, IP address and port count
//	  bytes origin = 3;          // peer id of the node that asks
//	  bytes session = 4;         // 8 bytes, random for each run of origin
//	  uint64 counter = 5;        // rises with each signal of origin
//	  uint32 interval = 6;       // ping interval of origin in milliseconds
//	  bytes signature = 7;       // always the last field
//	}
//	message Pong {
//	  repeated bytes addrs = 2;  // of the answerer; those asked for first
//	  bytes answerer = 3;
//	  bytes session = 4;
//	  uint64 counter = 5;
//	  bytes ping_origin = 6;     // the ping that is answered
//	  bytes ping_session = 7;
//	  uint64 ping_counter = 8;
//	  bytes signature = 9;       // always the last field
//	}
//
// The signature is made with the key inside the sender's peer id. It covers the text
// "smokesignal/health/1.0.0 ping" or "... pong", a zero byte, and all bytes of the
// message before the signature field, fields that the reader does not know included.
// Counters begin with the milliseconds of the clock, so they rise from run to run.
//
// One ping serves all nodes. A node that has heard of a seed stays silent for 1 to 1.5
// intervals, a random time. If no ping for the seed was seen by then, it sends one. If
// another node's ping is seen, the node waits for the answer to that, for the ping
// timeout and at least 33/64 of an interval, and sends a ping only if there was none.
// Where the interval is longer than the pause between two keepalives of a link, a
// neighbor of the seed need not ask at all. A node forwards one ping for the same
// target in half an interval (its own interval or the sender's, the shorter one). The
// target does not forward the ping. It floods a pong, one in that time. All nodes that
// watch the target count the pong, whoever asked. So a seed costs two floods per
// interval, however many nodes watch it.
//
// # What an attacker can do
//
// Nothing without a link. Of a linked peer, a hundred signals per second are read at
// most. A malformed, forged or known signal is not forwarded. The last 4096 signals are
// remembered, and only those whose signature was valid. An old answer of a seed whose
// id is known is recognized by its counter, unless it answers this node's own last
// ping. No address in a signal is ever dialed.
package health
