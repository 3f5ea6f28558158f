package host

import (
	"github.com/go-smokesignal/smokesignal/internal/addr"

	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// A kind is a transport, such as TCP or QUIC, and how multiaddrs name it after the IP
// address.
type kind struct {
	net  string // "tcp" or "udp"
	rest string // the part behind the port
}

var (
	kindTCP          = kind{"tcp", ""}
	kindQUIC         = kind{"udp", "/quic-v1"}
	kindWebSocket    = kind{"tcp", "/ws"}
	kindWebTransport = kind{"udp", "/quic-v1/webtransport"}
	kindWebRTC       = kind{"udp", "/webrtc-direct"}
	// plain holds the transports that are meant by an address in the form host:port.
	plain = []kind{kindTCP, kindQUIC}
	// kinds holds all transports. WebTransport and WebRTC can share the socket of QUIC, so
	// they come after it.
	kinds = []kind{kindTCP, kindQUIC, kindWebSocket, kindWebTransport, kindWebRTC}
)

// multiaddr returns the address of this kind at ip and port.
func (k kind) multiaddr(ip netip.Addr, port uint16) ma.Multiaddr {
	host := "/ip4/" + ip.String()
	if ip.Is6() {
		host = "/ip6/" + ip.WithZone("").String()
	}
	if zone := ip.Zone(); zone != "" {
		host = "/ip6zone/" + zone + host
	}
	return ma.StringCast(host + "/" + k.transport(port))
}

func (k kind) transport(port uint16) string {
	return fmt.Sprintf("%s/%d%s", k.net, port, k.rest)
}

// A listenRequest is a parsed entry of Config.Listen. It stands for all interfaces, for a
// name or for an IP address, so exactly one of the fields all, name and ip is set.
type listenRequest struct {
	text  string
	all   bool       // every interface, with IPv4 and IPv6
	name  string     // to be looked up
	ip    netip.Addr // may be unspecified
	port  uint16     // 0 means a port that is free, the same one for all transports
	kinds []kind
}

const listenForms = `want host:port, :port for all interfaces, or a multiaddr as /ip4/192.168.2.1/udp/8495/quic-v1`

func parseListen(text string) (listenRequest, error) {
	if strings.HasPrefix(text, "/") {
		return parseListenMultiaddr(text)
	}
	req := listenRequest{text: text, kinds: plain}
	host, port, err := splitHostPort(text)
	if err != nil {
		return req, fmt.Errorf("%w; %s", err, listenForms)
	}
	req.port = port
	if host == "" {
		req.all = true
	} else if ip, err := netip.ParseAddr(host); err == nil {
		if strings.Contains(ip.Zone(), "/") {
			return req, fmt.Errorf("%q is not the name of an interface", ip.Zone())
		}
		req.ip = ip.Unmap()
	} else if err := checkName(host); err != nil {
		return req, fmt.Errorf("%w; %s", err, listenForms)
	} else {
		req.name = host
	}
	return req, nil
}

func parseListenMultiaddr(text string) (listenRequest, error) {
	req := listenRequest{text: text}
	addr, err := ma.NewMultiaddr(text)
	if err != nil {
		return req, err
	}
	has := func(protocol int) bool { _, err := addr.ValueForProtocol(protocol); return err == nil }
	switch {
	case has(ma.P_WSS) || has(ma.P_TLS) || has(ma.P_SNI):
		return req, errors.New("secure WebSocket needs a certificate, which a node does not have; listen on /ws behind a TLS proxy and Advertise the /wss address")
	case has(ma.P_P2P):
		return req, errors.New("an address to listen on has no /p2p part; the node's id comes from its key")
	// libp2p cannot listen on a /dns multiaddr. A name is possible as host:port only, which
	// Listen looks up.
	case has(ma.P_DNS) || has(ma.P_DNS4) || has(ma.P_DNS6) || has(ma.P_DNSADDR):
		return req, errors.New("a multiaddr to listen on begins with an IP address, not a name; give a name as host:port")
	}
	at, k, ok := splitAddr(addr)
	if !ok || !slices.Contains(kinds, k) {
		return req, errors.New("cannot listen on this; want an IP address followed by one of /tcp/PORT, /tcp/PORT/ws, /udp/PORT/quic-v1, /udp/PORT/quic-v1/webtransport, /udp/PORT/webrtc-direct")
	}
	req.ip, req.port, req.kinds = at.Addr(), at.Port(), []kind{k}
	return req, nil
}

// splitAddr splits the multiaddr a into the IP address and port at its beginning and the
// kind of transport after them. ok is false if a does not begin with both.
func splitAddr(a ma.Multiaddr) (at netip.AddrPort, k kind, ok bool) {
	at, transport, ok := addr.Split(a)
	if !ok {
		return at, k, false
	}
	k.net = transport[0].Protocol().Name
	for _, c := range transport[1:] {
		k.rest += c.String()
	}
	return at, k, true
}

// splitHostPort splits text, a "host:port" with a numeric port, as net.SplitHostPort does.
// It also accepts a port without a host.
func splitHostPort(text string) (host string, port uint16, err error) {
	digits := text
	if strings.Trim(text, "0123456789") != "" || text == "" {
		// The error of net.SplitHostPort for an IPv6 address without port, "too many
		// colons", would not help the user.
		if _, err := netip.ParseAddr(text); err == nil {
			return "", 0, errors.New("the port is missing (0 for a free one)")
		}
		host, digits, err = net.SplitHostPort(text)
		if ae, ok := errors.AsType[*net.AddrError](err); ok {
			return "", 0, errors.New(ae.Err)
		}
		if err != nil {
			return "", 0, err
		}
	}
	n, err := strconv.ParseUint(digits, 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("port %q is not a number from 0 to 65535", digits)
	}
	return host, uint16(n), nil
}

// checkName returns an error if name cannot be a host name.
func checkName(name string) error {
	label := func(s string) bool {
		return s != "" && strings.Trim(strings.ToLower(s), "abcdefghijklmnopqrstuvwxyz0123456789-_") == ""
	}
	labels := strings.Split(strings.TrimSuffix(name, "."), ".")
	last := labels[len(labels)-1]
	if len(name) > 253 || slices.ContainsFunc(labels, func(s string) bool { return !label(s) }) ||
		strings.Trim(last, "0123456789") == "" { // a name that ends in a number is a mistyped IP address
		return fmt.Errorf("%q is neither an IP address nor a host name", name)
	}
	return nil
}

// An announcement is a parsed entry of Config.Advertise: either a whole multiaddr, or a host
// and a port.
type announcement struct {
	addr ma.Multiaddr // nil for host and port
	host ma.Multiaddr // the IP address or DNS name
	port uint16
}

const advertiseForms = `want host:port or a multiaddr as /dns4/node.example.org/tcp/8495`

func parseAdvertise(text string, id peer.ID) (announcement, error) {
	if strings.HasPrefix(text, "/") {
		return parseAdvertiseMultiaddr(text, id)
	}
	var a announcement
	host, port, err := splitHostPort(text)
	if err != nil {
		return a, fmt.Errorf("%w; %s", err, advertiseForms)
	}
	if port == 0 {
		return a, errors.New("port 0 cannot be dialed; give the port others reach this node at")
	}
	a.port = port
	ip, err := netip.ParseAddr(host)
	switch {
	case host == "" || err == nil && ip.IsUnspecified():
		return a, errors.New("an address of all interfaces cannot be dialed; give the one others reach this node at")
	case err == nil && ip.Zone() != "":
		return a, errors.New("an address with a zone means nothing to other machines")
	case err == nil && ip.Unmap().Is4():
		a.host = ma.StringCast("/ip4/" + ip.Unmap().String())
	case err == nil:
		a.host = ma.StringCast("/ip6/" + ip.String())
	default:
		if err := checkName(host); err != nil {
			return a, fmt.Errorf("%w; %s", err, advertiseForms)
		}
		a.host = ma.StringCast("/dns/" + host)
	}
	return a, nil
}

func parseAdvertiseMultiaddr(text string, id peer.ID) (announcement, error) {
	var a announcement
	addr, err := ma.NewMultiaddr(text)
	if err != nil {
		return a, err
	}
	addr, said := peer.SplitAddr(addr)
	switch {
	case said != "" && said != id:
		return a, fmt.Errorf("its id is %s, but this node is %s", said, id)
	case len(addr) == 0:
		return a, errors.New("it consists of an id only; " + advertiseForms)
	case manet.IsIPUnspecified(addr):
		return a, errors.New("an address of all interfaces cannot be dialed; give the one others reach this node at")
	}
	for _, c := range addr {
		if code := c.Protocol().Code; (code == ma.P_TCP || code == ma.P_UDP) && c.Value() == "0" {
			return a, errors.New("port 0 cannot be dialed; give the port others reach this node at")
		}
	}
	a.addr = addr
	return a, nil
}

// expand returns the multiaddrs that a means on a host that listens with the given kinds of
// transports.
func (a announcement) expand(listening []kind) []ma.Multiaddr {
	if a.addr != nil {
		return []ma.Multiaddr{a.addr}
	}
	var addrs []ma.Multiaddr
	for _, k := range plain {
		if slices.Contains(listening, k) {
			addrs = append(addrs, a.host.Encapsulate(ma.StringCast("/"+k.transport(a.port))))
		}
	}
	return addrs
}
