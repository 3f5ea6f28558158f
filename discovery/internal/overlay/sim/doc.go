// Package sim plays the overlay of up to some ten thousand nodes, in one process and in
// virtual time, with everything that can go wrong: crashes, silent deaths, partitions,
// lost messages, and nodes that cannot be dialed, that come and go, that sleep, or that
// are slow. The decisions are made by [overlay.State], the code that real nodes run;
// everything else is a model. For comparison, the rules of the original, the Node.js
// library, run in the same world.
//
// All events follow from one number, the seed: the same seed gives the same run, event by
// event. [World.Hash] shows whether two runs were the same.
//
// The command discovery/internal/simulate plays the cases and prints each measured figure
// beside its bar, which is its limit. The tests of this package fail if a figure misses its
// bar.
//
// # The model
//
// Time stands still while a node computes. A message takes 5 to 45 ms, a time drawn for
// each pair of nodes, and up to a tenth more. Messages from one node to another arrive in
// order. If a message is lost, it is sent again after 200, 400, 800 ms ..., and later
// messages wait behind it, as on a stream.
//
// A node that sends a message uses an existing connection, whichever end made it, or
// dials, which takes two round trips. At most 24 dials of a node are under way, and others
// wait; dials of seeds do not count. A machine whose node has crashed, or was not started,
// refuses a dial within a round trip. A dial to a node that is silent, cut off, asleep or
// undialable fails after five seconds. If two nodes dial each other, both use the first
// connection as soon as it exists. A connection stays until something ends it. If a node
// has more than 192 connections, it closes connections that no link needs and that are
// older than a minute, until 160 are left.
//
// A crash resets the connections, which the peers notice one message later. A silent
// death goes unnoticed until the transport gives up after 30 to 40 seconds; before that,
// writes succeed. A partition loses all packets between its sides. Lost messages are sent
// again with the growing pauses of TCP, and arrive late if the cut was short. A
// connection across a cut of more than 30 to 40 seconds ends at both ends. A link that
// the overlay ends for silence takes its connection with it, as in package discovery. A
// machine that was restarted answers messages on its old connections with a reset.
//
// A sleeping node does nothing. Messages to it wait in its kernel, up to 1,024, and its
// connections stay unless the peers end them. A slow node handles its messages and timers
// up to a second late, all at once. An undialable node has an address that leads nowhere;
// its own dials work.
//
// Two nodes see each other on the topic a round trip after both have admitted the other.
// A record is the id of a node and the time. Messages pass between machines as they are;
// with [World.Encode] they are encoded and decoded, and a test shows that this changes
// nothing.
//
// The watchdog of package health is a small model, in watch.go; its pings and answers
// count as messages. Sequence marks cost nothing on idle links, and broadcasts are not
// part of the model.
//
// The model leaves out: the time that cryptography, identify and the opening of streams
// take, limits of the operating system, addresses and their filters, mDNS, NAT (except
// that a node can be undialable), attackers, and clocks that differ.
//
// # The figures
//
// A link counts if both ends know of it and no partition is between them. All figures of
// parts, degrees and diameters count only such links between running nodes. "Whole after"
// is the time after which the network stayed in one part, measured five times a second
// (once a second from 10,000 nodes on); a network that falls apart again was not whole.
// Every hop of a message counts as one message. A dial counts whether it succeeds or not.
package sim
