package main

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal"
)

// listens returns the given addresses to listen on, which are for nodes, and addresses for
// browsers: WebSocket, which the page uses by default, and WebTransport and WebRTC-direct,
// which a page with a ticket may use.
func listens(given []string) []string {
	all := slices.Clone(given)
	if len(given) == 0 {
		all = []string{":0"}
	}
	for _, text := range slices.Clone(all) {
		if strings.HasPrefix(text, "/") {
			continue // a multiaddr is used as it is
		}
		host, _, _ := net.SplitHostPort(text)
		ip, err := netip.ParseAddr(host)
		switch {
		case host == "":
			ip = netip.IPv4Unspecified()
		case host == "localhost":
			ip = netip.MustParseAddr("127.0.0.1")
		case err != nil:
			continue // a host name, or an invalid address, for which New returns an error
		}
		at := "/ip4/"
		if ip.Is6() {
			at = "/ip6/"
		}
		at += ip.WithZone("").String()
		all = append(all, at+"/tcp/0/ws", at+"/udp/0/quic-v1/webtransport", at+"/udp/0/webrtc-direct")
	}
	if !slices.ContainsFunc(all, func(a string) bool { return strings.HasSuffix(a, "/ws") }) {
		all = append(all, "/ip4/127.0.0.1/tcp/0/ws")
	}
	return all
}

// over returns a's host:port if the protocols above IP in the address a are exactly those in
// transport, such as TCP alone. Otherwise it reports false.
func over(a ma.Multiaddr, transport ...int) (string, bool) {
	var codes []int
	var host, port string
	for _, c := range a {
		switch code := c.Protocol().Code; code {
		case ma.P_P2P:
		case ma.P_IP4, ma.P_IP6:
			host = c.Value()
		case ma.P_TCP:
			port = c.Value()
			codes = append(codes, code)
		default:
			codes = append(codes, code)
		}
	}
	return net.JoinHostPort(host, port), host != "" && slices.Equal(codes, transport)
}

// command returns the shell command with which a terminal joins the chat.
func command(node *smokesignal.Node) (string, error) {
	ticket, err := node.Ticket()
	if err != nil {
		return "", err
	}
	for _, a := range node.Addrs() {
		if at, ok := over(a, ma.P_TCP); ok {
			words := "go run ./examples/chat -seed " + at
			if t, err := smokesignal.ParseTicket(ticket); err == nil && t.Network != defaultNetwork {
				words += " -network '" + strings.ReplaceAll(t.Network, "'", `'\''`) + "'"
			}
			return words, nil
		}
	}
	return "go run ./examples/chat -seed " + ticket, nil
}

// allLoopback reports whether none of the addresses to listen on can be reached from other machines.
func allLoopback(listen []string) bool {
	return len(listen) > 0 && !slices.ContainsFunc(listen, func(text string) bool {
		host, _, err := net.SplitHostPort(text)
		if a, e := ma.NewMultiaddr(text); e == nil && len(a) > 0 {
			host, err = a[0].Value(), nil
		}
		ip, e := netip.ParseAddr(host)
		return err != nil || host != "localhost" && (e != nil || !ip.IsLoopback())
	})
}

// urls returns the addresses at which a browser can open the page. The server of the page
// listens at at.
func urls(at *net.TCPAddr) []string {
	if !at.IP.IsUnspecified() {
		return []string{fmt.Sprintf("http://%s/", at)}
	}
	var list []string
	for _, ip := range append(externalIPs(), "127.0.0.1") {
		list = append(list, fmt.Sprintf("http://%s/", net.JoinHostPort(ip, fmt.Sprint(at.Port))))
	}
	return list
}

// phoneAddress returns an address of the page for other machines, or a text that describes
// one if this machine has no such address.
func phoneAddress(port int) string {
	if ips := externalIPs(); len(ips) > 0 {
		return net.JoinHostPort(ips[0], fmt.Sprint(port))
	}
	return fmt.Sprintf("ADDRESS:%d, where ADDRESS is this machine's address in the phone's network", port)
}

// externalIPs returns the IPv4 addresses of this machine that other machines may reach.
func externalIPs() (ips []string) {
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() {
			ips = append(ips, n.IP.String())
		}
	}
	return ips
}
