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

// lookupTimeout bounds the resolution of a name in Listen.
const lookupTimeout = 5 * time.Second

// portTries is how many free ports are tried for one that is free for every
// socket which needs it. More than one in two being taken is not usual.
const portTries = 32

// A ListenError is returned by [Host.Listen]. errors.Is finds the reasons in
// it, as syscall.EADDRINUSE.
type ListenError struct {
	// Failed has one entry for each address that could not be bound; the others
	// were given back. It is not empty.
	Failed []BindError
}

// A BindError says why one address could not be bound.
type BindError struct {
	Text string       // as it was asked for
	Addr ma.Multiaddr // what it stands for; nil if that could not be found out
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
		text = errno.Error() // without a second mention of the address
	}
	return fmt.Sprintf("%s: %s", e.Addr, text)
}

func (e BindError) Unwrap() error { return e.Err }

// A group are the addresses one request stands for. They share a port.
type group struct {
	text  string
	ips   []netip.Addr
	kinds []kind
	port  uint16
}

// machine is what the plan depends on besides the requests.
type machine struct {
	ips    []netip.Addr
	v4, v6 bool
	lookup func(name string) ([]netip.Addr, error)
}

func thisMachine() (machine, error) {
	ips, err := interfaceIPs()
	return machine{
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

// plan finds out which addresses the requests stand for on this machine. An
// invalid subnet means all of them.
func (m machine) plan(reqs []request, subnet netip.Prefix) ([]group, []BindError) {
	var groups []group
	var failed []BindError
	for _, r := range reqs {
		ips, err := m.expand(r)
		if err == nil && subnet.IsValid() {
			ips, err = m.within(ips, subnet)
		}
		if err != nil {
			failed = append(failed, BindError{Text: r.text, Err: err})
			continue
		}
		groups = append(groups, group{text: r.text, ips: ips, kinds: r.kinds, port: r.port})
	}
	return groups, failed
}

func (m machine) expand(r request) ([]netip.Addr, error) {
	var ips []netip.Addr
	switch {
	case r.all:
		if m.v4 {
			ips = append(ips, netip.IPv4Unspecified())
		}
		if m.v6 {
			ips = append(ips, netip.IPv6Unspecified())
		}
		if len(ips) == 0 {
			return nil, errors.New("this machine has neither IPv4 nor IPv6")
		}
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

// within replaces unspecified addresses by this machine's in the subnet, and
// refuses others outside of it.
func (m machine) within(ips []netip.Addr, subnet netip.Prefix) ([]netip.Addr, error) {
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
		return nil, fmt.Errorf("nothing of it is in Subnet %v", subnet)
	}
	return in, nil
}

func outside(ip netip.Addr, subnet netip.Prefix) error {
	return fmt.Errorf("%v is not in Subnet %v", ip, subnet)
}

// A binder binds the addresses of groups, all or none. UDP sockets are bound
// here and handed to the transports when every other address is bound too,
// because a QUIC listener does not give its socket back at once.
type binder struct {
	sw      *swarm.Swarm
	sockets *sockets
	tcp     []ma.Multiaddr // bound and listening
	udp     []listenUDP    // bound
	failed  []BindError
}

type listenUDP struct {
	text string
	addr ma.Multiaddr
	kind kind
}

// bind returns what could not be bound; then nothing is.
func (b *binder) bind(groups []group) []BindError {
	for _, g := range groups {
		b.bindGroup(g)
	}
	if len(b.failed) == 0 {
		b.listenUDP()
	}
	if len(b.failed) > 0 {
		b.sw.ListenClose(b.sw.ListenAddresses()...)
		b.sockets.closeAll()
	}
	return b.failed
}

func (b *binder) bindGroup(g group) {
	if g.port != 0 {
		_, failed := b.bindAt(g, g.port)
		b.failed = append(b.failed, failed...)
		return
	}
	// A port that is free for one socket of the group may be taken for another.
	var failed []BindError
	for range portTries {
		var port uint16
		if port, failed = b.freePort(g); len(failed) > 0 {
			break // no port at all, so no other will do
		}
		var undo func()
		if undo, failed = b.bindAt(g, port); len(failed) == 0 {
			return
		}
		undo()
	}
	b.failed = append(b.failed, failed...)
}

// freePort asks the system for a port that is free for the group's first
// address.
func (b *binder) freePort(g group) (uint16, []BindError) {
	k, ip := g.kinds[len(g.kinds)-1], g.ips[0]
	if k.net == "udp" {
		c, err := b.sockets.make(netOf(k, ip), net.UDPAddrFromAddrPort(netip.AddrPortFrom(ip, 0)))
		if err == nil {
			defer c.Close()
			return c.LocalAddr().(*net.UDPAddr).AddrPort().Port(), nil
		}
		return 0, []BindError{{g.text, k.addr(ip, 0), err}}
	}
	l, err := net.ListenTCP(netOf(k, ip), net.TCPAddrFromAddrPort(netip.AddrPortFrom(ip, 0)))
	if err == nil {
		defer l.Close()
		return l.Addr().(*net.TCPAddr).AddrPort().Port(), nil
	}
	return 0, []BindError{{g.text, k.addr(ip, 0), err}}
}

// bindAt binds the group's addresses with the given port. undo gives back
// those that could be bound.
func (b *binder) bindAt(g group, port uint16) (undo func(), failed []BindError) {
	tcp, udp := len(b.tcp), len(b.udp)
	before := b.sw.ListenAddresses()
	var opened []netip.AddrPort
	for _, ip := range g.ips {
		for _, k := range g.kinds {
			addr := k.addr(ip, port)
			if slices.ContainsFunc(b.tcp, addr.Equal) || slices.ContainsFunc(b.udp, func(l listenUDP) bool { return addr.Equal(l.addr) }) {
				continue // asked for twice
			}
			if k.net == "udp" {
				at := netip.AddrPortFrom(ip, port)
				fresh, err := b.sockets.open(netOf(k, ip), at)
				if err != nil {
					failed = append(failed, BindError{g.text, addr, err})
					continue
				}
				if fresh {
					opened = append(opened, at)
				}
				b.udp = append(b.udp, listenUDP{g.text, addr, k})
			} else if err := b.sw.AddListenAddr(addr); err != nil {
				failed = append(failed, BindError{g.text, addr, err})
			} else {
				b.tcp = append(b.tcp, addr)
			}
		}
	}
	return func() {
		// Not by b.tcp: a listener's own address may lack the zone.
		b.sw.ListenClose(slices.DeleteFunc(b.sw.ListenAddresses(), func(a ma.Multiaddr) bool {
			return slices.ContainsFunc(before, a.Equal)
		})...)
		for _, at := range opened {
			b.sockets.close(at)
		}
		b.tcp, b.udp = b.tcp[:tcp], b.udp[:udp]
	}, failed
}

// listenUDP hands the bound sockets to their transports. Those that can share
// a socket with QUIC look for it, so QUIC comes first.
func (b *binder) listenUDP() {
	slices.SortStableFunc(b.udp, func(x, y listenUDP) int {
		return slices.Index(kinds, x.kind) - slices.Index(kinds, y.kind)
	})
	for _, l := range b.udp {
		if err := b.sw.AddListenAddr(l.addr); err != nil {
			b.failed = append(b.failed, BindError{l.text, l.addr, err})
		}
	}
}

// netOf is the name of a network of one family only: without it Go makes
// sockets for both.
func netOf(k kind, ip netip.Addr) string {
	if ip.Is4() {
		return k.net + "4"
	}
	return k.net + "6"
}

// sockets are the UDP sockets of a host: those bound for listening, until a
// transport asks for them, and after that to look at.
type sockets struct {
	listen  testhook.Listener // nil: the system's sockets
	mu      sync.Mutex
	waiting map[netip.AddrPort]net.PacketConn
	taken   []net.PacketConn
}

func (s *sockets) make(network string, at *net.UDPAddr) (net.PacketConn, error) {
	if s.listen != nil {
		return s.listen(network, at)
	}
	return net.ListenUDP(network, at)
}

// open binds a socket, unless there is one that can be shared.
func (s *sockets) open(network string, at netip.AddrPort) (fresh bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiting[at] != nil {
		return false, nil
	}
	c, err := s.make(network, net.UDPAddrFromAddrPort(at))
	if err != nil {
		return false, err
	}
	if s.waiting == nil {
		s.waiting = map[netip.AddrPort]net.PacketConn{}
	}
	s.waiting[at] = c
	return true, nil
}

// take is how transports get their sockets, for listening and for dialing.
func (s *sockets) take(network string, at *net.UDPAddr) (net.PacketConn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := netip.AddrPortFrom(at.AddrPort().Addr().Unmap(), at.AddrPort().Port())
	if c := s.waiting[key]; c != nil {
		delete(s.waiting, key)
		s.taken = append(s.taken, c)
		return c, nil
	}
	return s.make(network, at)
}

// PreferredSourceIPForDestination takes the place of the machine's routes where
// sockets are lent.
func (s *sockets) PreferredSourceIPForDestination(to *net.UDPAddr) (net.IP, error) {
	for _, c := range s.listening() {
		if at, ok := c.LocalAddr().(*net.UDPAddr); ok && (at.IP.To4() != nil) == (to.IP.To4() != nil) {
			return at.IP, nil
		}
	}
	return nil, fmt.Errorf("host: nothing is listened on to reach %v from", to)
}

func (s *sockets) close(at netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.waiting[at]; c != nil {
		c.Close()
		delete(s.waiting, at)
	}
}

// closeAll closes those that wait, and those taken for listening.
func (s *sockets) closeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.waiting {
		c.Close()
	}
	for _, c := range s.taken {
		c.Close()
	}
	s.waiting, s.taken = nil, nil
}

// listening returns the sockets that were taken for listening.
func (s *sockets) listening() []net.PacketConn {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.taken)
}
