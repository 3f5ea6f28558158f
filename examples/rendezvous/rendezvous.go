package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"sync"

	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/discovery"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/discovery/routing"

	"github.com/go-smokesignal/smokesignal"
)

var said = smokesignal.Name[string]("said")

// run is the whole program. It runs a node until in or ctx ends.
func run(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	o, err := parse(args, os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	var contacts []peer.AddrInfo
	if o.bootstrap != "" {
		contact, err := peer.AddrInfoFromString(o.bootstrap)
		if err != nil {
			return fmt.Errorf("-dht %s: %w; the address must end in /p2p/ID", o.bootstrap, err)
		}
		contacts = append(contacts, *contact)
	}

	// The DHT uses the node's host, so it is made in a function that New calls with the host.
	// In server mode it answers other nodes' queries. The protocol prefix keeps it separate
	// from the DHT of IPFS.
	var kad *dht.IpfsDHT
	defer func() {
		if kad != nil {
			kad.Close() // deferred calls run in reverse order: the node, which uses the DHT, closes first
		}
	}()
	meet := func(h host.Host) (_ discovery.Discovery, err error) {
		kad, err = dht.New(ctx, h, dht.Mode(dht.ModeServer), dht.ProtocolPrefix("/rendezvous"), dht.BootstrapPeers(contacts...))
		return routing.NewRoutingDiscovery(kad), err
	}
	node, err := smokesignal.New(
		smokesignal.Listen(o.listen), smokesignal.Network(o.network), smokesignal.WithDiscovery(meet))
	if err != nil {
		return err
	}
	defer node.Close() // Close waits until the neighbors have this node's events

	screen := &lines{to: out}
	node.OnPeerAdded(func(_ context.Context, p *smokesignal.Peer) { screen.print("met %s", p.ID()) })
	said.On(node.Broadcast(), func(_ context.Context, from smokesignal.ID, text string) { screen.print("%s: %s", from, text) })
	if err := node.Start(ctx); err != nil {
		return err
	}
	if err := kad.Bootstrap(ctx); err != nil { // joins the DHT through the node named by -dht
		return err
	}
	screen.print("in the DHT at %s", node.Addrs()[0])

	input := bufio.NewScanner(in)
	typed := make(chan string)
	go func() {
		defer close(typed)
		for input.Scan() {
			select {
			case typed <- input.Text():
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		select {
		case text, ok := <-typed:
			if !ok {
				return input.Err()
			}
			if err := node.Ready(ctx); err != nil {
				return err
			}
			if err := said.Emit(ctx, node.Broadcast(), text); err != nil {
				screen.print("%v", err)
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// lines prints whole lines. Several goroutines may use it.
type lines struct {
	mu sync.Mutex
	to io.Writer
}

func (l *lines) print(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(l.to, format+"\n", args...)
}
