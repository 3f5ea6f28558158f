package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/internal/testhook"
)

// lookupTimeout bounds the lookup of a name in Listen.
const lookupTimeout = 5 * time.Second

// portTries is the number of tries to find a port that is free for all sockets of a group.
// Usually fewer than half of the ports are in use, so a few tries are enough.
const portTries = 32

// A ListenError is returned by [Host.Listen]. errors.Is finds the causes in it, such as
// syscall.EADDRINUSE.
type ListenError struct {
	// Failed has one entry for each address that could not be bound. It is not empty. The
	// other addresses were released.
	Failed []BindError
}

// A BindError says why one address could not be bound.
type BindError struct {
	Text string       // as it was configured
	Addr ma.Multiaddr // the address that could not be bound, one of those that Text means; nil if Text could not be turned into addresses
	Err  error
}

func (e *ListenError) Error() string {
	var texts []string
	for _, f := range e.Failed {
		texts = append(texts, f.Error())
	}
	return "host: cannot listen: " + strings.Join(texts, "; ")
}

// Unwrap returns the [BindError] of each address.
func (e *ListenError) Unwrap() []error {
	var errs []error
	for _, f := range e.Failed {
		errs = append(errs, f)
	}
	return errs
}

func (e BindError) Error() string {
	if e.Addr == nil {
		return fmt.Sprintf("%s: %v", e.Text, e.Err)
	}
	text := e.Err.Error()
	if errors.Is(e.Err, syscall.EADDRNOTAVAIL) {
		text = "not an address of this machine"
	} else if errno, ok := errors.AsType[syscall.Errno](e.Err); ok {
		text = errno.Error() // only the system's reason, since the address is added below
	}
	return fmt.Sprintf("%s: %s", e.Addr, text)
}

func (e BindError) Unwrap() error { return e.Err }

// A listenGroup holds the addresses that one listenRequest means. All have the same port.
type listenGroup struct {
	text  string
	ips   []netip.Addr
	kinds []kind
	port  uint16
}

// A computer describes a machine as far as it matters for the addresses that a listenRequest
// means: its IP addresses, and what it can bind and look up. Tests describe other machines.
type computer struct {
	ips    []netip.Addr
	v4, v6 bool
	lookup func(name string) ([]netip.Addr, error)
}

func thisMachine() (computer, error) {
	ips, err := interfaceIPs()
	return computer{
		ips: ips,
		v4:  canBind("udp4"),
		v6:  canBind("udp6"),
		lookup: func(name string) ([]netip.Addr, error) {
			ctx, cancel := context.WithTimeout(context.Background(), lookupTimeout)
			defer cancel()
			return net.DefaultResolver.LookupNetIP(ctx, "ip", name)
		},
	}, err
}

func canBind(network string) bool {
	c, err := net.ListenUDP(network, nil)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// plan returns the addresses to bind for the requests in reqs, one group for each request.
// If subnet is valid, only addresses in it are allowed. The second result has the requests
// for which there are no such addresses.
func (m computer) plan(reqs []listenRequest, subnet netip.Prefix) ([]listenGroup, []BindError) {
	var groups []listenGroup
	var failed []BindError
	for _, r := range reqs {
		ips, err := m.expand(r)
		if err == nil && subnet.IsValid() { // otherwise all addresses are allowed
			ips, err = m.restrict(ips, subnet)
		}
		if err != nil {
			failed = append(failed, BindError{Text: r.text, Err: err})
			continue
		}
		groups = append(groups, listenGroup{text: r.text, ips: ips, kinds: r.kinds, port: r.port})
	}
	return groups, failed
}

// expand returns the IP addresses that the request r means on this machine.
func (m computer) expand(r listenRequest) ([]netip.Addr, error) {
	var ips []netip.Addr
	switch {
	case r.all:
		// A machine may have only IPv4 or only IPv6. Binding an address of the other family
		// would fail.
		if m.v4 {
			ips = append(ips, netip.IPv4Unspecified())
		}
		if m.v6 {
			ips = append(ips, netip.IPv6Unspecified())
		}
		if len(ips) == 0 {
			return nil, errors.New("this machine has neither IPv4 nor IPv6")
		}
	// "localhost" is not looked up: the answer might lack IPv4 or IPv6, or contain one that
	// this machine does not have.
	case strings.EqualFold(strings.TrimSuffix(r.name, "."), "localhost"):
		for _, ip := range []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()} {
			if slices.Contains(m.ips, ip) {
				ips = append(ips, ip)
			}
		}
		if len(ips) == 0 {
			return nil, errors.New("this machine has no loopback address")
		}
	case r.name != "":
		found, err := m.lookup(r.name)
		if err != nil {
			return nil, err
		}
		for _, ip := range found {
			if ip = ip.Unmap(); !slices.Contains(ips, ip) {
				ips = append(ips, ip)
			}
		}
	default:
		ips = []netip.Addr{r.ip}
	}
	return ips, nil
}

