// Package vnet simulates a network of UDP packets in memory. It is made for tests in the
// virtual time of testing/synctest, which does not wait while packets are on their way:
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

// maxQueued is the largest number of packets on their way to one socket, about 5 MiB of them.
// Further packets are dropped, as in a full receive buffer.
const maxQueued = 4096

// firstFreePort is the lowest port that a socket gets if it is bound to port 0.
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
	Sent    int // all packets sent
	Cut     int // packets dropped by Cut
	Lost    int // packets dropped because there was no socket at the address, or its queue was full
	Sockets int // the number of sockets that are open now
}

// New returns a network without machines. latency returns the time that a packet takes from
// one machine to another. It must not block.
func New(latency func(from, to netip.Addr) time.Duration) *Network {
	return &Network{latency: latency, sockets: map[netip.AddrPort]*socket{}}
}

// Between returns a latency function for New. Each pair of machines gets a latency between
// least and most, which is always the same and holds in both directions.
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

// Machine returns the machine with the given IP address. It panics if ip is not an IP address.
func (n *Network) Machine(ip string) *Machine {
	return &Machine{IP: netip.MustParseAddr(ip), net: n}
}

// ListenUDP makes a socket, like net.ListenUDP. An unspecified IP address means the address of
// the machine, and port 0 a free port.
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

// send queues a packet at the receiving socket, or drops it.
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
