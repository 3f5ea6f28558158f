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
// and make one link. A handshake that takes longer than five seconds is given up
// without a callback to the user.
//
// Every five seconds a linked node sends [Keepalive]. A neighbor that was silent for 7.5
// seconds is suspect: its link no longer counts, so the node looks for a replacement.
// After 12.5 seconds of silence the link ends. A keepalive for a link that does not exist
// is answered with [Leave], so a link that only one end knows of lasts ten seconds at
// most. If one of two nodes ended their link by decision and not because of a fault, the
// two are not linked again for thirty seconds, unless one of them has no other link. So
// the peer list does not flap.
//
// # Addresses
//
// A node remembers up to 128 known addresses, of nodes that it believes to be alive, and
// up to 256 lost addresses, of nodes that did not answer and of former neighbors whose
// links broke. Every message that accepts, refuses or ends a link brings some of the
// addresses that its sender knows. An address that another node passed on becomes a known
// address, unless it is a lost one: only a message from the node itself makes its address
// known again. Otherwise live nodes would pass the addresses of dead ones around for ever.
//
// Every thirty seconds, and at first every four, a [Shuffle] walks six hops over the
// links and exchanges eight addresses with the node where it ends. The reply returns
// along the same path, so a node that cannot be dialed gets its reply too.
//
// A node also checks its known addresses, one every twenty seconds, with a Shuffle of no
// hops. The node that has been silent for the longest time is checked first. The pause
// doubles, up to a minute, when the checked node answers, and halves, down to a second,
// when it does not. Lost addresses are checked as well: former neighbors after 8 seconds
// to a minute, others after half a minute to ten minutes, and at most one in two seconds.
// This is how the two sides of a cut find each other again, and how a node that has lost
// all addresses is found by others.
//
// # Number of links
//
// A node seeks Min links and accepts at most Max. Below Min it asks the nodes it knows:
// as many at a time as it lacks links, and one more. A request that has no answer after
// a second does not hold back others. At most eight dials are under way, or 24 while a
// node without links has not yet tried all the nodes it knows. When it has asked all
// known nodes, it sends two random walks of six hops ([Walk]); a node with room at the
// end of a walk, or on the way, asks the origin for a link. A full node refuses, names
// eight other nodes, and remembers the requester, which it will name to later requesters.
// So that nobody is locked out, two requesters are accepted up to Max+2: a node without
// links, and a node that has one link and has long found no second one.
//
// A node S above Max then hands a neighbor over ([Handover]). It asks its neighbor X to
// link to its neighbor J, which has room. X ends its link to S only when the link to J
// exists. The edge X-S becomes the path X-J-S, so the network is never cut. A neighbor
// that is itself above Max is asked to leave instead. It does so only if it has more
// links than Min, since only it knows how many other links it is losing at this moment.
//
// # Reordering
//
// Now and then a node A swaps: it asks a random known node C for a link, and names the
// neighbor B that it will leave in exchange. If C is full, C ends the link to one of its
// neighbors, D, and sends D to B. So the links A-B and C-D become A-C and B-D, every node
// keeps its number of links, and no node is above Max even for a moment. A node with few
// links adds the new link and leaves nobody. The pause between swaps is 20 to 40 seconds
// when the network has just gathered or two parts have met, and doubles up to ten to
// twenty minutes. Without swaps a network would keep for ever the shape that the order of
// arrivals gave it, and two parts that met would be held together by a few links.
//
// # Parts
//
// A part is a set of nodes that links connect. A network that is cut has several. Nodes
// of one part share a [Tag]. The node whose id has the lowest hash owns the tag: every
// ten seconds it floods a [Beacon], its own signed record with a new number. When no
// beacon has been received for 35 seconds, the other nodes become the owner in turns, the
// lowest hash first, within five seconds; the first one is heard by the others, which
// then do not take their turn. Two nodes without a link meet by chance, in a check or a
// refused request. They are in different parts if their tags have different owners, or
// one owner and numbers that are more than 15 seconds apart. Then a request for a link
// between them may not be refused, since that link joins the two parts. A tag that is
// younger than two seconds is not compared.
//
// When a node adopts the beacon of another part, it tries its lost addresses at once. So
// the parts of a split network find each other even if every seed is dead.
//
// # Nodes without links
//
// A node without links tries all known and lost addresses and all seeds at once, and
// again after 1, 2, 4, 8, 8 ... seconds, ± 20 %, for ever. A node with links tries a seed
// that was never reached after 1, 2, 4 ... 30 seconds. A seed that the watchdog no longer
// hears is tried after 1, 2, 4, 8, 8 ... seconds, and the seed may not refuse the request
// for a link. A seed is an address, so the driver is asked which node is there ([AskSeed]).
//
// When the node's own timer is late by six seconds, or the driver reports [Woke], the
// machine was asleep. Then each neighbor has six seconds to send something before its link
// ends, and all pauses begin anew.
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
// check of the stalest address comes from Cyclon. The rule that a node with a late timer
// distrusts itself comes from Lifeguard (arXiv 1707.00788). Swaps that keep the number of
// links come from X-BOT (SRDS 2009). HyParView has nothing against splits; tags, lost
// addresses and the watchdog over the seeds are new. A constant names its source;
// constants without a source were chosen by simulation.
package overlay
