// Package overlay is the membership protocol of smokesignal: it decides which
// nodes a node is linked to. It is a state machine without I/O: [State.Step]
// takes what happened (a message, a lost connection, the time) and returns what
// has to be done (send, look for a seed, tell the user). Time and randomness are
// handed in, so the same inputs give the same outputs and a thousand nodes run
// in seconds in a test. Package discovery drives it on libp2p. The command
// simulate beside it plays whole networks and their misfortunes; docs/overlay.md
// has what it measured.
//
// # Links
//
// A link exists in the heads of both its ends or in neither. The asker sends
// [Request]; the other answers [Accept] or [Reject]. From Accept on both let each
// other onto the pubsub topic and wait until they see the other there; each says
// so once, with [Ready]. Who has both sent and received Ready is linked: now
// a broadcast of either reaches the other. Two requests that cross are two
// accepts, so dialling each other at once makes one link. A handshake which
// takes longer than five seconds is given up, without a word to the user.
//
// Every five seconds a linked node sends [Keepalive]. After 7.5 seconds of silence
// a neighbour is suspect: the node looks for others as if the link were gone. After
// 12.5 it is. A keepalive from a node that is not linked is answered with [Leave],
// so a half link lives ten seconds at most. A pair that parted without a fault does
// not link again for thirty seconds, unless one of the two would be alone
// otherwise: the peer list does not flap.
//
// # Addresses
//
// A node keeps up to 128 known addresses, those of which it believes that somebody
// is there, and up to 256 lost ones, which did not answer or were neighbours that
// went away. Every message that accepts, refuses or ends a link brings some of the
// other's. What others tell makes an address known, but never moves a lost one back
// to the known: only the node itself does, by being heard. Otherwise the living
// would tell each other of the dead for ever.
//
// Every thirty seconds, at first every four, a [Shuffle] walks six hops over the
// links and exchanges eight addresses with the node where it ends; the reply goes
// back the way it came, so a node that cannot be dialled gets its reply too. And
// every twenty seconds the known address of which nothing was heard for longest is
// checked, by a Shuffle of no hops. The pause doubles up to a minute when it
// answers and halves down to a second when not. Lost addresses are checked too,
// former neighbours after 8 seconds to a minute, others after half a minute to ten,
// one in two seconds at most. This is how the two sides of a cut find each other
// again, and how a node is found that knows nobody any more.
//
// # How many
//
// A node wants min links and takes at most max. Below min it asks the addresses
// it knows, as many at a time as it lacks and one more; a request that has no
// answer after a second holds back no other. Eight dials are under way at most, and
// 24 while a node that is alone has not yet tried all it knows. When nobody it knows
// is worth a try it sends two random walks of six hops ([Walk]), and who has room at
// the end of one, or on the way, asks back. A full node refuses with the addresses of
// eight others, and remembers whom it refused, to send the next one there. So that nobody is locked out, a node that is alone is
// taken up to max+2, and so is one that has looked for a second link in vain.
//
// The full node then hands a neighbour over ([Handover]): it asks neighbour X to
// link to neighbour J, which has room, and X leaves only when that link stands. The
// edge X-S becomes the path X-J-S, so nothing is ever cut. A neighbour that also has
// more than max is asked to leave instead; it does so only if it can spare the link,
// since only it knows how many others are leaving it at this moment.
//
// # Reorder
//
// Now and then a node swaps: it asks a random known node C for a link, and names
// the neighbour B it will leave for it. If C is full it sends one of its neighbours,
// D, to B. So A-B and C-D become A-C and B-D, every node keeps its number of links,
// and nobody is above max even for a moment. A node with few links takes the link
// beside those it has. The pause is 20 to 40 seconds when the network has just
// gathered or two parts have met, and doubles up to ten to twenty minutes. Without
// this a network remembers for ever in which order its nodes came, and two parts
// that met hang together by a few links.
//
// # Parts
//
// Each node tells its part of the network by the [Tag]. The node whose id has the
// lowest hash owns it: every ten seconds it floods a [Beacon], its own signed record
// with a new number. When a beacon is not heard for 35 seconds the nodes take
// turns to follow its owner, the lowest hash first, within five seconds. A node
// that is met by chance, in a check or a refused request, is in another part
// if it has another tag, or the same one with a number that is older or newer by
// more than 15 seconds: then a link to it may not be refused, and joins the two. A
// tag that is younger than two seconds says nothing yet.
// When the beacon of another part takes over, the lost addresses are tried at once.
// So the parts of a split network find together when every seed is dead.
//
// # Alone
//
// A node without links tries all known and lost addresses and all seeds at once, and
// again after 1, 2, 4, 8, 8 ... seconds, give or take a fifth, for ever. While there
// are links, a seed that was never reached is tried after 1, 2, 4 ... 30 seconds,
// and one that the watchdog has lost up to each 8; then a link to it may not be
// refused. Seeds are addresses, so the driver is asked who is there ([AskSeed]).
//
// When the node's own timer is late by six seconds, or the driver says [Woke], the
// machine was asleep: links get six seconds to be heard, and all pauses begin anew.
//
// # Finding nodes
//
// [Find] looks for any node by its id: among what the node knows itself, then by a few
// random walks ([Lookup]) to whoever knows the address, then by more and longer ones.
// [Found] goes back the way the walk came. A walk that meets a neighbour of the
// target is passed on to the target itself, which answers and calls back.
//
// # Sources
//
// The rules follow HyParView (Leitão, Pereira, Rodrigues, DSN 2007): the links
// are its active view, the known addresses its passive view, the walks its
// ForwardJoin. That the oldest address is checked is Cyclon's idea, that a node
// distrusts itself first when its timer was late that of Lifeguard (arXiv
// 1707.00788), that a swap keeps degrees that of X-BOT (SRDS 2009). HyParView has
// nothing against splits; tags, lost addresses and the watchdog over the seeds are
// ours. Constants name their source where they stand; where none is named they were
// found in the simulator.
package overlay