// restrict returns ips with each unspecified address replaced by the addresses of this
// machine in the subnet. It fails if one of ips is outside of the subnet, or if no address
// is left.
func (m computer) restrict(ips []netip.Addr, subnet netip.Prefix) ([]netip.Addr, error) {
	var in []netip.Addr
	for _, ip := range ips {
		if !ip.IsUnspecified() {
			if !subnet.Contains(ip.WithZone("")) {
				return nil, outside(ip, subnet)
			}
			in = append(in, ip)
		} else if ip.BitLen() == subnet.Addr().BitLen() {
			mine, err := ipsIn(subnet, m.ips)
			if err != nil {
				return nil, err
			}
			in = append(in, mine...)
		}
	}
	if len(in) == 0 {
		return nil, fmt.Errorf("none of its addresses is in Subnet %v", subnet)
	}
	return in, nil
}

func outside(ip netip.Addr, subnet netip.Prefix) error {
	return fmt.Errorf("%v is not in Subnet %v", ip, subnet)
}

// A binder binds the addresses of all groups, or none if one of them fails. It opens the UDP
// sockets itself and gives them to the transports after every address was bound. Otherwise,
// after a failure, the ports would stay in use for a while, because a closed QUIC listener
// does not release its socket at once.
type binder struct {
	sw      *swarm.Swarm
	sockets *sockets
	tcp     []ma.Multiaddr // bound and listening
	udp     []boundUDP     // bound
	failed  []BindError
}

// A boundUDP is a UDP address whose socket is open, but on which no transport listens yet.
type boundUDP struct {
	text string
	addr ma.Multiaddr
	kind kind
}

// bind binds all groups. It returns the addresses that could not be bound; if there are
// any, nothing stays bound.
func (b *binder) bind(groups []listenGroup) []BindError {
	for _, g := range groups {
		b.bindGroup(g)
	}
	if len(b.failed) == 0 {
		b.startUDP()
	}
	// A node with only some of its addresses would seem to work. So if one address
	// failed, all others are released.
	if len(b.failed) > 0 {
		b.sw.ListenClose(b.sw.ListenAddresses()...)
		b.sockets.closeAll()
	}
	return b.failed
}

// bindGroup binds the addresses of one group. If the group has no port, it looks for a port
// that is free for all of them.
func (b *binder) bindGroup(g listenGroup) {
	if g.port != 0 {
		_, failed := b.bindAt(g, g.port)
		b.failed = append(b.failed, failed...)
		return
	}
	// A port that is free for one address of the group may be in use for another, so
	// several ports are tried.
	var failed []BindError
	for range portTries {
		var port uint16
		if port, failed = b.freePort(g); len(failed) > 0 {
			break // the system finds no free port, so further tries are useless
		}
		var undo func()
		if undo, failed = b.bindAt(g, port); len(failed) == 0 {
			return
		}
		undo()
	}
	b.failed = append(b.failed, failed...)
}

// freePort asks the system for a port that is free for the first address of the group g. If
// there is none, the second result says why.
func (b *binder) freePort(g listenGroup) (uint16, []BindError) {
	k, ip := g.kinds[len(g.kinds)-1], g.ips[0]
	if k.net == "udp" {
		c, err := b.sockets.newSocket(networkName(k, ip), net.UDPAddrFromAddrPort(netip.AddrPortFrom(ip, 0)))
		if err == nil {
			defer c.Close()
			return c.LocalAddr().(*net.UDPAddr).AddrPort().Port(), nil
		}
		return 0, []BindError{{g.text, k.multiaddr(ip, 0), err}}
	}
	l, err := net.ListenTCP(networkName(k, ip), net.TCPAddrFromAddrPort(netip.AddrPortFrom(ip, 0)))
	if err == nil {
		defer l.Close()
		return l.Addr().(*net.TCPAddr).AddrPort().Port(), nil
	}
	return 0, []BindError{{g.text, k.multiaddr(ip, 0), err}}
}

