package discovery_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/discovery"
)

// Two nodes link to each other and pass on a signal.
func Example() {
	linked := make(chan peer.ID, 2)
	signals := make(chan string, 1)
	run := func(seeds ...string) (*discovery.Driver, host.Host) {
		h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"))
		if err != nil {
			log.Fatal(err)
		}
		d, err := discovery.New(discovery.Config{
			Host: h, Network: "home", Min: 3, Max: 6, Seeds: seeds,
			OnLinked: func(p peer.ID) { linked <- p },
			OnSignal: func(_ peer.ID, payload []byte) { signals <- string(payload) },
		})
		if err != nil {
			log.Fatal(err)
		}
		d.Start()
		return d, h
	}
	first, a := run()
	second, b := run(fmt.Sprintf("%s/p2p/%s", a.Addrs()[0], a.ID()))
	<-linked
	<-linked
	fmt.Println(len(first.Neighbors()), second.Neighbors()[0] == a.ID())
	second.Flood([]byte("hello"), "")
	fmt.Println(<-signals)
	for _, d := range []*discovery.Driver{second, first} {
		if err := d.Close(); err != nil {
			log.Print(err)
		}
	}
	a.Close()
	b.Close()
	// Output:
	// 1 true
	// hello
}

// A driver that no node of package smokesignal owns reports the end of a link and its reason,
// links on request, and keeps its neighbors in a file.
func TestDriverWorksWithoutANode(t *testing.T) {
	t.Parallel()
	type ended struct {
		peer   peer.ID
		reason error
	}
	ends := make(chan ended, 1)
	linked := make(chan peer.ID, 4)
	run := func(cfg discovery.Config) (*discovery.Driver, host.Host) {
		h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableMetrics())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { h.Close() })
		cfg.Host, cfg.Network, cfg.Max = h, "home", 4
		cfg.OnLinked = func(p peer.ID) { linked <- p }
		d, err := discovery.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		d.Start()
		return d, h
	}
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	book := filepath.Join(t.TempDir(), "book")
	a, ha := run(discovery.Config{OnUnlinked: func(p peer.ID, reason error) { ends <- ended{p, reason} }})
	b, hb := run(discovery.Config{PeerBook: book})
	if id, err := b.Connect(ctx, fmt.Sprintf("%s/p2p/%s", ha.Addrs()[0], ha.ID())); err != nil || id != ha.ID() {
		t.Fatalf("connect: %v, %v", id, err)
	}
	<-linked
	<-linked
	if s := b.Status(); s.Links != 1 || s.Tag == "" {
		t.Errorf("status %+v", s)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if e := <-ends; e.peer != hb.ID() || !errors.Is(e.reason, discovery.ErrClosed) {
		t.Errorf("ended with %v", e)
	}
	// The next run finds the network by its book alone.
	c, _ := run(discovery.Config{PeerBook: book, Min: 1})
	<-linked
	<-linked
	for _, d := range []*discovery.Driver{a, c} {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}

// The error of New names the wrong field of the configuration.
func TestNewSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	h, err := libp2p.New(libp2p.NoListenAddrs, libp2p.DisableMetrics())
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for want, cfg := range map[string]discovery.Config{
		"Config.Host is nil":      {Network: "home"},
		"Config.Network is empty": {Host: h},
		"Config.Network has 129":  {Host: h, Network: strings.Repeat("x", 129)},
		`seed "nonsense"`:         {Host: h, Network: "home", Seeds: []string{"nonsense"}},
		"peer book":               {Host: h, Network: "home", PeerBook: t.TempDir()},
	} {
		if _, err := discovery.New(cfg); err == nil || !strings.HasPrefix(err.Error(), "discovery: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q in it", err, want)
		}
	}
}
