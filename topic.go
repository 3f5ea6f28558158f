package smokesignal

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/discovery"
	"github.com/go-smokesignal/smokesignal/events"
	"github.com/go-smokesignal/smokesignal/host"
	"github.com/go-smokesignal/smokesignal/internal/logging"
)

// Topic takes part in a pubsub topic that others made. See Node.Topic.
type Topic = events.Topic

// topics are those that Node.Topic has returned.
type topics struct {
	mu     sync.Mutex
	closed bool
	open   map[string]*Topic // or closed a moment ago
	all    map[*Topic]bool   // also those whose handlers still run
	tasks  sync.WaitGroup
}

// Topic takes part in the pubsub topic of that name, of any libp2p application:
// floodsub or gossipsub, in any language, with signed messages, which is everybody's
// default. Published are the bytes given, without prefix or envelope, and received are
// the bytes of others, with the author proven.
//
// Peers on the topic need not be nodes, and are not linked to: Connect connects to them,
// or they connect to this node. From the first Topic on, the
// node speaks pubsub with everybody it is connected to.
//
// A second call with the same name returns the same Topic while that is open. It may be
// called before Start. The node closes its topics. The error is ErrClosed, or says what is
// wrong with the name: the node's own topic, smokesignal/NETWORK, cannot be had, since
// Broadcast().OnRaw gives what comes raw there.
func (n *Node) Topic(name string) (*Topic, error) {
	if name == n.topic {
		return nil, fmt.Errorf("smokesignal: topic %q is the network's own: emit events there with Broadcast(), and hear with Broadcast().OnRaw what is no event", name)
	}
	n.topics.mu.Lock()
	defer n.topics.mu.Unlock()
	if n.topics.closed {
		return nil, ErrClosed
	}
	if t := n.topics.open[name]; t != nil {
		select {
		case <-t.Done():
			t.Close() // which waits until the topic is left
		default:
			return t, nil
		}
	}
	cfg := events.TopicConfig{Name: name, Joined: n.cfg.topics[name], Log: logging.Room("events", n.cfg.logger)}
	if n.gate != nil {
		cfg.AwaitRoom = n.gate.AwaitRoom
	}
	t, err := events.NewTopic(n.pubsub, n.host, cfg)
	if err != nil {
		return nil, fmt.Errorf("smokesignal: %w", err)
	}
	if n.gate != nil {
		n.gate.Open()
	}
	if n.topics.open == nil {
		n.topics.open, n.topics.all = map[string]*Topic{}, map[*Topic]bool{}
	}
	n.topics.open[name], n.topics.all[t] = t, true
	n.topics.tasks.Go(func() { n.topics.forget(t) })
	return t, nil
}

// forget forgets t when it is closed and its handlers have ended.
func (l *topics) forget(t *Topic) {
	<-t.Done()
	t.Shutdown(context.Background())
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.all, t)
	if l.open[t.Name()] == t {
		delete(l.open, t.Name())
	}
}

// Connect connects to whoever is at addr, given as for Seeds, and returns its id. It may
// be any libp2p program, known by its address alone: it is not linked to, and is to be
// met on a Topic. The error is ErrSelf, ErrUnreachable, ErrRelayed, ErrUnresolvable,
// ErrNotSmokesignal (nothing there speaks libp2p), a *WrongIDError, or that of ctx; after
// five seconds ErrUnreachable.
func (n *Node) Connect(ctx context.Context, addr string) (ID, error) {
	if err := n.running(); err != nil {
		return "", err
	}
	seed, err := discovery.ParseSeed(addr)
	if err != nil {
		return "", fmt.Errorf("smokesignal: connect: %w", err)
	}
	began := time.Now()
	info, err := n.driver.Find(ctx, seed)
	if err == nil && seed.ID() == "" && overWebRTC(info) && n.foreign(info.ID) && !n.pubSubCame(ctx, info.ID) {
		err = n.connectAgain(ctx, info, began)
	}
	if err != nil {
		return "", fmt.Errorf("smokesignal: connect to %s: %w", addr, err)
	}
	return info.ID, nil
}

func overWebRTC(info peer.AddrInfo) bool {
	return slices.ContainsFunc(info.Addrs, func(a ma.Multiaddr) bool {
		_, err := a.ValueForProtocol(ma.P_WEBRTC_DIRECT)
		return err == nil
	})
}

// pubSubPatience is how long the pubsub of another program, which opens its stream at
// once, is waited for.
const pubSubPatience = 3 * time.Second

// pubSubCame waits for a pubsub stream of p, which is connected. It returns false if p
// speaks pubsub and opens none.
func (n *Node) pubSubCame(ctx context.Context, p ID) bool {
	protocols := host.PubSubProtocols(n.host)
	if spoken, err := n.host.Peerstore().SupportsProtocols(p, protocols...); err != nil || len(spoken) == 0 {
		return true
	}
	late := time.After(pubSubPatience)
	look := time.NewTicker(10 * time.Millisecond) // libp2p does not tell of streams
	defer look.Stop()
	for {
		for _, c := range n.host.Network().ConnsToPeer(p) {
			for _, s := range c.GetStreams() {
				if s.Stat().Direction == network.DirInbound && slices.Contains(protocols, s.Protocol()) {
					return true
				}
			}
		}
		select {
		case <-look.C:
		case <-late:
			return false
		case <-ctx.Done():
			return true // it is connected all the same
		}
	}
}

// connectAgain replaces the connection that was made since began. To ask who is at an
// address, a dial is given up in its handshake; with WebRTC, the other side has finished
// its own by then, and its pubsub may choose that dead connection for its stream. It does
// not try again as long as there is another connection.
func (n *Node) connectAgain(ctx context.Context, info peer.AddrInfo, began time.Time) error {
	for _, c := range n.host.Network().ConnsToPeer(info.ID) {
		if c.Stat().Direction == network.DirOutbound && !c.Stat().Opened.Before(began) {
			c.Close()
		}
	}
	known, err := discovery.ParseSeed(info.Addrs[0].String() + "/p2p/" + info.ID.String())
	if err == nil {
		_, err = n.driver.Find(ctx, known)
	}
	return err
}

// close closes all topics, and waits for their handlers until ctx ends.
func (l *topics) close(ctx context.Context) error {
	l.mu.Lock()
	l.closed = true
	all := slices.Collect(maps.Keys(l.all))
	l.mu.Unlock()
	var errs []error
	for _, t := range all {
		t.Close()
	}
	for _, t := range all {
		errs = append(errs, t.Shutdown(ctx))
	}
	err := errors.Join(errs...)
	if err == nil && !inHandler(ctx) { // a handler that closes its node goes on
		l.tasks.Wait()
	}
	return err
}

// foreign tells whether p is no smokesignal node, as far as it has said.
func (n *Node) foreign(p peer.ID) bool {
	spoken, err := n.host.Peerstore().SupportsProtocols(p, discovery.Protocol)
	return err == nil && len(spoken) == 0
}
