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

// listens adds addresses for browsers to the addresses for nodes: WebSocket, which the page
// uses by default, and WebTransport and WebRTC-direct, which a page with a ticket may use.
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
			continue // a host name, or a mistake that New reports
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

// over returns the host and port of an address of one form, such as TCP alone.
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

// command returns the command with which a terminal joins.
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

// allLoopback reports whether all addresses to listen on can be reached from this machine only.
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

// urls returns the addresses of the page.
func urls(at *net.TCPAddr) []string {
	if !at.IP.IsUnspecified() {
		return []string{fmt.Sprintf("http://%s/", at)}
	}
	var list []string
	for _, ip := range append(outside(), "127.0.0.1") {
		list = append(list, fmt.Sprintf("http://%s/", net.JoinHostPort(ip, fmt.Sprint(at.Port))))
	}
	return list
}

// phoneAddress returns an address that other machines reach, or a description of one.
func phoneAddress(port int) string {
	if ips := outside(); len(ips) > 0 {
		return net.JoinHostPort(ips[0], fmt.Sprint(port))
	}
	return fmt.Sprintf("ADDRESS:%d, an address of this machine in the network of the phone", port)
}

// outside returns the IPv4 addresses of this machine that other machines may reach.
func outside() (ips []string) {
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() {
			ips = append(ips, n.IP.String())
		}
	}
	return ips
}
