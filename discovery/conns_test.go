package discovery

import (
	"context"
	"testing"
	"time"

	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
)

// On a lent host, Close closes the connections that the driver has made, unless others use them.
// Connections that the application or another node has made stay.
func TestCloseLeavesConnectionsThatOthersUse(t *testing.T) {
	t.Parallel()
	x := newTester(t, testConfig{min: 0, max: 9})
	busy := map[peer.ID]bool{}
	x.d.host.isSpare = func(c network.Conn) bool { return !busy[c.RemotePeer()] }
	x.d.node.Lent = true
	x.d.Start()
	add := func() *tester {
		y := newTester(t, testConfig{min: 0, max: 9}).start()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		if _, err := x.d.Connect(ctx, y.d.node.Addrs()[0].String()); err != nil {
			t.Fatal(err)
		}
		return y
	}
	made, used := add(), add()
	busy[used.d.host.ID()] = true

	before := newTester(t, testConfig{}).d.host // the application's, which the driver dials in vain
	if err := x.d.cfg.Host.Connect(t.Context(), *corehost.InfoFromHost(before)); err != nil {
		t.Fatal(err)
	}
	if err := x.d.host.Connect(t.Context(), *corehost.InfoFromHost(before)); err != nil {
		t.Fatal(err)
	}
	caller := newTester(t, testConfig{min: 0, max: 9}).start()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := caller.d.Connect(ctx, x.d.node.Addrs()[0].String()); err != nil {
		t.Fatal(err)
	}

	x.d.Close()
	for what, c := range map[string]struct {
		id   peer.ID
		want bool
	}{
		"made by the driver":             {id: made.d.host.ID(), want: false},
		"made by the driver, and in use": {id: used.d.host.ID(), want: true},
		"made by the application":        {id: before.ID(), want: true},
		"made by another node":           {id: caller.d.host.ID(), want: true},
	} {
		if got := x.d.host.Network().Connectedness(c.id) == network.Connected; got != c.want {
			t.Errorf("the connection %s: there %v, want %v", what, got, c.want)
		}
	}
}

// The end of the link to a silent peer does not close a connection that others use.
func TestSilentPeerInUseStaysConnected(t *testing.T) {
	t.Parallel()
	x := newTester(t, testConfig{})
	y := newTester(t, testConfig{})
	for _, inUse := range []bool{true, false} {
		x.d.host.isSpare = func(network.Conn) bool { return !inUse }
		if err := x.d.host.Connect(t.Context(), *corehost.InfoFromHost(y.d.host)); err != nil {
			t.Fatal(err)
		}
		x.d.closeConns(y.d.host.ID())
		if got := len(x.d.host.Network().ConnsToPeer(y.d.host.ID())) > 0; got != inUse {
			t.Errorf("in use %v: connected %v", inUse, got)
		}
	}
}

// The connection manager keeps the connection of a link, under a tag of our own, for as long as
// the link stands.
func TestProtectionEndsWithTheLink(t *testing.T) {
	t.Parallel()
	x := newTester(t, testConfig{min: 0, max: 9}).start()
	y := newTester(t, testConfig{min: 0, max: 9}).start()
	conns, id := x.d.host.ConnManager(), y.d.host.ID()
	conns.Protect(id, "app")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := x.d.Connect(ctx, y.d.node.Addrs()[0].String()); err != nil {
		t.Fatal(err)
	}
	if !conns.IsProtected(id, protectTag) {
		t.Error("a linked peer is not protected")
	}
	if err := x.d.leave(ctx); err != nil {
		t.Fatal(err)
	}
	if conns.IsProtected(id, protectTag) || !conns.IsProtected(id, "app") {
		t.Errorf("after the link protected by us %v, by the application %v", conns.IsProtected(id, protectTag), conns.IsProtected(id, "app"))
	}
}
