//go:build !unix

package host

import "net"

func receiveBuffer(*net.UDPConn) (size int, ok bool) { return 0, false }
