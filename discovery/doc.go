// Package discovery knows where peers come from and drives the membership
// protocol of package overlay on libp2p: seeds, addresses told by other nodes,
// the local network, the connections that an application makes by itself, and one long
// stream per link and direction.
//
// A [Driver] runs one goroutine that owns the state machine and all seeds. What
// happens elsewhere (frames read, dials that failed, connections lost) comes to
// it as functions to run; it never waits for the network itself. Hooks are
// called on that goroutine and must not block.
//
// On a host that punches holes, addresses behind relays are dialled too, of seeds and
// out of signed records. A connection through a relay is only waited on, for a direct
// one: no link is made over it, and nothing that comes over one is read.
//
// What a stranger can do here: his addresses are dialled only out of a record he
// signed, filtered by the class of address he speaks from, at most 24 dials at once, and
// eight more to answer who has hung up; his frames are at most 128 KiB, on at most four
// streams; contacts are bounded by the book of 128 addresses.
package discovery
