//go:build !unix

package host

import "net"

func receiveBuffer(net.PacketConn) (size int, ok bool) { return 0, false }
