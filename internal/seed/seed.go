// Package seed reads the texts by which users say where a network can be found: seeds and
// tickets. It looks up the names in them, and does not dial.
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

// A Seed is an address at which a network can be joined, as a user wrote it. It does not
// change, and its methods may be called from several goroutines.
type Seed struct {
	text    string
	id      peer.ID  // pinned by /p2p/ID or a ticket, or empty
	network string   // of a ticket; empty for other seeds
	targets []Target // none for name:port, several for a ticket, else one
	name    string   // of name:port
	port    uint16   // of name:port

	// DNS looks up names. Tests replace it.
	DNS madns.BasicResolver
}

// A Target is one place at which a node may be: addresses that belong to the same node, such
// as TCP and QUIC on one port.
type Target struct {
	Addrs []ma.Multiaddr
	ID    peer.ID        // that the node has to prove; empty if any will do
	At    netip.AddrPort // zero if Addrs hold a name
}

// Relayed reports whether the target is behind a relay.
func (t Target) Relayed() bool { return addr.IsRelayed(t.Addrs[0]) }

// String returns the text that the seed was parsed from.
func (s *Seed) String() string { return s.text }

// Short returns the text of the seed for a log or an error. Of a ticket it is the beginning
// and the end.
func (s *Seed) Short() string { return Shorten(s.text) }

// ID returns the id pinned by /p2p/ID or a ticket, or the empty id.
func (s *Seed) ID() peer.ID { return s.id }

// AddrPorts returns the IP addresses and ports that the text gives, and none for a name or
// an address behind a relay.
func (s *Seed) AddrPorts() (list []netip.AddrPort) {
	for _, t := range s.targets {
		if t.At.IsValid() {
			list = append(list, t.At)
		}
	}
	return list
}

// Network returns the name of the network that a ticket is for. It is empty for other
// seeds.
func (s *Seed) Network() string { return s.network }

// Targets returns the places that the text of the seed gives: none for name:port, several
// for a ticket, otherwise one.
func (s *Seed) Targets() []Target { return s.targets }

// Only returns a copy of the seed that has t as its only target.
func (s *Seed) Only(t Target) *Seed {
	one := *s
	one.targets = []Target{t}
	return &one
}

// IsTicket reports whether the text of the seed is a ticket.
func (s *Seed) IsTicket() bool { return s.network != "" }

// Relayed reports whether the seed is an address behind a relay. Only a host that punches
// holes can use it.
func (s *Seed) Relayed() bool { return slices.ContainsFunc(s.targets, Target.Relayed) }

// Parse reads a seed as a user writes it: an address with port
// (192.168.2.100:8495, [2001:db8::1]:8495), a DNS name with port
// (seed.example.org:8495), or a multiaddr over TCP, QUIC, WebSocket,
// WebTransport or WebRTC-direct, of an IP address, a DNS name or a dnsaddr, with
// or without /p2p/ID at the end; or such an address of a relay, followed by
// /p2p/RELAY/p2p-circuit/p2p/ID; or a ticket (see [Ticket]). It does not look up names. The
// error is a sentence that quotes the text.
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

// hostPort returns the target that host:port means: TCP and QUIC on that number.
func hostPort(at netip.AddrPort) Target {
	at = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	return Target{Addrs: []ma.Multiaddr{addr.TCP(at), addr.QUIC(at)}, At: at}
}

func newTarget(a ma.Multiaddr, id peer.ID) Target {
	at, _ := addr.AddrPort(a) // a name has none
	return Target{Addrs: []ma.Multiaddr{a}, ID: id, At: at}
}
