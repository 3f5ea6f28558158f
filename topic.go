package smokesignal

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"

	"github.com/go-smokesignal/smokesignal/internal/logging"
	"github.com/go-smokesignal/smokesignal/internal/topic"
)

// A Topic takes part in a pubsub topic of any libp2p application: floodsub or gossipsub, in
// any language, with signed messages, which are everybody's default. Publish sends exactly
// the bytes it is given, and the author of every received message is proven. Node.Topic
// returns it.
//
// Pubsub delivers each message at most once, and nothing is repaired. A message reaches the
// peers on the topic to which this node is connected; their pubsub decides whether to pass
// it on. All methods may be called from several goroutines, and from handlers.
type Topic struct {
	channel *topic.Topic
}

// Name returns the name of the topic.
func (t *Topic) Name() string { return t.channel.Name() }

// MaxSize returns how many bytes Publish accepts: about 1 MiB less the envelope.
func (t *Topic) MaxSize() int { return t.channel.MaxSize() }

// Publish sends data, exactly as it is and signed by this node, to everybody on the topic.
// data may be empty, and belongs to the caller again when Publish returns. Nil means that
// data was sent to the members. Members do not confirm messages, and a member that reads
// nothing for five seconds misses the messages that are sent to it in the meantime.
//
// While a member is far behind, Publish waits for it, at most five seconds or until ctx ends.
// Later calls do not wait for that member until it has caught up. These errors come at once:
// ErrTooLarge (data has more than MaxSize bytes), ErrNoPeers (nobody is on the topic, see
// Ready) and ErrClosed. After an error nothing was sent.
func (t *Topic) Publish(ctx context.Context, data []byte) error { return t.channel.Publish(ctx, data) }

// On calls f for what others publish on the topic. The signature has proven that from is the
// author. data belongs to f, and may be empty. off removes f.
//
// The messages of one author are handled one after the other in the order of their arrival;
// f may run for several authors at once. At most 4 MiB of messages, from at most 4,096
// authors, wait for handlers; beyond that, messages of the author with the most waiting bytes
// are dropped and counted. The ctx of f ends when the Topic closes. A panic of f is caught,
// counted and logged.
func (t *Topic) On(f func(ctx context.Context, from ID, data []byte)) (off func()) {
	return t.channel.On(f)
}

// All returns what others publish as a loop on the caller's goroutine. It subscribes at
// once, so messages that arrive before the loop begins are not missed. The loop ends when
// ctx ends or the Topic closes. It can be run once. While the body of the loop runs, the next
// messages wait, as they do for a slow handler. If the loop is never run, they wait until ctx
// ends.
func (t *Topic) All(ctx context.Context) iter.Seq2[ID, []byte] { return t.channel.All(ctx) }

// Members returns the peers on the topic to which this node is connected. The slice is the
// caller's.
func (t *Topic) Members() []ID { return t.channel.Members() }

// Ready waits until at least one connected peer is on the topic, so that Publish reaches
// somebody. If ctx ends first, the error wraps ErrNoPeers and the error of ctx. After Close
// it is ErrClosed.
func (t *Topic) Ready(ctx context.Context) error { return t.channel.Ready(ctx) }

// OnJoin calls f for each member of the topic: at once for the present members, and for
// others when they join. From the call of f on, published messages reach that member. The
// handlers of OnJoin and OnLeave run one at a time; a member that joins and leaves while a
// handler runs is not reported. off removes f.
func (t *Topic) OnJoin(f func(ctx context.Context, p ID)) (off func()) { return t.channel.OnJoin(f) }

// OnLeave calls f when a member has left the topic, or is no longer connected. off removes f.
func (t *Topic) OnLeave(f func(ctx context.Context, p ID)) (off func()) { return t.channel.OnLeave(f) }

// Stats returns counters since the Topic was made. It does not block.
//
//	published  messages that Publish has sent
//	received   messages that handlers got
//	dropped    messages dropped because handlers were too slow, or at Close
//	unsigned   messages without a signature, which were dropped
//	unhandled  messages without a handler
//	panics     handlers that panicked or called runtime.Goexit
func (t *Topic) Stats() map[string]uint64 { return t.channel.Stats() }

// Close leaves the topic, drops the messages that wait for handlers, and ends the contexts of
// running handlers. It does not wait for handlers to return. It may be called again, and from
// a handler. Closing the node closes its topics.
func (t *Topic) Close() { t.channel.Close() }

// topics are the Topics of a node.
type topics struct {
	mu     sync.Mutex
	closed bool
	open   map[string]*Topic // by name; may hold a Topic that was closed a moment ago
	all    map[*Topic]bool   // the open Topics, and those closed Topics whose handlers still run
	tasks  sync.WaitGroup
}

// Topic joins the pubsub topic of that name. It may be called before Start. A second call with
// the same name returns the same Topic until that is closed. As soon as a node has a Topic, it
// exchanges pubsub messages with all connected peers, not only with its neighbors.
//
// Peers on the topic need not be nodes, and the node makes no links to them: Dial connects
// to them, or they connect to this node.
//
// The error is ErrClosed, or says what is wrong with the name. The node's own topic,
// smokesignal/NETWORK, is an error: use Broadcast().OnRaw to hear plain messages there.
func (n *Node) Topic(name string) (*Topic, error) {
	// A Topic of that name would receive the batches in which the node's broadcasts travel.
	if name == n.topic {
		return nil, fmt.Errorf("smokesignal: topic %q is the network's own: emit events there with Broadcast(), and hear other messages with Broadcast().OnRaw", name)
	}
	n.topics.mu.Lock()
	defer n.topics.mu.Unlock()
	if n.topics.closed {
		return nil, ErrClosed
	}
	if t := n.topics.open[name]; t != nil {
		select {
		case <-t.channel.Done():
			// A topic can be joined again only after it was left. Close waits for that.
			t.Close()
		default:
			return t, nil
		}
	}
	cfg := topic.Config{Name: name, Joined: n.cfg.topics[name], Log: logging.Package("events", n.cfg.logger)}
	if n.gate != nil { // a lent pubsub has no gate, which could say when a peer has room for more messages
		cfg.AwaitRoom = n.gate.AwaitRoom
	}
	channel, err := topic.New(n.pubsub, n.host, cfg)
	if err != nil {
		return nil, fmt.Errorf("smokesignal: %w", err)
	}
	t := &Topic{channel}
	n.records.OpenPubSub()
	if n.topics.open == nil {
		n.topics.open, n.topics.all = map[string]*Topic{}, map[*Topic]bool{}
	}
	n.topics.open[name], n.topics.all[t] = t, true
	n.topics.tasks.Go(func() { n.topics.removeClosed(t) })
	return t, nil
}

// removeClosed waits until t is closed and its handlers have ended, and then removes t from the
// lists.
func (l *topics) removeClosed(t *Topic) {
	<-t.channel.Done()
	t.channel.Shutdown(context.Background())
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
		errs = append(errs, t.channel.Shutdown(ctx))
	}
	err := errors.Join(errs...)
	// A handler that closes its node must not wait for itself.
	if err == nil && !inHandler(ctx) {
		l.tasks.Wait()
	}
	return err
}
