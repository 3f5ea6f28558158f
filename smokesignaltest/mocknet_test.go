package smokesignaltest_test

import (
	"context"
	"crypto/rand"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	mocknet "github.com/libp2p/go-libp2p/p2p/net/mock"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/smokesignaltest"
)

// An application can run nodes on libp2p's mocknet, beside its own protocols, by
// WithHost. The hosts need Ed25519 keys, which mocknet does not make by itself.
func TestNodesOnMocknet(t *testing.T) {
	smokesignaltest.Run(t, func(t *testing.T) {
		network := mocknet.New()
		defer network.Close()
		heard := make(chan string, 1)
		var nodes []*smokesignal.Node
		for i := range 2 {
			key, _, err := crypto.GenerateEd25519Key(rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			host, err := network.AddPeer(key, ma.StringCast("/ip4/10.0.0.1/tcp/8495"))
			if err != nil {
				t.Fatal(err)
			}
			node, err := smokesignal.New(smokesignal.WithHost(host))
			if err != nil {
				t.Fatal(err)
			}
			defer node.Close()
			if i == 1 {
				node.Broadcast().On("chat", func(_ context.Context, ev *smokesignal.Event) {
					var text string
					if err := ev.Decode(&text); err == nil {
						heard <- text
					}
				})
			}
			if err := node.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			nodes = append(nodes, node)
		}
		if err := network.LinkAll(); err != nil {
			t.Fatal(err)
		}
		// Nodes on hosts that the application connects need no seeds.
		if err := nodes[0].Host().Connect(t.Context(), peer.AddrInfo{ID: nodes[1].ID()}); err != nil {
			t.Fatal(err)
		}
		for _, n := range nodes {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if err := n.Ready(ctx); err != nil {
				t.Fatal(err)
			}
		}
		if err := nodes[0].Broadcast().Emit(t.Context(), "chat", "hello"); err != nil {
			t.Fatal(err)
		}
		if text := <-heard; text != "hello" {
			t.Errorf("heard %q", text)
		}
		began := time.Now()
		for _, n := range nodes {
			n.Close()
		}
		t.Log("closed after", time.Since(began))
	})
}
