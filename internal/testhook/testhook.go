// Package testhook holds options of a node that tests of other packages need and
// users do not. Package smokesignal sets them, as it alone can make its options.
package testhook

import "net"

// ListenUDP returns a smokesignal.Option by which a node takes its UDP sockets from
// listen instead of the system, as host.Config says.
var ListenUDP func(listen func(network string, at *net.UDPAddr) (net.PacketConn, error)) any
