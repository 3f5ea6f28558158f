// Package overlay is the membership protocol of smokesignal: it decides which nodes a
// node is linked to. It is a state machine without I/O. [State.Step] takes one input (a
// message, a lost connection, the time) and returns outputs (send a message, look for a
// seed, report a link):
//
//	s := overlay.New(cfg)
//	for in := range inputs {
//		for _, out := range s.Step(time.Now(), in) {
//			perform(out)
//		}
//		wakeAt(s.Next(time.Now())) // with a Tick
//	}
//
// Time and randomness are arguments, so the same inputs give the same outputs, and a
// test can run a thousand nodes in seconds. Package discovery drives the state machine
// on libp2p. The command discovery/internal/simulate plays whole networks and their
// faults; docs/overlay.md has its measurements.
//
// # Links
//
// A link exists at both of its ends or at neither. One node sends [Request]; the other
// answers [Accept] or [Reject]. After Accept, each node lets the other onto the pubsub
// topic, waits until it sees the other there, and then sends [Ready]. A node that has
// both sent and received Ready is linked, and from then on a broadcast of either node
// reaches the other. If two nodes request each other at once, both requests are accepted
// and make one link. A handshake that takes longer than five seconds is given up, and
// the user hears nothing of it.
//
// Every five seconds a linked node sends [Keepalive]. After 7.5 seconds of silence a
// neighbor is suspect: the node looks for other links as if that one were gone. After
// 12.5 seconds the link ends. A keepalive for a link that does not exist is answered
// with [Leave], so half a link lasts ten seconds at most. If a link ends without a
// fault, the pair is not linked again for thirty seconds, unless one of the two would
// have no link otherwise. So the peer list does not flap.
//
// # Addresses
//
// A node remembers up to 128 known addresses, of nodes that it believes to live, and up
// to 256 lost addresses, of nodes that did not answer or were neighbors that went away.
// Every message that accepts, refuses or ends a link brings some addresses of the
// sender. Hearsay makes an address known, but never moves a lost address back to the
// known ones: only a message of the node itself does. Otherwise the living would tell
// each other of the dead for ever.
//
// Every thirty seconds, and at first every four, a [Shuffle] walks six hops over the
// links and exchanges eight addresses with the node where it ends. The reply returns
// along the same path, so a node that cannot be dialed gets its reply too.
//
// A node also checks its known addresses, one every twenty seconds, with a Shuffle of no
// hops: first the one that has not been heard for the longest time. The pause doubles,
// up to a minute, when a node answers, and halves, down to a second, when it does not.
// Lost addresses are checked as well: former neighbors after 8 seconds to a minute,
// others after half a minute to ten minutes, and at most one in two seconds. This is how
// the two sides of a cut find each other again, and how a node is found that knows
// nobody any more.
//
// # Number of links
//
// A node seeks Min links and accepts at most Max. Below Min it asks the nodes it knows:
// as many at a time as it lacks links, and one more. A request that has no answer after
// a second does not hold back others. At most eight dials are under way, or 24 while a
// node without links has not yet tried all the nodes it knows. When no known node is
// left to ask, it sends two random walks of six hops ([Walk]); a node with room at the
// end of a walk, or on the way, asks the origin for a link. A full node refuses, names
// eight other nodes, and remembers the requester as a contact for the next one. So that
// nobody is locked out, a node without links is accepted up to Max+2, and so is one that
// has long looked for a second link in vain.
//
// The full node then hands a neighbor over ([Handover]). It asks neighbor X to link to
// neighbor J, which has room, and X leaves only when that link stands. The edge X-S
// becomes the path X-J-S, so nothing is ever cut. A neighbor that is itself above Max is
// asked to leave instead. It does so only if it can spare the link, since only it knows
// how many others are leaving it at this moment.
//
// # Reordering
//
// Now and then a node A swaps: it asks a random known node C for a link, and names the
// neighbor B that it will leave for it. If C is full, C sends one of its neighbors, D,
// to B. So A-B and C-D become A-C and B-D, every node keeps its number of links, and no
// node is above Max even for a moment. A node with few links takes the new link beside
// those it has. The pause between swaps is 20 to 40 seconds when the network has just
// gathered or two parts have met, and doubles up to ten to twenty minutes. Without swaps
// a network would keep for ever the shape that the order of arrivals gave it, and two
// parts that met would be held together by a few links.
//
// # Parts
//
// Each node recognizes its part of the network by the [Tag]. The node whose id has the
// lowest hash owns the tag: every ten seconds it floods a [Beacon], its own signed
// record with a new number. When no beacon has been heard for 35 seconds, the nodes take
// turns to follow the owner within five seconds, the lowest hash first. A node that is
// met by chance, in a check or a refused request, is in another part if it has another
// tag, or the same tag with a number that differs by more than 15 seconds. Then a link
// to it may not be refused, and joins the two parts. A tag that is younger than two
// seconds is not compared.
//
// When the beacon of another part takes over, the lost addresses are tried at once. So
// the parts of a split network find each other even if every seed is dead.
//
// # Nodes without links
//
// A node without links tries all known and lost addresses and all seeds at once, and
// again after 1, 2, 4, 8, 8 ... seconds, ± 20 %, for ever. While there are links, a seed
// that was never reached is tried after 1, 2, 4 ... 30 seconds. A seed that the watchdog
// has lost is tried every 8 seconds at most, and then a link to it may not be refused. A
// seed is an address, so the driver is asked which node is there ([AskSeed]).
//
// When the node's own timer is late by six seconds, or the driver reports [Woke], the
// machine was asleep: neighbors get six seconds to be heard, and all pauses begin anew.
//
// # Finding nodes
//
// [Find] looks for a node by its id: first among the addresses that the node knows
// itself, then by a few random walks ([Lookup]) to a node that knows the address, then
// by more and longer walks. [Found] returns along the path of the walk. A walk that
// meets a neighbor of the target is passed on to the target itself, which answers and
// dials the origin.
//
// # Sources
//
// The rules follow HyParView (Leitão, Pereira, Rodrigues, DSN 2007): the links are its
// active view, the known addresses its passive view, and the walks its ForwardJoin. The
// check of the stalest address comes from Cyclon, the distrust of a node whose own timer
// was late from Lifeguard (arXiv 1707.00788), and swaps that keep the number of links
// from X-BOT (SRDS 2009). HyParView has nothing against splits; tags, lost addresses and
// the watchdog over the seeds are new. Constants name their source; those that name none
// were chosen by simulation.
package overlay
