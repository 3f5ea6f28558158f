// Package testhook holds what tests need and users do not, so that it is not on the
// pages of the public packages. Each function is set by the package that it names;
// results are of type any because this package cannot import the public ones.
package testhook

import (
	"net"
	"time"
)

// Listener takes the place of net.ListenUDP for everything that a host does over UDP,
// dialing included: a network in memory, for example. A host with a Listener has to
// listen on QUIC addresses one by one, since there are no interfaces to ask. Its dials
// come from the first address that it listens on. A Listener is safe for concurrent
// use.
type Listener func(network string, at *net.UDPAddr) (net.PacketConn, error)

var (
	// ListenUDP returns a smokesignal.Option by which a node takes its UDP sockets
	// from listen.
	ListenUDP func(listen Listener) any

	// Clock returns a smokesignal.Option by which a node takes the start of its session
	// from now, the wall clock of its machine.
	Clock func(now func() time.Time) any
)
