package smokesignal_test

import (
	"errors"
	"strings"
	"testing"

	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/internal/seed"
)

// ticketFor makes a ticket of a node that is not there.
func ticketFor(t *testing.T, network string) string {
	t.Helper()
	node, err := smokesignal.New(smokesignal.Listen("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer node.Close()
	text, err := seed.Ticket{ID: node.ID(), Network: network, Addrs: []ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/tcp/1")}}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// Ticket is an error before Start and after Close.
func TestTicketOfANodeThatIsNotRunning(t *testing.T) {
	node, err := smokesignal.New(smokesignal.Listen("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	if text, err := node.Ticket(); !errors.Is(err, smokesignal.ErrNotStarted) {
		t.Errorf("before Start: %q, %v", text, err)
	}
	if err := node.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	text, err := node.Ticket()
	if err != nil {
		t.Fatal(err)
	}
	ticket, err := smokesignal.ParseTicket(text)
	if err != nil || ticket.ID != node.ID() || ticket.Network != "default" || len(ticket.Addrs) != len(node.Addrs()) {
		t.Errorf("%+v, %v", ticket, err)
	}
	for i, a := range node.Addrs() {
		if want := ticket.Addrs[i].String() + "/p2p/" + node.ID().String(); a.String() != want {
			t.Errorf("the ticket has %s, the node %s", want, a)
		}
	}
	if err := node.Close(); err != nil {
		t.Fatal(err)
	}
	if text, err := node.Ticket(); !errors.Is(err, smokesignal.ErrClosed) {
		t.Errorf("after Close: %q, %v", text, err)
	}
	if _, err := smokesignal.ParseTicket(text[:20]); err == nil || !strings.HasPrefix(err.Error(), "smokesignal: ticket ") {
		t.Error(err)
	}
}

// A ticket says which network it is for: who gives no name joins that one, and
// networks that do not fit together are an error at New, with both names.
func TestTicketsHaveANetwork(t *testing.T) {
	plain, kitchen, garden := ticketFor(t, ""), ticketFor(t, "kitchen"), ticketFor(t, "garden")
	seeds, network := smokesignal.Seeds, smokesignal.Network
	for _, c := range []struct {
		name    string
		opts    []smokesignal.Option
		network string
		errs    []string // parts of the error
	}{
		{"no ticket", []smokesignal.Option{seeds("127.0.0.1:1")}, "default", nil},
		{"a ticket", []smokesignal.Option{seeds(kitchen, "127.0.0.1:1")}, "kitchen", nil},
		{"a ticket of the default network", []smokesignal.Option{seeds(plain)}, "default", nil},
		{"two tickets", []smokesignal.Option{seeds("127.0.0.1:1", kitchen), seeds(strings.ToUpper(ticketFor(t, "kitchen")))}, "kitchen", nil},
		{"a ticket and its network", []smokesignal.Option{network("kitchen"), seeds(kitchen)}, "kitchen", nil},
		{"a ticket and another network", []smokesignal.Option{network("garden"), seeds(kitchen)}, "", []string{"Seeds", kitchen[:12], `"kitchen"`, `"garden"`}},
		{"a ticket and the default network by name", []smokesignal.Option{seeds(kitchen), network("default")}, "", []string{"Seeds", `"kitchen"`, `"default"`}},
		{"a ticket of the default network and another", []smokesignal.Option{seeds(plain), network("kitchen")}, "", []string{"Seeds", `"kitchen"`, `"default"`}},
		{"tickets of two networks", []smokesignal.Option{seeds(kitchen, garden)}, "", []string{"Seeds", kitchen[:12], garden[:12], `"kitchen"`, `"garden"`}},
		{"tickets of two networks, of which one is the default", []smokesignal.Option{seeds(plain, garden)}, "", []string{"Seeds", `"default"`, `"garden"`}},
		{"a ticket that is cut off", []smokesignal.Option{seeds(kitchen[:40])}, "", []string{"Seeds", kitchen[:12], "copy it again"}},
		{"a ticket of a network with the longest name", []smokesignal.Option{seeds(ticketFor(t, strings.Repeat("x", 128)))}, strings.Repeat("x", 128), nil},
		{"a network with too long a name", []smokesignal.Option{network(strings.Repeat("x", 129))}, "", []string{"129 bytes", "at most 128"}},
	} {
		node, err := smokesignal.New(append(c.opts, smokesignal.Listen("127.0.0.1:0"))...)
		if len(c.errs) > 0 {
			for _, part := range c.errs {
				if err == nil || !strings.Contains(err.Error(), part) || strings.Contains(err.Error(), "\n") {
					t.Errorf("%s: %v, want one line with %s in it", c.name, err, part)
				}
			}
			if err == nil {
				node.Close()
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if err := node.Start(t.Context()); err != nil {
			t.Error(err)
		}
		text, err := node.Ticket()
		if err != nil {
			t.Error(err)
		}
		if got, err := smokesignal.ParseTicket(text); err != nil || got.Network != c.network {
			t.Errorf("%s: the node is in network %q, want %q; %v", c.name, got.Network, c.network, err)
		}
		node.Close()
	}
}
