// Package testhook gives tests access to options that users do not need, so that these do not
// appear in the documentation of the public packages. Each variable holds a function, which the
// package that has the option sets. Results are of type any, because this package cannot import
// the public ones.
package testhook

import (
	"net"
	"time"
)

// A Listener replaces net.ListenUDP for all UDP traffic of a host, dials included, for example
// with a network in memory. A host with a Listener must list the QUIC addresses that it listens
// on, because it has no network interfaces. It dials from the first of them. A Listener must be
// safe for concurrent use.
type Listener func(network string, at *net.UDPAddr) (net.PacketConn, error)

var (
	// ListenUDP returns a smokesignal.Option by which a node takes its UDP sockets
	// from listen.
	ListenUDP func(listen Listener) any

	// Clock returns a smokesignal.Option with which a node reads the wall clock from now. The
	// node needs it for the start time of its session.
	Clock func(now func() time.Time) any
)
