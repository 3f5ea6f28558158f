package discovery

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/internal/addr"
)

// ParseSeed reads a seed as a user writes it: an address with port
// (192.168.2.100:8495, [2001:db8::1]:8495), a DNS name with port
// (seed.example.org:8495), or a multiaddr over TCP, QUIC, WebSocket,
// WebTransport or WebRTC-direct, of an IP address, a DNS name or a dnsaddr, with
// or without /p2p/ID at the end; or such an address of a relay, followed by
// /p2p/RELAY/p2p-circuit/p2p/ID; or a ticket (see [Ticket]). It looks nothing up.
// The error is a sentence that quotes the text.
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
		return nil, fmt.Errorf("seed %q: %w", ShortenTicket(text), err)
	}
	return s, nil
}

func isBlank(r rune) bool { return r <= ' ' || r == 0x7f || r == 0xa0 }

func (s *Seed) parseHostPort(text string) error {
	host, port, err := splitHostPort(text)
	if err != nil {
		return err
	}
	n, err := strconv.ParseUint(port, 10, 32)
	switch {
	case err != nil:
		return fmt.Errorf("the port %q is not a number", port)
	case n == 0:
		return errors.New("port 0 cannot be dialled")
	case n > 65535:
		return fmt.Errorf("the port %d is out of range (1 to 65535)", n)
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		if err := checkName(host); err != nil {
			return err
		}
		s.name, s.port = host, uint16(n)
		return nil
	}
	if err := checkIP(ip); err != nil {
		return err
	}
	s.targets = []target{hostPort(netip.AddrPortFrom(ip, uint16(n)))}
	return nil
}

// splitHostPort is net.SplitHostPort with sentences.
func splitHostPort(text string) (host, port string, err error) {
	const example = "write host:port, as in 192.168.2.100:8495"
	if rest, ok := strings.CutPrefix(text, "["); ok {
		host, after, closed := strings.Cut(rest, "]")
		if !closed {
			return "", "", errors.New("the bracket is not closed")
		}
		port, ok := strings.CutPrefix(after, ":")
		if !ok || port == "" {
			return "", "", errors.New("the port is missing: write it behind the bracket, as in [2001:db8::1]:8495")
		}
		if ip, err := netip.ParseAddr(host); err != nil || !ip.Is6() {
			return "", "", fmt.Errorf("%q in brackets is not an IPv6 address", host)
		}
		return host, port, nil
	}
	switch strings.Count(text, ":") {
	case 0:
		return "", "", fmt.Errorf("the port is missing: %s", example)
	case 1:
		host, port, _ = strings.Cut(text, ":")
	default:
		return "", "", errors.New("an IPv6 address needs brackets and a port, as in [2001:db8::1]:8495")
	}
	if host == "" {
		return "", "", fmt.Errorf("the host is missing: %s", example)
	}
	if port == "" {
		return "", "", fmt.Errorf("the port is missing: %s", example)
	}
	return host, port, nil
}

// checkIP refuses addresses at which nobody can be reached.
func checkIP(ip netip.Addr) error {
	ip = ip.Unmap()
	switch {
	case ip.IsUnspecified():
		return fmt.Errorf("%s means every address of a machine; write one of them", ip)
	case ip.IsMulticast(), ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return fmt.Errorf("%s is a multicast or broadcast address", ip)
	case ip.Zone() != "", ip.Is6() && ip.IsLinkLocalUnicast():
		return fmt.Errorf("%s is a link-local address, which cannot be dialled", ip)
	}
	return nil
}

// checkName refuses what no DNS name looks like, a mistyped address above all.
func checkName(name string) error {
	last := strings.TrimSuffix(name, ".")
	if i := strings.LastIndexByte(last, '.'); i >= 0 {
		last = last[i+1:]
	}
	if strings.Trim(last, "0123456789") == "" {
		return fmt.Errorf("%q is neither an IP address nor a name", name)
	}
	if len(name) > 253 {
		return errors.New("the name is longer than 253 characters")
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(name, "."), ".") {
		if label == "" || len(label) > 63 {
			return fmt.Errorf("%q is not a DNS name", name)
		}
		for _, c := range []byte(label) {
			if c >= 0x80 {
				return fmt.Errorf("%q is not a DNS name: write its ASCII form (xn--...)", name)
			}
			if c != '-' && c != '_' && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') {
				return fmt.Errorf("%q is not a DNS name", name)
			}
		}
	}
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
		if err := checkTransport(relay); err != nil {
			return fmt.Errorf("the relay's address: %w", err)
		}
		s.targets = []target{{addrs: []ma.Multiaddr{a}, id: id}}
		return nil
	}
	if len(a) == 0 {
		return errors.New("it names a node but no address")
	}
	if err := checkTransport(a); err != nil {
		return err
	}
	s.targets = []target{newTarget(a, id)}
	return nil
}

