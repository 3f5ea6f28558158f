package discovery

import (
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/discovery/internal/overlay"
)

// watchConnected learns of the nodes that the application connects its host to, or had
// connected it to before: two hosts that talk already need no seed to find each other.
// Who connects to us does not make us remember it.
func (d *Driver) watchConnected() {
	sub, err := d.host.EventBus().Subscribe([]any{new(event.EvtPeerIdentificationCompleted), new(event.EvtPeerProtocolsUpdated)},
		eventbus.BufSize(256), eventbus.Name("smokesignal discovery"))
	if err != nil {
		d.log.Warn("not looking for nodes among the peers of the host", "err", err)
		return
	}
	d.spoken = sub
	d.tasks.Go(func() {
		for _, p := range d.host.Network().Peers() {
			d.connectedTo(p)
		}
		for ev := range sub.Out() {
			switch ev := ev.(type) {
			case event.EvtPeerIdentificationCompleted:
				d.connectedTo(ev.Peer)
			case event.EvtPeerProtocolsUpdated:
				d.connectedTo(ev.Peer)
			}
		}
	})
}

func (d *Driver) connectedTo(p peer.ID) {
	c := d.host.given(p)
	if c == nil {
		return
	}
	if spoken, err := d.host.Peerstore().SupportsProtocols(p, Protocol); err != nil || len(spoken) == 0 {
		return
	}
	d.guard.proved(p, c.RemoteMultiaddr(), time.Now())
	d.Learn(overlay.Contact{ID: p, Addrs: []ma.Multiaddr{c.RemoteMultiaddr()}})
}
