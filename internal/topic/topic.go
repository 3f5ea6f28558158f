// Package topic takes part in pubsub topics of any application, with messages that are bytes.
package topic

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/crypto"
	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"github.com/go-smokesignal/smokesignal/internal/dispatch"
	"github.com/go-smokesignal/smokesignal/internal/errs"
	"github.com/go-smokesignal/smokesignal/internal/event"
	"github.com/go-smokesignal/smokesignal/internal/logging"
	"github.com/go-smokesignal/smokesignal/internal/notify"
	"github.com/go-smokesignal/smokesignal/internal/subscription"
)

// A Topic is a membership in a pubsub topic that may belong to any libp2p application
// in any language. It publishes bytes as they are, signed, without a prefix or an
// envelope of its own. Its handlers get the bytes that somebody published, and their
// author, which the signature proves.
//
// Pubsub promises nothing, so neither does Topic: a message reaches the peers that are
// on the topic at that moment, at most once. Lost messages are not repaired, and
// messages may arrive in another order than they were published. All methods may be
// called from any goroutine, and from handlers.
type Topic struct {
	name       string
	cfg        Config
	self       peer.ID
	maxSize    int // largest size of a message in bytes
	sub        *subscription.Subscription
	dispatcher *dispatch.Dispatcher
	raw        dispatch.RawDeliverer

	// Life.
	ctx    context.Context // parent of the contexts given to handlers
	cancel context.CancelFunc
	tasks  sync.WaitGroup
	once   sync.Once // runs the body of Close

	// Members.
	mu      sync.Mutex
	members map[peer.ID]bool
	changed notify.Cond // broadcast when members changes
	watches []*memberWatch
	wake    notify.Signal // set when the members or the handlers in watches may have changed

	published, unsigned, unhandled atomic.Uint64
}

// Config configures a [Topic]. Either Name or Joined is required.
type Config struct {
	// Name is the name of the topic, exactly as the other applications spell it.
	Name string
	// Joined is the topic if the application has joined it already. Close does not
	// leave it.
	Joined *pubsub.Topic
	// AwaitRoom is called before each message is published. It waits while too many
	// messages are queued for a member of the topic. If AwaitRoom is nil, Publish does
	// not wait.
	AwaitRoom func(ctx context.Context) error
	// Log is the logger; nil is the default one.
	Log *slog.Logger
}

// maxTopicLen is the greatest length of a topic's name in bytes. Each message contains
// it.
const maxTopicLen = 1 << 10

// New joins the topic. Nothing else may have joined it on ps, unless it is
// Config.Joined. h is the host of ps, or a wrapper of that host. Both ps and h remain
// the caller's and must outlive the Topic. New fails if the name is empty, longer than
// 1 KiB, or joined already.
func New(ps *pubsub.PubSub, h corehost.Host, cfg Config) (*Topic, error) {
	if cfg.Joined != nil {
		cfg.Name = cfg.Joined.String()
	}
	if n := len(cfg.Name); n == 0 || n > maxTopicLen {
		return nil, fmt.Errorf("events: the name of a topic has 1 to %d bytes, not %d", maxTopicLen, n)
	}
	if cfg.Log == nil {
		cfg.Log = logging.Package("events", nil)
	}
	most, err := maxPublish(h, cfg.Name)
	if err != nil {
		return nil, fmt.Errorf("events: topic %s: %w", event.Quote(cfg.Name), err)
	}
	t := &Topic{
		name: cfg.Name, cfg: cfg, self: h.ID(), maxSize: most, dispatcher: dispatch.New(cfg.Log),
		members: make(map[peer.ID]bool), wake: notify.NewSignal(),
	}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.raw.Init(t.ctx, t.dispatcher)
	if t.sub, err = subscription.Join(ps, cfg.Name, cfg.Joined, t.receiveMessage); err != nil {
		t.cancel()
		return nil, err
	}
	t.tasks.Go(t.watch)
	t.dispatcher.Start(t.ctx, t.notifyLoop)
	return t, nil
}

