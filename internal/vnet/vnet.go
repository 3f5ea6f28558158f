// Package vnet is a network of UDP packets in memory. It is made for bubbles of
// testing/synctest, where a minute of network time takes only the time of its work:
//
//	bubble.Test(t, func(t *testing.T) {
//		network := vnet.New(vnet.Between(5*time.Millisecond, 50*time.Millisecond))
//		a, b := network.Machine("10.0.0.1"), network.Machine("10.0.0.2")
//		conn, err := a.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 8495})
//		...
//		network.Cut(func(from, to netip.Addr) bool { return from == b.IP })
//	})
//
// The network delays packets and may drop them. It does nothing else to them.
package vnet

import (
	"container/heap"
	"hash/fnv"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/go-smokesignal/smokesignal/internal/notify"
)

// maxQueued bounds the packets on their way to one socket; the rest is dropped, as
// by a full receive buffer. It is some 5 MiB.
const maxQueued = 4096

// firstFreePort is where ports that nobody asked for by number begin.
const firstFreePort = 49152

// A Network carries packets between machines. All methods may be called from
// several goroutines.
type Network struct {
	latency func(from, to netip.Addr) time.Duration

	mu      sync.Mutex
	cut     func(from, to netip.Addr) bool
	sockets map[netip.AddrPort]*socket
	order   uint64
	stats   Stats
}

// Stats counts packets since New.
type Stats struct {
	Sent    int // all of them
	Cut     int // dropped by Cut
	Lost    int // nobody had a socket there, or its buffer was full
	Sockets int // open at present
}

// New returns a network without machines. A packet takes latency, which must not
// block.
func New(latency func(from, to netip.Addr) time.Duration) *Network {
	return &Network{latency: latency, sockets: map[netip.AddrPort]*socket{}}
}

// Between is a latency that is the same for all packets between two machines, each
// way, and different for different machines: least to most.
func Between(least, most time.Duration) func(from, to netip.Addr) time.Duration {
	return func(from, to netip.Addr) time.Duration {
		if to.Less(from) {
			from, to = to, from
		}
		h := fnv.New64a()
		h.Write(from.AsSlice())
		h.Write(to.AsSlice())
		return least + time.Duration(h.Sum64()%uint64(most-least+1))
	}
}

// Cut drops each packet from now on for which dropped returns true. Nil drops no packet.
// Packets already on their way arrive. dropped is called with the network locked and must
// not block.
func (n *Network) Cut(dropped func(from, to netip.Addr) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut = dropped
}

// Stats returns the counters.
func (n *Network) Stats() Stats {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.stats
	s.Sockets = len(n.sockets)
	return s
}

// A Machine is one IP address of the network.
type Machine struct {
	IP  netip.Addr
	net *Network
}

// Machine returns the machine with that address. It panics if it is none.
func (n *Network) Machine(ip string) *Machine {
	return &Machine{IP: netip.MustParseAddr(ip), net: n}
}

// ListenUDP makes a socket, as net.ListenUDP does. An unspecified address is the
// machine's, port 0 a free one.
func (m *Machine) ListenUDP(network string, at *net.UDPAddr) (net.PacketConn, error) {
	want := at.AddrPort()
	ip := want.Addr().Unmap()
	fail := func(err error) (net.PacketConn, error) {
		return nil, &net.OpError{Op: "listen", Net: network, Addr: at, Err: err}
	}
	if at.IP != nil && !ip.IsUnspecified() && ip != m.IP {
		return fail(os.NewSyscallError("bind", syscall.EADDRNOTAVAIL))
	}
	m.net.mu.Lock()
	defer m.net.mu.Unlock()
	bound := netip.AddrPortFrom(m.IP, want.Port())
	if want.Port() == 0 {
		for bound = netip.AddrPortFrom(m.IP, firstFreePort); m.net.sockets[bound] != nil; {
			if bound.Port() == 65535 {
				return fail(os.NewSyscallError("bind", syscall.EADDRINUSE))
			}
			bound = netip.AddrPortFrom(m.IP, bound.Port()+1)
		}
	} else if m.net.sockets[bound] != nil {
		return fail(os.NewSyscallError("bind", syscall.EADDRINUSE))
	}
	s := &socket{net: m.net, at: bound, arrived: notify.NewSignal(), closed: make(chan struct{})}
	m.net.sockets[bound] = s
	return s, nil
}

// send puts a packet on its way.
func (n *Network) send(from, to netip.AddrPort, data []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.stats.Sent++
	if n.cut != nil && n.cut(from.Addr(), to.Addr()) {
		n.stats.Cut++
		return
	}
	s := n.sockets[to]
	if s == nil || len(s.queue) >= maxQueued {
		n.stats.Lost++
		return
	}
	n.order++
	heap.Push(&s.queue, packet{
		due: time.Now().Add(n.latency(from.Addr(), to.Addr())), order: n.order,
		from: from, data: append([]byte(nil), data...),
	})
	s.arrived.Set()
}
