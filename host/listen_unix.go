//go:build unix

package host

import (
	"net"
	"syscall"
)

// receiveBuffer returns the size of a socket's receive buffer in bytes, as the
// system reports it.
func receiveBuffer(c net.PacketConn) (size int, ok bool) {
	conn, ok := c.(syscall.Conn)
	if !ok {
		return 0, false
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, false
	}
	var opErr error
	err = raw.Control(func(fd uintptr) {
		size, opErr = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF)
	})
	return size, err == nil && opErr == nil
}