// checkTransport tells whether addr is one that a node of ours can dial.
func checkTransport(addr ma.Multiaddr) error {
	first, rest := addr[0], addr[1:]
	switch first.Code() {
	case ma.P_IP4, ma.P_IP6:
		ip, _ := netip.AddrFromSlice(first.RawValue())
		if err := checkIP(ip); err != nil {
			return err
		}
	case ma.P_DNS, ma.P_DNS4, ma.P_DNS6:
		if err := checkName(first.Value()); err != nil {
			return err
		}
	case ma.P_DNSADDR:
		return checkName(first.Value()) // what follows selects among its records
	case ma.P_IP6ZONE:
		return errors.New("a link-local address cannot be dialled")
	default:
		return fmt.Errorf("/%s is not where a seed's address begins (ip4, ip6, dns, dns4, dns6, dnsaddr)", first.Protocol().Name)
	}
	if len(rest) == 0 || !isCode(rest[0], ma.P_TCP, ma.P_UDP) {
		return errors.New("the port is missing, as in /tcp/8495 or /udp/8495/quic-v1")
	}
	if rest[0].Value() == "0" {
		return errors.New("port 0 cannot be dialled")
	}
	udp := rest[0].Code() == ma.P_UDP
	var carrier int // the protocol that makes a transport of the port
	for _, c := range rest[1:] {
		switch c.Code() {
		case ma.P_QUIC_V1, ma.P_WEBRTC_DIRECT:
			if !udp {
				return fmt.Errorf("/%s goes over /udp", c.Protocol().Name)
			}
			carrier = c.Code()
		case ma.P_WS, ma.P_WSS, ma.P_TLS, ma.P_SNI, ma.P_HTTP_PATH:
			if udp {
				return fmt.Errorf("/%s goes over /tcp", c.Protocol().Name)
			}
		case ma.P_WEBTRANSPORT, ma.P_CERTHASH:
		case ma.P_QUIC:
			return errors.New("/quic is the old draft: write /quic-v1")
		case ma.P_P2P:
			return errors.New("/p2p/ID may stand at the end only")
		default:
			return fmt.Errorf("/%s is not a transport of a seed", c.Protocol().Name)
		}
	}
	if udp && carrier == 0 {
		return errors.New("what goes over UDP is missing, as in /udp/8495/quic-v1")
	}
	return nil
}

// hostPort returns what host:port means: TCP and QUIC on that number.
func hostPort(ap netip.AddrPort) target {
	ap = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	family := "ip4"
	if ap.Addr().Is6() {
		family = "ip6"
	}
	port := strconv.Itoa(int(ap.Port()))
	tcp := ma.StringCast("/" + family + "/" + ap.Addr().String() + "/tcp/" + port)
	quic := ma.StringCast("/" + family + "/" + ap.Addr().String() + "/udp/" + port + "/quic-v1")
	return target{addrs: []ma.Multiaddr{tcp, quic}, at: ap}
}

func newTarget(addr ma.Multiaddr, id peer.ID) target {
	return target{addrs: []ma.Multiaddr{addr}, id: id, at: addrPort(addr)}
}

// addrPort returns the IP address and port that addr begins with, if it does.
// It looks no name up, as manet.ToNetAddr would.
func addrPort(addr ma.Multiaddr) netip.AddrPort {
	if len(addr) < 2 {
		return netip.AddrPort{}
	}
	ip, ok := netip.AddrFromSlice(addr[0].RawValue())
	port := addr[1].RawValue()
	if !ok || !isCode(addr[0], ma.P_IP4, ma.P_IP6) || !isCode(addr[1], ma.P_TCP, ma.P_UDP) || len(port) != 2 {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ip.Unmap(), binary.BigEndian.Uint16(port))
}

func isCode(c ma.Component, codes ...int) bool { return slices.Contains(codes, c.Code()) }
