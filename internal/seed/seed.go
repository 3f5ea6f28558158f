// Package seed parses the texts by which users say where a network can be found: seeds, and
// tickets, which are seeds that Node.Ticket returns. It looks up the names in them, but it
// does not dial.
package seed

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	madns "github.com/multiformats/go-multiaddr-dns"

	"github.com/go-smokesignal/smokesignal/internal/addr"
	"github.com/go-smokesignal/smokesignal/internal/errs"
	"github.com/go-smokesignal/smokesignal/internal/seedaddr"
)

// A Seed is a parsed text that says where a network can be joined. It does not change, and its
// methods may be called from several goroutines.
type Seed struct {
	text    string
	id      peer.ID  // the id that the node must have, from /p2p/ID or a ticket; empty if any node is accepted
	network string   // the name of the network, if the seed is a ticket; empty for other seeds
	targets []Target // the places where a node may be: none for name:port, several for a ticket, otherwise one
	name    string   // for a seed of the form name:port
	port    uint16   // for a seed of the form name:port

	// DNS looks up names. Tests replace it.
	DNS madns.BasicResolver
}

// A Target is one place where a node may be: addresses of the same node, such as TCP and QUIC on
// one port.
type Target struct {
	Addrs []ma.Multiaddr
	ID    peer.ID        // the id that the node must have; empty if any node is accepted
	At    netip.AddrPort // the IP address and port of Addrs; zero if they contain a name
}

// Relayed reports whether the target is behind a relay.
func (t Target) Relayed() bool { return addr.IsRelayed(t.Addrs[0]) }

// String returns the text that the seed was parsed from.
func (s *Seed) String() string { return s.text }

// Short returns the text of the seed for a log line or an error. If the seed is a ticket (a
// long text that Node.Ticket returns), Short returns only the beginning and the end of the
// text.
func (s *Seed) Short() string { return Shorten(s.text) }

// ID returns the id that the node at the seed must have, from /p2p/ID or a ticket. It returns
// "" if the seed accepts any node.
func (s *Seed) ID() peer.ID { return s.id }

// AddrPorts returns the IP addresses and ports in the text of the seed. It returns none for a
// name or for an address behind a relay.
func (s *Seed) AddrPorts() (list []netip.AddrPort) {
	for _, t := range s.targets {
		if t.At.IsValid() {
			list = append(list, t.At)
		}
	}
	return list
}

// Network returns the name of the network if the seed is a ticket, which contains it. It is
// empty for other seeds.
func (s *Seed) Network() string { return s.network }

// Targets returns the targets in the text of the seed: none for name:port, several for a
// ticket, otherwise one. It does not look up names; Resolve does.
func (s *Seed) Targets() []Target { return s.targets }

// Only returns a copy of the seed whose only target is t.
func (s *Seed) Only(t Target) *Seed {
	one := *s
	one.targets = []Target{t}
	return &one
}

// IsTicket reports whether the text of the seed is a ticket: a text that Node.Ticket
// returns.
func (s *Seed) IsTicket() bool { return s.network != "" }

// Relayed reports whether the seed has an address behind a relay. Only a host that punches holes
// can use such an address.
func (s *Seed) Relayed() bool { return slices.ContainsFunc(s.targets, Target.Relayed) }

// Parse parses a seed that a user has written, in one of these forms:
//
//   - an IP address with a port: 192.168.2.100:8495, [2001:db8::1]:8495
//   - a DNS name with a port: seed.example.org:8495
//   - a multiaddr with an IP address, a DNS name or a dnsaddr, over TCP, QUIC, WebSocket,
//     WebTransport or WebRTC-direct, with or without /p2p/ID at the end
//   - such a multiaddr of a relay, followed by /p2p/RELAY/p2p-circuit/p2p/ID
//   - a ticket, see [Ticket]
//
// Parse does not look up names. Its error is a sentence that quotes the text.
func Parse(text string) (*Seed, error) {
	s := &Seed{text: text, DNS: net.DefaultResolver}
	var err error
	switch {
	case text == "":
		err = errors.New("it is empty")
	case strings.ContainsFunc(text, isBlank):
		err = errors.New("it has a blank or a control character in it")
	case strings.Contains(text, "://"):
		err = errors.New("write host:port, without a scheme in front")
	case strings.HasPrefix(text, "/"):
		err = s.parseMultiaddr(text)
	case looksLikeTicket(text):
		err = s.parseTicket(text)
	default:
		err = s.parseHostPort(text)
	}
	if err != nil {
		return nil, fmt.Errorf("seed %q: %w", Shorten(text), err)
	}
	return s, nil
}

func isBlank(r rune) bool { return r <= ' ' || r == 0x7f || r == 0xa0 }

func (s *Seed) parseHostPort(text string) error {
	host, port, err := seedaddr.SplitHostPort(text)
	if err != nil {
		return err
	}
	n, err := strconv.ParseUint(port, 10, 32)
	switch {
	case err != nil:
		return fmt.Errorf("the port %q is not a number", port)
	case n == 0:
		return errors.New("port 0 cannot be dialed")
	case n > 65535:
		return fmt.Errorf("the port %d is out of range (1 to 65535)", n)
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		if err := seedaddr.CheckName(host); err != nil {
			return err
		}
		s.name, s.port = host, uint16(n)
		return nil
	}
	if err := seedaddr.CheckIP(ip); err != nil {
		return err
	}
	s.targets = []Target{hostPort(netip.AddrPortFrom(ip, uint16(n)))}
	return nil
}

func (s *Seed) parseMultiaddr(text string) error {
	whole, err := ma.NewMultiaddr(text)
	if err != nil {
		return fmt.Errorf("it is not a multiaddr: %s", errs.OneLine(err))
	}
	a, id := peer.SplitAddr(whole)
	s.id = id
	if addr.IsRelayed(whole) {
		at, relay, ok := addr.SplitRelay(a)
		switch {
		case !ok || id == "":
			return errors.New("an address behind a relay is written ADDR/p2p/RELAY/p2p-circuit/p2p/ID")
		case at == id:
			return errors.New("it is behind itself as a relay")
		}
		if err := seedaddr.CheckTransport(relay); err != nil {
			return fmt.Errorf("the relay's address: %w", err)
		}
		s.targets = []Target{{Addrs: []ma.Multiaddr{a}, ID: id}}
		return nil
	}
	if len(a) == 0 {
		return errors.New("it names a node but no address")
	}
	if err := seedaddr.CheckTransport(a); err != nil {
		return err
	}
	s.targets = []Target{newTarget(a, id)}
	return nil
}

// hostPort returns the target for a seed of the form host:port: TCP and QUIC on that port.
func hostPort(at netip.AddrPort) Target {
	at = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	return Target{Addrs: []ma.Multiaddr{addr.TCP(at), addr.QUIC(at)}, At: at}
}

func newTarget(a ma.Multiaddr, id peer.ID) Target {
	at, _ := addr.AddrPort(a) // zero if a begins with a name
	return Target{Addrs: []ma.Multiaddr{a}, ID: id, At: at}
}
