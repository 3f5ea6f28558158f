package discovery

import (
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/internal/addr"
	"github.com/go-smokesignal/smokesignal/internal/peers"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
	"github.com/go-smokesignal/smokesignal/internal/wiring"
)

// check returns an error if a field of the configuration is missing or out of bounds.
func check(cfg *Config) error {
	switch {
	case cfg.Host == nil:
		return errors.New("Config.Host is nil; give the host to keep linked")
	case cfg.Host.Peerstore().PrivKey(cfg.Host.ID()) == nil:
		return errors.New("the private key of Config.Host is not in its peerstore; put it there, since the driver signs addresses with it")
	case cfg.Network == "":
		return errors.New("Config.Network is empty; give the name of the network")
	case len(cfg.Network) > protocol.MaxNetwork:
		return fmt.Errorf("Config.Network has %d bytes, at most %d are allowed", len(cfg.Network), protocol.MaxNetwork)
	}
	return nil
}

// withDefaults returns a copy of Config.Node in which every function is set. Without a node of
// package smokesignal there is no pubsub topic, so every peer counts as being on the topic, and
// the handshake alone makes a link.
func withDefaults(cfg Config) wiring.Overlay {
	var w wiring.Overlay
	if cfg.Node != nil {
		w = *cfg.Node
	}
	if w.Session.IsZero() {
		w.Session = protocol.NewSession()
	}
	if w.Addrs == nil {
		w.Addrs = func() []ma.Multiaddr { return addr.Dialable(cfg.Host.Addrs(), cfg.Host.ID()) }
	}
	if w.Connected == nil {
		w.Connected = func() []peer.ID { return nil }
	}
	if w.Spare == nil {
		w.Spare = func(network.Conn) bool { return true }
	}
	if w.Pending == nil {
		w.Pending = func(peer.ID) {}
	}
	if w.Linked == nil {
		w.Linked = func(peer.ID, []byte) {}
	}
	if w.Unlinked == nil {
		w.Unlinked = func(peer.ID, error, peers.Ending) {}
	}
	if w.OnTopic == nil {
		w.OnTopic = func(peer.ID) bool { return true }
	}
	if w.Greeting == nil {
		w.Greeting = func() []byte { return nil }
	}
	if w.Heard == nil {
		w.Heard = func(peer.ID) {}
	}
	if w.SeedFound == nil {
		w.SeedFound = func(string, peer.AddrInfo) {}
	}
	if w.SeedIsSelf == nil {
		w.SeedIsSelf = func(string) {}
	}
	return w
}

// connectTo sets the functions of node that package smokesignal calls on the driver.
func (d *Driver) connectTo(node *wiring.Overlay) {
	node.Serve, node.Leave, node.Dial = d.acceptStreams, d.leave, d.dial
	node.NodeConnected, node.TopicChanged = d.nodeConnected, d.topicChanged
	node.SeedLost, node.SeedHeard = d.seedLost, d.seedHeard
	node.Sources = d.sources.outcomes
}
