// Package overlay is the membership protocol of smokesignal: it decides which
// nodes a node is linked to. It is a state machine without I/O: [State.Step]
// takes what happened (a message, a lost connection, the time) and returns what
// has to be done (send, dial the seeds, tell the user). Time and randomness are
// handed in, so the same inputs give the same outputs and a thousand nodes run
// in a second in a test. Package discovery drives it on libp2p.
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
// Every five seconds a linked node sends [Keepalive]. Silence of 12.5 seconds
// ends the link, and a keepalive from a node that is not linked is answered with
// [Leave], so a half link lives ten seconds at most. A pair that parted without a
// fault does not link again for thirty seconds, unless one of the two would be
// alone otherwise: the peer list does not flap.
//
// # How many
//
// A node wants min links and takes at most max. Below min it asks the addresses
// it knows; when it knows none that is worth a try it sends two random walks of
// six hops ([Walk]), and who has room at the end of one, or on the way, asks back.
// A full node refuses with the addresses of eight others. So that nobody is
// locked out, a node that is alone is taken up to max+2; the full node then
// hands one neighbour over ([Handover]): it asks neighbour X to link to
// neighbour J, which has room, and X leaves only when that link stands. The edge
// X-S becomes the path X-J-S, so nothing is ever cut. Two neighbours that both have more than max
// part at once. If nobody follows the request within twenty seconds the neighbour
// with the most links is left. A node tells its neighbours soon when the number of
// its links changes, as they judge by it whom they can spare.
//
// # Alone
//
// A node without links tries all known addresses and, through the driver, all
// seeds at once, and again after 1, 2, 4, 8, 8 ... seconds, give or take a fifth.
//
// The rules follow HyParView (Leitão, Pereira, Rodrigues, DSN 2007): the links
// are its active view, the known addresses its passive view, the walks its
// ForwardJoin. Constants name their source where they stand.
package overlay
