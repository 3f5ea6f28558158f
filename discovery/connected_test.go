package discovery

import (
	"testing"

	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/peers"
)

// Two nodes on hosts that the application has connected need no seed, whether it connected them
// before the nodes were started or after.
func TestConnectedHostsLink(t *testing.T) {
	t.Parallel()
	for name, order := range map[string][]int{
		"connected first":       {0, 1, 2},
		"the one that dialed":   {1, 0, 2},
		"the one who was there": {2, 0, 1},
		"connected last":        {1, 2, 0},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := newTester(t, testConfig{min: 1, max: 5}), newTester(t, testConfig{min: 1, max: 5})
			for _, x := range []*tester{a, b} {
				x.d.node.Lent = true
			}
			recordsA, recordsB := recordsOf(t, a.d), recordsOf(t, b.d)
			for _, step := range order {
				switch step {
				case 0:
					// Not with the driver's host: the driver remembers what it dials itself.
					if err := a.d.cfg.Host.Connect(t.Context(), *corehost.InfoFromHost(b.d.cfg.Host)); err != nil {
						t.Fatal(err)
					}
				case 1:
					a.start()
					reportKnownNodes(a.d, recordsA)
				case 2:
					b.start()
					reportKnownNodes(b.d, recordsB)
				}
			}
			a.until("link", a.hasLinks(1))
			b.until("link", b.hasLinks(1))
		})
	}
}

// recordsOf reports to d the nodes that its host is connected to, as the root does.
func recordsOf(t *testing.T, d *Driver) *peers.Registry {
	t.Helper()
	records := peers.New(peers.Config{Host: d.cfg.Host, Log: d.log})
	t.Cleanup(records.Close)
	err := records.Follow(peers.Followers{Identified: func(p peer.ID, is peers.Standing) {
		if is.Role == peers.Node {
			d.nodeConnected(p)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	return records
}

// reportKnownNodes reports to d, which has just started, the nodes that were connected before.
func reportKnownNodes(d *Driver, records *peers.Registry) {
	for _, p := range records.Nodes() {
		d.nodeConnected(p)
	}
}

// Connections that the driver has dialed do not count, nor do inbound ones.
func TestConnectionsOfTheApplicationAreFound(t *testing.T) {
	t.Parallel()
	a, b, c := newTester(t, testConfig{}).d.host, newTester(t, testConfig{}).d.host, newTester(t, testConfig{}).d.host
	if err := a.Connect(t.Context(), *corehost.InfoFromHost(b)); err != nil {
		t.Fatal(err)
	}
	if err := a.Host.Connect(t.Context(), *corehost.InfoFromHost(c)); err != nil {
		t.Fatal(err)
	}
	if a.dialedByOthers(b.ID()) != nil || a.dialedByOthers(c.ID()) == nil || b.dialedByOthers(a.ID()) != nil || c.dialedByOthers(a.ID()) != nil {
		t.Errorf("of the driver: %v, of the application: %v, of who called: %v and %v",
			a.dialedByOthers(b.ID()), a.dialedByOthers(c.ID()), b.dialedByOthers(a.ID()), c.dialedByOthers(a.ID()))
	}
	if len(a.making) > 0 {
		t.Errorf("being made: %v", a.making)
	}
}
