package bench

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
)

// The names of the entrants that send by raw pubsub. Broadcasts of smokesignal are compared
// with them.
const (
	FloodsubRaised   = "floodsub-raised"  // raw floodsub whose queues are long enough for a whole burst, so that no message is lost
	FloodsubDefault  = "floodsub-default" // raw floodsub whose queues have the default length of go-libp2p-pubsub
	GossipsubRaised  = "gossipsub-raised"
	GossipsubDefault = "gossipsub-default"
)

const (
	topicName = "bench"
	// The lengths, in messages, of the pubsub queues of FloodsubRaised and GossipsubRaised.
	raisedOutbound     = 1 << 20
	raisedValidate     = 1 << 16
	raisedSubscription = 1 << 16
)

type newPubSub func(context.Context, corehost.Host, ...pubsub.Option) (*pubsub.PubSub, error)

// pubsubEntrant returns an entrant that runs the raw pubsub with the given name on every node
// of the graph. All nodes subscribe, and the first publishes count messages of size bytes per
// round by the pattern p. Messages are signed and verified, as by default.
func pubsubEntrant(name string, g graph, size, count int, p pattern) entrant {
	ctor, raised := newPubSub(pubsub.NewFloodSub), false
	switch name {
	case FloodsubRaised:
		raised = true
	case GossipsubDefault:
		ctor = pubsub.NewGossipSub
	case GossipsubRaised:
		ctor, raised = pubsub.NewGossipSub, true
	}
	return entrant{name, count, func(ctx context.Context) (*rig, error) {
		net := &pubsubNet{}
		f, err := net.open(ctx, g, ctor, raised, size)
		if err != nil {
			net.close()
			return nil, err
		}
		f.lossy = !raised
		if name == GossipsubDefault || name == GossipsubRaised {
			if err := settle(ctx); err != nil {
				net.close()
				return nil, err
			}
		}
		return f.rig(p, net.close), nil
	}}
}

// rig returns a rig whose rounds send events by the pattern p, and whose close function is
// closing.
func (f *flow) rig(p pattern, closing func()) *rig {
	if p == paced {
		return &rig{f.sendPaced, closing}
	}
	return &rig{f.burst, closing}
}

// pubsubNet holds everything that its method close has to end: the hosts and goroutines of raw
// pubsubs.
type pubsubNet struct {
	cancel context.CancelFunc
	hosts  []corehost.Host
	tasks  sync.WaitGroup
}

func (p *pubsubNet) close() {
	if p.cancel != nil {
		p.cancel()
	}
	p.tasks.Wait()
	for _, h := range p.hosts {
		h.Close()
	}
}

func (p *pubsubNet) open(ctx context.Context, g graph, ctor newPubSub, raised bool, size int) (*flow, error) {
	life, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	var options []pubsub.Option
	var subscription []pubsub.SubOpt
	if raised {
		options = []pubsub.Option{
			pubsub.WithPeerOutboundQueueSize(raisedOutbound),
			pubsub.WithValidateQueueSize(raisedValidate),
			pubsub.WithValidateWorkers(1), // several workers would reorder the events
		}
		subscription = []pubsub.SubOpt{pubsub.WithBufferSize(raisedSubscription)}
	}
	topics := make([]*pubsub.Topic, g.n)
	f := &flow{}
	for i := range g.n {
		h, err := newHost(tcp)
		if err != nil {
			return nil, err
		}
		p.hosts = append(p.hosts, h)
		ps, err := ctor(life, h, options...)
		if err != nil {
			return nil, err
		}
		if topics[i], err = ps.Join(topicName); err != nil {
			return nil, err
		}
		sub, err := topics[i].Subscribe(subscription...)
		if err != nil {
			return nil, err
		}
		count := func([]byte) {} // the publisher does not count its own events
		if i > 0 {
			r := new(receiver)
			f.to = append(f.to, r)
			count = r.countBytes
		}
		p.tasks.Go(func() {
			for {
				m, err := sub.Next(life)
				if err != nil {
					return
				}
				count(m.Data)
			}
		})
	}
	for _, e := range g.edges {
		if err := link(ctx, p.hosts[e[0]], p.hosts[e[1]]); err != nil {
			return nil, err
		}
	}
	for i, topic := range topics {
		if err := awaitPeers(ctx, topic, len(g.neighbors(i))); err != nil {
			return nil, err
		}
	}
	f.send = func(ctx context.Context, round, no uint32) error {
		b := make([]byte, size) // a new slice for each event, because pubsub keeps it
		fill(b, round, no)
		return topics[0].Publish(ctx, b)
	}
	return f, nil
}

// awaitPeers waits until the topic has n peers.
func awaitPeers(ctx context.Context, topic *pubsub.Topic, n int) error {
	seen, err := topic.EventHandler()
	if err != nil {
		return err
	}
	defer seen.Cancel()
	for n > 0 {
		ev, err := seen.NextPeerEvent(ctx)
		if err != nil {
			return fmt.Errorf("wait for %d more peers on the topic: %w", n, err)
		}
		if ev.Type == pubsub.PeerJoin {
			n--
		} else {
			n++
		}
	}
	return nil
}

// settling is how long gossipsub gets to build its mesh before a benchmark: two of its
// heartbeats. A tracer could report when the mesh is complete, but would slow gossipsub down.
const settling = 2 * time.Second

func settle(ctx context.Context) error {
	select {
	case <-time.After(settling):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// The addresses on which the smokesignal nodes and the raw libp2p hosts listen.
const (
	tcp  = "/ip4/127.0.0.1/tcp/0"
	quic = "/ip4/127.0.0.1/udp/0/quic-v1"
)

// newHost makes a libp2p host that listens on the address listen and has libp2p's defaults,
// except that it registers no metrics.
func newHost(listen string) (corehost.Host, error) {
	return libp2p.New(libp2p.ListenAddrStrings(listen), libp2p.DisableMetrics())
}

// link connects two hosts.
func link(ctx context.Context, from, to corehost.Host) error {
	return from.Connect(ctx, peer.AddrInfo{ID: to.ID(), Addrs: to.Addrs()})
}