// maxPublish returns how many bytes fit into a message on the topic. If an RPC is
// larger than pubsub's 1 MiB, the receiver resets the stream and receives nothing from
// this node afterwards. So an RPC that contains this message alone must be smaller.
func maxPublish(h corehost.Host, topic string) (int, error) {
	key := h.Peerstore().PrivKey(h.ID())
	if key == nil {
		return 0, errors.New("the host has no private key, so messages cannot be signed")
	}
	signature, err := key.Sign([]byte(pubsub.SignPrefix))
	if err != nil {
		return 0, fmt.Errorf("sign a message: %w", err)
	}
	m := &pb.Message{From: []byte(h.ID()), Seqno: make([]byte, 8), Topic: &topic, Signature: signature}
	if key.Type() != crypto.Ed25519 && key.Type() != crypto.RSA {
		// Signatures of a key of this type vary in length by a few bytes.
		m.Signature = append(m.Signature, make([]byte, 8)...)
	}
	if public, err := h.ID().ExtractPublicKey(); err != nil || public == nil {
		if m.Key, err = crypto.MarshalPublicKey(key.GetPublic()); err != nil {
			return 0, fmt.Errorf("marshal the public key: %w", err)
		}
	}
	// The data and the message each have a tag of one byte and a length of three bytes.
	return pubsub.DefaultMaxMessageSize - 4 - proto.Size(m) - 4, nil
}

// Name returns the name of the topic.
func (t *Topic) Name() string { return t.name }

// MaxSize returns how many bytes a message may have: 1 MiB less the other fields of a
// pubsub message, such as the topic's name.
func (t *Topic) MaxSize() int { return t.maxSize }

// Publish sends data, exactly as it is and signed by this node, to all members of the
// topic. data may be empty. After Publish has returned, the caller may change it. A nil
// error means that the message was queued for each member; members do not confirm it. A
// member that receives nothing for five seconds misses messages that are sent to it in
// that time.
//
// While many messages are queued for a member, Publish waits for it, until ctx ends and
// at most five seconds. If that was in vain, later calls do not wait for the same
// member until its queue is empty. Publish returns ErrTooLarge (for more than MaxSize
// bytes), ErrNoPeers (the topic has no other member, see Ready) and ErrClosed at once.
// After any error nothing was sent.
func (t *Topic) Publish(ctx context.Context, data []byte) error {
	if err := t.publish(ctx, data); err != nil {
		return &topicError{t.name, err}
	}
	return nil
}

func (t *Topic) publish(ctx context.Context, data []byte) error {
	switch {
	case t.ctx.Err() != nil:
		return errs.ErrClosed
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case len(data) > t.maxSize:
		return fmt.Errorf("%w: %d bytes, at most %d fit", event.ErrTooLarge, len(data), t.maxSize)
	case t.isEmpty():
		return errs.ErrNoPeers
	}
	if t.cfg.AwaitRoom != nil {
		if err := t.cfg.AwaitRoom(ctx); err != nil {
			return err
		}
	}
	// Pubsub keeps the slice, so it is given a copy. The copy is never nil, because nil
	// would be sent as a missing field, which some implementations reject.
	if err := t.sub.Topic.Publish(ctx, append([]byte{}, data...)); err != nil {
		if t.ctx.Err() != nil {
			return errs.ErrClosed
		}
		return err
	}
	t.published.Add(1)
	return nil
}

// topicError adds the name of the topic to an error of Publish.
type topicError struct {
	topic string
	err   error
}

func (e *topicError) Error() string {
	return fmt.Sprintf("events: publish on topic %s: %s", event.Quote(e.topic), errs.Text(e.err))
}
func (e *topicError) Unwrap() error { return e.err }

// receiveMessage is called for each message on the topic before pubsub forwards it: see
// subscription.Join. It passes the message to the handlers of On, and returns false.
func (t *Topic) receiveMessage(m *pubsub.Message) bool {
	switch from := m.GetFrom(); {
	case m.ReceivedFrom == t.self || from == t.self:
		// A node does not receive its own messages.
	case len(m.Signature) == 0:
		// Pubsub always verifies a signature that is present. But a pubsub that the
		// application has made may also accept messages without one.
		t.unsigned.Add(1)
	case !t.raw.Enqueue(from, m.Data):
		t.unhandled.Add(1)
	}
	return false
}

// On calls f for the messages of other nodes on the topic. The signature proves the
// author. data belongs to f, and may be empty. The messages of one author are handled
// one after the other in the order of their arrival; f may run for several authors at
// once. The ctx of f ends at Close. A panic of f is caught, counted and logged.
//
// Messages that wait for handlers take at most 4 MiB and come from at most 4,096
// authors. At the limit, messages of the author with the most waiting are dropped and
// counted.
func (t *Topic) On(f func(ctx context.Context, from peer.ID, data []byte)) (off func()) {
	return t.raw.On(f)
}

