package smokesignal

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/discovery"
	"github.com/go-smokesignal/smokesignal/events"
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
