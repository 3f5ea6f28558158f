package main

import (
	"bytes"
	"errors"
	"flag"
	"os/exec"
	"strings"
	"testing"

	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal"
)

// A TCP multiaddr is shown as host and port.
func TestHostPort(t *testing.T) {
	const id = "/p2p/12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp"
	for addr, want := range map[string]string{
		"/ip4/192.168.2.100/tcp/8495" + id:     "192.168.2.100:8495",
		"/ip6/::1/tcp/8495" + id:               "[::1]:8495",
		"/ip4/127.0.0.1/tcp/8495":              "127.0.0.1:8495",
		"/ip4/127.0.0.1/udp/8495/quic-v1" + id: "",
		"/ip4/127.0.0.1/tcp/8495/ws" + id:      "",
		"/dns4/example.com/tcp/8495" + id:      "example.com:8495",
		"/ip4/127.0.0.1/tcp/8495/tls/sni/x/ws": "",
	} {
		if got, _ := hostPort(ma.StringCast(addr)); got != want {
			t.Errorf("%s: got %q, want %q", addr, got, want)
		}
	}
}

// TestInvitationSurvivesShell pastes the command into a shell and looks at what
// the program would get.
func TestInvitationSurvivesShell(t *testing.T) {
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Skip("no sh")
	}
	for _, network := range []string{"", "plain", "two words", "it's", `$(touch x) "\ *`, "-n"} {
		command := invitation("[::1]:8495", network)
		script := strings.Replace(command, "go run ./examples/chat", `printf '%s\n'`, 1)
		out, err := exec.Command(sh, "-c", script).Output()
		if err != nil {
			t.Fatal(command, err)
		}
		args := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
		o, err := parse(args, &bytes.Buffer{})
		if err != nil || len(o.seeds) != 1 || o.seeds[0] != "[::1]:8495" || o.network != network {
			t.Errorf("%s: got %+v, %v", command, o, err)
		}
	}
}

func TestTicketsOnTheScreen(t *testing.T) {
	const ticket = "smoke1biqgvoh45uyf7u4dtbieq763qsqqu2qvec4fiulynqxfysfdaoepe3asazv4hpddnbssecaeycuaezageexth7gahy"
	if got := networkOf(ticket); got != "küche" {
		t.Errorf("network %q", got)
	}
	node, err := smokesignal.New(smokesignal.Listen("127.0.0.1:0"), smokesignal.Network(defaultNetwork))
	if err != nil {
		t.Fatal(err)
	}
	defer node.Close()
	if err := node.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	own, err := node.Ticket()
	if err != nil {
		t.Fatal(err)
	}
	if got := networkOf(own); got != "" {
		t.Errorf("network %q of a ticket of the chat, want none", got)
	}
	for seed, want := range map[string]string{
		ticket:           "ticket smoke1biqgvo…",
		ticket[:30]:      ticket[:30], // the user has to see what is wrong with it
		"127.0.0.1:8495": "127.0.0.1:8495",
	} {
		if got := seedName(seed); got != want {
			t.Errorf("%s is called %q, want %q", seed, got, want)
		}
	}
}

// Listen addresses on loopback are recognized.
func TestLoopback(t *testing.T) {
	for addr, want := range map[string]bool{
		"127.0.0.1:0": true, "[::1]:8495": true, "localhost:1": true, "127.3.2.1:1": true,
		"/ip4/127.0.0.1/tcp/0": true, "/ip6/::1/udp/0/quic-v1": true,
		":8495": false, "0.0.0.0:0": false, "192.168.2.1:0": false, "/ip4/0.0.0.0/tcp/0": false, "": false,
	} {
		if got := loopback(addr); got != want {
			t.Errorf("%q: got %v", addr, got)
		}
	}
}

// The help lists each flag, and the error of a bad flag names it.
func TestParse(t *testing.T) {
	var help bytes.Buffer
	if _, err := parse([]string{"-help"}, &help); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("-help: %v", err)
	}
	for _, word := range []string{"-listen", "-seed", "-name", "-network", "-identity"} {
		if !strings.Contains(help.String(), word) {
			t.Errorf("the help does not mention %s:\n%s", word, &help)
		}
	}
	for _, args := range [][]string{{"-no-such"}, {"stray"}, {"-seed"}} {
		var out bytes.Buffer
		_, err := parse(args, &out)
		if err == nil || !strings.Contains(err.Error(), "-help") || out.Len() > 0 {
			t.Errorf("%q: %v, printed %q", args, err, &out)
		}
	}
	o, err := parse([]string{"-seed", "a:1", "-seed", "b:2", "-listen", ":1", "-name", "n"}, &help)
	if err != nil || len(o.seeds) != 2 || len(o.listen) != 1 || o.name != "n" {
		t.Errorf("got %+v, %v", o, err)
	}
	if o.isolated() {
		t.Error("alone with two seeds")
	}
	if o, _ = parse([]string{"-listen", "127.0.0.1:0"}, &help); !o.isolated() {
		t.Error("not alone on loopback without a seed")
	}
	if o, _ = parse(nil, &help); o.isolated() {
		t.Error("alone on all interfaces")
	}
}