// bindAt binds the addresses of the group g with the given port. undo releases the
// addresses that were bound. failed has an entry for each address that could not be bound.
func (b *binder) bindAt(g listenGroup, port uint16) (undo func(), failed []BindError) {
	tcp, udp := len(b.tcp), len(b.udp)
	before := b.sw.ListenAddresses()
	var opened []netip.AddrPort
	for _, ip := range g.ips {
		for _, k := range g.kinds {
			addr := k.multiaddr(ip, port)
			if slices.ContainsFunc(b.tcp, addr.Equal) || slices.ContainsFunc(b.udp, func(l boundUDP) bool { return addr.Equal(l.addr) }) {
				continue // another request stands for it, too
			}
			if k.net == "udp" {
				at := netip.AddrPortFrom(ip, port)
				fresh, err := b.sockets.bind(networkName(k, ip), at)
				if err != nil {
					failed = append(failed, BindError{g.text, addr, err})
					continue
				}
				if fresh {
					opened = append(opened, at)
				}
				b.udp = append(b.udp, boundUDP{g.text, addr, k})
			} else if err := b.sw.AddListenAddr(addr); err != nil {
				failed = append(failed, BindError{g.text, addr, err})
			} else {
				b.tcp = append(b.tcp, addr)
			}
		}
	}
	return func() {
		// The swarm needs the listeners' addresses to close them. The swarm's form
		// of these addresses may lack the IPv6 zone, so they are taken from the
		// swarm and not from the group.
		b.sw.ListenClose(slices.DeleteFunc(b.sw.ListenAddresses(), func(a ma.Multiaddr) bool {
			return slices.ContainsFunc(before, a.Equal)
		})...)
		for _, at := range opened {
			b.sockets.release(at)
		}
		b.tcp, b.udp = b.tcp[:tcp], b.udp[:udp]
	}, failed
}

// startUDP makes the transports listen on the sockets that were bound. QUIC comes first, so
// that the transports which can share its socket find it.
func (b *binder) startUDP() {
	slices.SortStableFunc(b.udp, func(x, y boundUDP) int {
		return slices.Index(kinds, x.kind) - slices.Index(kinds, y.kind)
	})
	for _, l := range b.udp {
		if err := b.sw.AddListenAddr(l.addr); err != nil {
			b.failed = append(b.failed, BindError{l.text, l.addr, err})
		}
	}
}

// networkName returns the name that package net uses, such as "tcp4" or "udp6". Without the
// digit, package net would make a socket for both IPv4 and IPv6.
func networkName(k kind, ip netip.Addr) string {
	if ip.Is4() {
		return k.net + "4"
	}
	return k.net + "6"
}

// sockets holds the UDP sockets that a host has opened for listening.
type sockets struct {
	listen testhook.Listener // nil: the system's sockets

	mu    sync.Mutex
	ready map[netip.AddrPort]net.PacketConn // until a transport asks for them
	inUse []net.PacketConn
}

// newSocket binds a socket.
func (s *sockets) newSocket(network string, at *net.UDPAddr) (net.PacketConn, error) {
	if s.listen != nil {
		return s.listen(network, at)
	}
	return net.ListenUDP(network, at)
}

// bind opens a UDP socket at the address at; network is "udp4" or "udp6". If the host has
// one at that address already, which several transports can share, bind does nothing, and
// fresh is false.
func (s *sockets) bind(network string, at netip.AddrPort) (fresh bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ready[at] != nil {
		return false, nil
	}
	c, err := s.newSocket(network, net.UDPAddrFromAddrPort(at))
	if err != nil {
		return false, err
	}
	if s.ready == nil {
		s.ready = map[netip.AddrPort]net.PacketConn{}
	}
	s.ready[at] = c
	return true, nil
}

// listenUDP returns the UDP socket at the address at, for a transport that wants to listen
// or dial: the socket that bind has opened there, or else a new one.
func (s *sockets) listenUDP(network string, at *net.UDPAddr) (net.PacketConn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := netip.AddrPortFrom(at.AddrPort().Addr().Unmap(), at.AddrPort().Port())
	if c := s.ready[key]; c != nil {
		delete(s.ready, key)
		s.inUse = append(s.inUse, c)
		return c, nil
	}
	return s.newSocket(network, at)
}

// PreferredSourceIPForDestination tells QUIC from which address to dial. It is used for
// sockets that are not the operating system's, to which the system's routes do not apply.
func (s *sockets) PreferredSourceIPForDestination(to *net.UDPAddr) (net.IP, error) {
	for _, c := range s.listening() {
		if at, ok := c.LocalAddr().(*net.UDPAddr); ok && (at.IP.To4() != nil) == (to.IP.To4() != nil) {
			return at.IP, nil
		}
	}
	return nil, fmt.Errorf("host: no listen address of the family of %v, so it cannot be dialed", to)
}

// release closes the socket at the address at, which no transport has asked for.
func (s *sockets) release(at netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.ready[at]; c != nil {
		c.Close()
		delete(s.ready, at)
	}
}

// closeAll closes all UDP sockets that bind has opened.
func (s *sockets) closeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.ready {
		c.Close()
	}
	for _, c := range s.inUse {
		c.Close()
	}
	s.ready, s.inUse = nil, nil
}

// listening returns the UDP sockets on which transports listen.
func (s *sockets) listening() []net.PacketConn {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.inUse)
}
