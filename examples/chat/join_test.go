package main

import (
	"context"
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal"
)

const tcp = "/ip4/127.0.0.1/tcp/0" // where the end of a process is noticed at once

// kitchen starts a chat as a process, in a network with a blank in its name, and returns
// it with the ticket that it prints.
func kitchen(t *testing.T) (alice *talker, ticket string) {
	t.Helper()
	alice = talkProcess(t, "alice", "-listen", tcp, "-network", "our kitchen")
	return alice, alice.wait(`\* or gives this ticket as the -seed: (\S+)`, patient)[1]
}

// TestTicketIsEnoughToJoin: the ticket names the network too, and whoever joined by it
// invites others to the same network.
func TestTicketIsEnoughToJoin(t *testing.T) {
	t.Parallel()
	alice, ticket := kitchen(t)
	bob := talk(t, "bob", "-listen", tcp, "-seed", ticket)
	bob.wait(`\* to join, another person types: .* -network 'our kitchen'`, patient)
	for _, k := range []*talker{alice, bob} {
		k.wait(`\* connected\. Happy chatting!`, patient)
	}
	alice.say("hello bob")
	bob.wait("alice: hello bob", patient)

	alice.kill()
	lost, refused := `\* disconnected\. Sorry\.`, `\* seed ticket `+ticket[:12]+`…: connection refused[^\n]*`
	bob.wait("(?s:"+lost+".*"+refused+"|"+refused+".*"+lost+")", patient)
}

// TestWrongTicketEndsTheChat: a ticket of another network than -network names, and one
// that is cut off, end the chat with code 1 and a sentence about the ticket.
func TestWrongTicketEndsTheChat(t *testing.T) {
	t.Parallel()
	_, ticket := kitchen(t)
	for says, args := range map[string][]string{
		`is for the network "our kitchen", Network is "garden"`: {"-seed", ticket, "-network", "garden"},
		"copy it again": {"-seed", ticket[:60]},
	} {
		eve := talkProcess(t, "eve", append(args, "-listen", tcp)...)
		err := eve.end()
		if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 1 {
			t.Errorf("%q ended with %v, want code 1", args, err)
		}
		if !strings.Contains(eve.out.String(), says) {
			t.Errorf("%q printed\n%s, want %q", args, eve.out, says)
		}
	}
}

// TestFullNetworkLetsAChatIn: a network in which every node is full takes a newcomer in.
func TestFullNetworkLetsAChatIn(t *testing.T) {
	t.Parallel()
	var nodes []*smokesignal.Node
	for range 2 {
		node, err := smokesignal.New(smokesignal.Listen("127.0.0.1:0"), smokesignal.PeerLimits(1, 1), smokesignal.Network(network(t)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { node.Close() })
		if err := node.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, node)
	}
	if _, err := nodes[0].Connect(t.Context(), nodes[1].Addrs()[0].String()); err != nil {
		t.Fatal(err)
	}
	heard := make(chan string, 10)
	publicLine.On(nodes[1].Broadcast(), func(_ context.Context, _ smokesignal.ID, text string) { heard <- text })
	late := talk(t, "late", "-seed", nodes[0].Addrs()[0].String())
	late.wait(`\* connected\. Happy chatting!`, 10*time.Second)
	late.say("let me in")
	select {
	case text := <-heard:
		if text != "let me in" {
			t.Errorf("heard %q", text)
		}
	case <-time.After(patient):
		t.Error("the line does not arrive")
	}
}
