// Package sim plays the overlay of up to some ten thousand nodes, in one process and
// in no time, with everything that can go wrong: crashes, silent deaths, partitions,
// nodes that cannot be dialled, that come and go, that sleep, that are slow, links that lose
// messages. What decides is the same code that runs on the wire, [overlay.State]; the
// rest is modelled. The original's rules run in the same world, as the yardstick.
//
// All that happens follows from one number, the seed: the same seed gives the same
// run, event by event, and [World.Hash] tells whether it did.
//
// The command in discovery/internal/simulate plays the cases and prints them beside
// the bars they are held to; the tests of this package hold them to those bars.
//
// # The model
//
// Time stands still while a node thinks. A message takes 5 to 45 ms, drawn for each
// pair of nodes, and up to a tenth more. Those of one node to another arrive in
// order. With loss, one has to be sent again after 200, 400, 800 ms ..., and those
// behind it wait, as on a stream.
//
// A node that has something to say to another uses the connection there is,
// whoever made it, or dials: two round trips. 24 dials are under way at most,
// the others wait; seeds are looked for beside them. Who has crashed, or runs no
// node, refuses within a round trip. Who is silent, cut off, asleep or undialable
// lets the dial fail after five seconds. When the dialled one dials back meanwhile,
// its connection serves both at once. Connections stay until something ends them;
// beyond 192 those are closed that no link needs and that are older than a minute, down
// to 160.
//
// A crash resets the connections, which the others notice one message later. A
// silent death is noticed by nobody, until the transport gives up after 30 to 40
// seconds; before that, writing to it succeeds. A partition loses all packets
// between its sides: what was written in the meantime is sent again with TCP's
// growing pauses, and arrives late if the cut was short; connections across a cut
// of more than 30 to 40 seconds are over at both ends. A link that the overlay ends
// for silence takes the connection with it, as in package discovery. A machine that
// was restarted answers what comes over its old connections with a reset.
//
// A sleeping node does nothing; what is sent to it waits in its kernel, up to 1,024
// messages, and its connections stay unless the others end them. A slow node looks at
// what has come, and at the clock, up to a second late, at all at once. An undialable
// node has an address that leads nowhere; its own dials work.
//
// Two nodes see each other on the topic a round trip after both have let the other
// in. A record is the id of a node and the time. Messages pass from machine to
// machine as they are; with Encode they are encoded, and a test shows that this
// changes nothing.
//
// The watchdog of package health is a small model of its own, see watch.go: its
// pings and answers count as messages. Sequence marks cost nothing on links that
// are idle, and the broadcasts themselves are not part of this.
//
// Left out: the time that cryptography, identify and the opening of streams take,
// limits of the operating system, addresses and the filters for them, mDNS, NAT
// other than that a node cannot be dialled, attackers, and clocks that differ.
//
// # What is measured
//
// A link stands if both ends believe in it and no partition is between them. All
// figures of parts, degrees, diameters are those of standing links between running
// nodes. "Whole after" is when the network was in one part for good, looked at five
// times a second (once, from 10,000 nodes on); a network that falls apart again
// was not whole. Every hop of a message counts as one. A dial counts, whatever comes
// of it.
package sim
