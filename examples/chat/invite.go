package main

import (
	"net"
	"net/netip"
	"strings"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/go-smokesignal/smokesignal"
)

// introduce shows the user where this chat can be reached, the command that another person
// types to join it, and a ticket: a longer text that can be pasted in place of the address.
func (s *session) introduce() {
	defer close(s.introduced)
	addrs := s.node.Addrs()
	var at []string
	for _, a := range addrs {
		if hp, ok := hostPort(a); ok {
			at = append(at, hp)
		}
	}
	if len(at) == 0 {
		for _, a := range addrs {
			at = append(at, a.String())
		}
	}
	s.view.showStatus("listening on %s; id %s", strings.Join(at, ", "), s.node.ID())
	if ticket, err := s.node.Ticket(); err != nil {
		s.view.showStatus("nobody can be invited: %v", err)
	} else {
		s.view.showCommand("to join, another person types:", invitation(at[0], networkOf(ticket)))
		s.view.showCommand("or gives this ticket as the -seed:", ticket)
	}
	s.view.showStatus("connecting")
	if s.opts.isolated() {
		s.view.showStatus("not looking for others on the local network, which cannot reach this loopback address; " +
			"give a -seed, or let others join with the command above")
	}
	s.showWho()
}

// networkOf returns the network that a ticket names, or "" if it is the default network.
func networkOf(ticket string) string {
	t, err := smokesignal.ParseTicket(ticket)
	if err != nil || t.Network == defaultNetwork {
		return ""
	}
	return t.Network
}

// seedName returns the text that stands for a seed on the screen: the seed itself, or a
// short form of a ticket, which would fill several rows.
func seedName(seed string) string {
	if isTicket(seed) {
		return "ticket " + fit(seed, 13)
	}
	return seed
}

// hostPort returns a plain TCP address, with or without a peer id, as host:port. It reports
// false for all other addresses, such as QUIC or WebSocket ones.
func hostPort(a ma.Multiaddr) (string, bool) {
	if id, err := a.ValueForProtocol(ma.P_P2P); err == nil {
		a = a.Decapsulate(ma.StringCast("/p2p/" + id))
	}
	if len(a) != 2 || a[1].Protocol().Code != ma.P_TCP {
		return "", false
	}
	switch a[0].Protocol().Code {
	case ma.P_IP4, ma.P_IP6, ma.P_DNS, ma.P_DNS4, ma.P_DNS6:
		return net.JoinHostPort(a[0].Value(), a[1].Value()), true
	}
	return "", false
}

// invitation returns the shell command that joins the chat at addr in the network of that name.
func invitation(addr, network string) string {
	words := []string{"go", "run", "./examples/chat", "-seed", addr}
	if network != "" {
		words = append(words, "-network", network)
	}
	for i, w := range words {
		words[i] = quoted(w)
	}
	return strings.Join(words, " ")
}

// quoted puts w in quotes where a shell would not read it as one word.
func quoted(w string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./:@%+=,", r)
	}
	if w != "" && strings.IndexFunc(w, func(r rune) bool { return !plain(r) }) < 0 {
		return w
	}
	return "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
}

// loopback reports whether addr, an address to listen on, can be reached only by programs on
// this machine.
func loopback(addr string) bool {
	host := addr
	if a, err := ma.NewMultiaddr(addr); err == nil {
		return manet.IsIPLoopback(a)
	}
	if h, _, err := net.SplitHostPort(addr); err == nil {
		host = h
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}