// All returns the messages of other nodes as a loop that runs on the caller's
// goroutine. It subscribes at once, so that messages which arrive before the loop
// begins are not missed. The loop can be run once. It ends when ctx ends or the Topic
// is closed. While its body runs, messages wait as for a slow handler. If the loop is
// never run, ctx must end to release the messages.
func (t *Topic) All(ctx context.Context) iter.Seq2[peer.ID, []byte] {
	type item struct {
		from peer.ID
		data []byte
	}
	next, left := make(chan item), make(chan struct{})
	off := t.On(func(hctx context.Context, from peer.ID, data []byte) {
		select {
		case next <- item{from, data}:
		case <-left:
		case <-hctx.Done():
		}
	})
	leave := sync.OnceFunc(func() {
		off()
		close(left)
	})
	stopWaiting := context.AfterFunc(ctx, leave)
	return func(yield func(peer.ID, []byte) bool) {
		defer stopWaiting()
		defer leave()
		for ctx.Err() == nil {
			select {
			case it := <-next:
				if !yield(it.from, it.data) {
					return
				}
			case <-left:
				return
			case <-t.ctx.Done():
				return
			}
		}
	}
}

// Members returns the connected peers that are on the topic. The caller may change the
// slice.
func (t *Topic) Members() []peer.ID {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := make([]peer.ID, 0, len(t.members))
	for p := range t.members {
		list = append(list, p)
	}
	return list
}

func (t *Topic) isEmpty() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.members) == 0
}

// Ready waits until the topic has another member, so that a message would reach
// somebody. A connection alone is not enough. If ctx ends first, the error wraps
// ErrNoPeers and the error of ctx. After Close it is ErrClosed.
func (t *Topic) Ready(ctx context.Context) error {
	start := time.Now()
	for {
		t.mu.Lock()
		ready, change := len(t.members) > 0, t.changed.Changed()
		t.mu.Unlock()
		switch {
		case t.ctx.Err() != nil:
			return errs.ErrClosed
		case ready:
			return nil
		}
		select {
		case <-change:
		case <-t.ctx.Done():
		case <-ctx.Done():
			return &notReady{t.name, time.Since(start), context.Cause(ctx)}
		}
	}
}

// notReady is the error of a Ready whose ctx has ended.
type notReady struct {
	topic string
	after time.Duration
	cause error
}

func (e *notReady) Error() string {
	return fmt.Sprintf("events: nobody is on topic %s after %v: connect to a peer that takes part in it, and spell its name the same",
		event.Quote(e.topic), e.after.Round(100*time.Millisecond))
}
func (e *notReady) Unwrap() []error { return []error{errs.ErrNoPeers, e.cause} }

// memberWatch is a handler of OnJoin or OnLeave.
type memberWatch struct {
	f     func(context.Context, peer.ID)
	joins bool
	known map[peer.ID]bool // the members of which f was informed
	off   atomic.Bool
}

// OnJoin calls f for each member of the topic: for the current members at once, and for
// others when they join. Messages that are published after the call of f go to that
// member. Handlers of OnJoin and OnLeave are called one at a time. A peer that joins
// and leaves while such a handler runs is not reported. The ctx of f ends at Close. A
// panic of f is caught, counted and logged.
func (t *Topic) OnJoin(f func(ctx context.Context, p peer.ID)) (off func()) {
	return t.watchMembers(&memberWatch{f: f, joins: true, known: make(map[peer.ID]bool)})
}

// OnLeave calls f when a member has left the topic or is no longer connected.
func (t *Topic) OnLeave(f func(ctx context.Context, p peer.ID)) (off func()) {
	return t.watchMembers(&memberWatch{f: f})
}

func (t *Topic) watchMembers(w *memberWatch) (off func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if w.known == nil {
		w.known = make(map[peer.ID]bool)
		for p := range t.members {
			w.known[p] = true
		}
	}
	t.watches = append(t.watches[:len(t.watches):len(t.watches)], w)
	t.wake.Set()
	return func() {
		w.off.Store(true)
		t.mu.Lock()
		defer t.mu.Unlock()
		var rest []*memberWatch
		for _, other := range t.watches {
			if other != w {
				rest = append(rest, other)
			}
		}
		t.watches = rest
	}
}

