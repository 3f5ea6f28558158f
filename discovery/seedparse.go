package discovery

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/discovery/internal/seedaddr"
	"github.com/go-smokesignal/smokesignal/internal/addr"
)

// ParseSeed reads a seed as a user writes it: an address with port
// (192.168.2.100:8495, [2001:db8::1]:8495), a DNS name with port
// (seed.example.org:8495), or a multiaddr over TCP, QUIC, WebSocket,
// WebTransport or WebRTC-direct, of an IP address, a DNS name or a dnsaddr, with
// or without /p2p/ID at the end; or such an address of a relay, followed by
// /p2p/RELAY/p2p-circuit/p2p/ID; or a ticket (see [Ticket]). It does not look up names. The
// error is a sentence that quotes the text.
func ParseSeed(text string) (*Seed, error) {
	s := &Seed{text: text, dns: systemDNS}
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
	case isTicket(text):
		err = s.parseTicket(text)
	default:
		err = s.parseHostPort(text)
	}
	if err != nil {
		return nil, fmt.Errorf("seed %q: %w", shortenTicket(text), err)
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
	s.targets = []target{hostPort(netip.AddrPortFrom(ip, uint16(n)))}
	return nil
}

func (s *Seed) parseMultiaddr(text string) error {
	whole, err := ma.NewMultiaddr(text)
	if err != nil {
		return fmt.Errorf("it is not a multiaddr: %s", oneLine(err))
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
		s.targets = []target{{addrs: []ma.Multiaddr{a}, id: id}}
		return nil
	}
	if len(a) == 0 {
		return errors.New("it names a node but no address")
	}
	if err := seedaddr.CheckTransport(a); err != nil {
		return err
	}
	s.targets = []target{newTarget(a, id)}
	return nil
}

// hostPort returns the target that host:port means: TCP and QUIC on that number.
func hostPort(at netip.AddrPort) target {
	at = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	return target{addrs: []ma.Multiaddr{addr.TCP(at), addr.QUIC(at)}, at: at}
}

func newTarget(a ma.Multiaddr, id peer.ID) target {
	at, _ := addr.AddrPort(a) // a name has none
	return target{addrs: []ma.Multiaddr{a}, id: id, at: at}
}