// watch follows the members of the topic. Pubsub can report a peer before it has a
// stream to it, and drops messages for that peer until then. So a peer counts as a
// member only when pubsub lists it, too.
func (t *Topic) watch() {
	seen := make(map[peer.ID]bool)
	pause := time.Duration(0)
	for {
		ctx, cancel := t.ctx, context.CancelFunc(func() {})
		if len(seen) > 0 {
			// Pubsub does not report when it begins to list a peer, so ask again after
			// a pause.
			pause = min(2*pause+time.Millisecond, time.Second)
			ctx, cancel = context.WithTimeout(t.ctx, pause)
		}
		ev, err := t.sub.Members.NextPeerEvent(ctx)
		cancel()
		switch {
		case t.ctx.Err() != nil:
			return
		case err != nil:
			if len(seen) == 0 {
				return // this is not the timeout, so the subscription has ended
			}
		case ev.Type == pubsub.PeerJoin:
			seen[ev.Peer] = true
			pause = 0
		default:
			delete(seen, ev.Peer)
			t.setMember(ev.Peer, false)
		}
		if len(seen) == 0 {
			continue
		}
		for _, p := range t.sub.Topic.ListPeers() {
			if seen[p] {
				delete(seen, p)
				t.setMember(p, true)
			}
		}
	}
}

// setMember notes that the peer p has become a member of the topic (is is true), or has
// left it (is is false).
func (t *Topic) setMember(p peer.ID, is bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if is {
		t.members[p] = true
	} else {
		delete(t.members, p)
	}
	t.changed.Broadcast()
	t.wake.Set()
}

// notifyLoop calls the handlers of OnJoin and OnLeave until Close.
func (t *Topic) notifyLoop(ctx context.Context) {
	for {
		if w, p, ok := t.nextChange(); ok {
			if !w.off.Load() {
				t.call(ctx, w.f, p)
			}
			continue
		}
		select {
		case <-t.wake:
		case <-t.ctx.Done():
			return
		}
	}
}

// nextChange returns a call of OnJoin's or OnLeave's handlers that is due: the handler,
// the peer, and true. It notes that the handler knows of the change, so the caller must
// call it. If no call is due, it returns false.
func (t *Topic) nextChange() (*memberWatch, peer.ID, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ctx.Err() != nil {
		return nil, "", false
	}
	for _, w := range t.watches {
		for p := range w.known {
			if !t.members[p] {
				delete(w.known, p)
				if !w.joins {
					return w, p, true
				}
			}
		}
		for p := range t.members {
			if !w.known[p] {
				w.known[p] = true
				if w.joins {
					return w, p, true
				}
			}
		}
	}
	return nil, "", false
}

func (t *Topic) call(ctx context.Context, f func(context.Context, peer.ID), p peer.ID) {
	returned := false
	defer t.dispatcher.Catch("a handler of members", "", p, &returned)
	f(ctx, p)
	returned = true
}

// Stats returns counters since New.
//
//	published  messages that Publish has sent
//	received   messages that handlers got
//	dropped    messages dropped because handlers were too slow, or at Close
//	unsigned   messages without a signature, which were dropped
//	unhandled  messages without a handler
//	panics     handlers that panicked or called runtime.Goexit
func (t *Topic) Stats() map[string]uint64 {
	received, dropped := t.raw.Counts()
	return map[string]uint64{
		"published": t.published.Load(),
		"received":  received,
		"dropped":   dropped,
		"unsigned":  t.unsigned.Load(),
		"unhandled": t.unhandled.Load(),
		"panics":    t.dispatcher.Panics(),
	}
}

// Done returns a channel that is closed when Close begins.
func (t *Topic) Done() <-chan struct{} { return t.ctx.Done() }

// Close leaves the topic, drops the messages that wait for handlers, and ends the
// contexts of handlers, but does not wait for them. It may be called again, and from a
// handler.
func (t *Topic) Close() {
	t.once.Do(func() {
		t.cancel()
		t.raw.Close()
		if err := t.sub.Close(); err != nil {
			t.cfg.Log.Debug("cannot leave the topic", "topic", event.Quote(t.name), "error", err)
		}
	})
}

// Shutdown closes the Topic and waits for its handlers until ctx ends, which is its
// only error. It does not wait for a handler whose own ctx it was given.
func (t *Topic) Shutdown(ctx context.Context) error {
	t.Close()
	return t.dispatcher.WaitAll(ctx, &t.tasks, "the topic is")
}
