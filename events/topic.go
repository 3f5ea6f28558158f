package events

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

	"github.com/go-smokesignal/smokesignal/internal/errs"
	"github.com/go-smokesignal/smokesignal/internal/logging"
)

// A Topic takes part in a pubsub topic of any libp2p application, whatever its
// language: what is published are the bytes given, without a prefix or an envelope,
// and signed; what comes are the bytes that somebody published, with the author whom
// the signature proves.
//
// The promises of a [Broadcast] are not made here, as pubsub itself makes none: a
// message reaches whoever is on the topic at that moment, at most once; what is lost on
// the way is not repaired, and the order of an author can be another here. All methods
// may be called from any goroutine, also from handlers.
type Topic struct {
	name       string
	cfg        TopicConfig
	self       peer.ID
	maxSize    int // bytes of a message
	dispatcher *dispatcher
	raw        rawDeliverer
	topic      *pubsub.Topic
	sub        *pubsub.Subscription
	seen       *pubsub.TopicEventHandler

	ctx    context.Context // of handlers
	cancel context.CancelFunc
	tasks  sync.WaitGroup
	once   sync.Once // of Close

	mu      sync.Mutex
	members map[peer.ID]bool
	watches []*memberWatch
	change  chan struct{} // closed and replaced when members changed
	news    chan struct{} // has a value when watches may have something to tell

	published, unsigned, unhandled atomic.Uint64
}

// TopicConfig configures a [Topic]. Either Name or Joined is required.
type TopicConfig struct {
	// Name is the topic, exactly as the other applications spell it.
	Name string
	// Joined is a topic that the application has joined already. It stays joined when
	// the Topic closes.
	Joined *pubsub.Topic
	// AwaitRoom is called before each message is sent, and waits while somebody has
	// much to take of what was sent before; nil does not wait.
	AwaitRoom func(ctx context.Context) error
	// Log is the room's logger, nil the default one.
	Log *slog.Logger
}

// TopicStats counts since the Topic was made.
type TopicStats struct {
	Published uint64 // messages that Publish has sent
	Received  uint64 // messages that handlers were given
	Dropped   uint64 // messages dropped because handlers were too slow, or at Close
	Unsigned  uint64 // messages without a signature, which nobody was given
	Unhandled uint64 // messages that nobody listened to
	Panics    uint64 // of handlers
}

// maxTopicLen bounds the names of topics, which go with each message.
const maxTopicLen = maxTopicName

// NewTopic joins the topic, which nobody else may have joined on ps. Both ps and h stay
// the caller's and must outlive the Topic; h is the host that ps is on, behind a facade
// or not. It fails if the name is empty, longer than 1 KiB, or taken.
func NewTopic(ps *pubsub.PubSub, h corehost.Host, cfg TopicConfig) (*Topic, error) {
	if cfg.Joined != nil {
		cfg.Name = cfg.Joined.String()
	}
	if n := len(cfg.Name); n == 0 || n > maxTopicLen {
		return nil, fmt.Errorf("events: the name of a topic has 1 to %d bytes, not %d", maxTopicLen, n)
	}
	if cfg.Log == nil {
		cfg.Log = logging.Room("events", nil)
	}
	most, err := maxPublish(h, cfg.Name)
	if err != nil {
		return nil, fmt.Errorf("events: topic %s: %w", quote(cfg.Name), err)
	}
	t := &Topic{
		name: cfg.Name, cfg: cfg, self: h.ID(), maxSize: most, topic: cfg.Joined, dispatcher: newDispatcher(cfg.Log),
		members: make(map[peer.ID]bool), change: make(chan struct{}), news: make(chan struct{}, 1),
	}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.raw.init(t.ctx, t.dispatcher)
	if err := t.join(ps); err != nil {
		t.cancel()
		return nil, fmt.Errorf("events: join topic %s: %w", quote(cfg.Name), err)
	}
	t.tasks.Go(t.watch)
	ctx, leave := t.dispatcher.enter(t.ctx)
	go func() {
		defer leave()
		t.notifyLoop(ctx)
	}()
	return t, nil
}

func (t *Topic) join(ps *pubsub.PubSub) (err error) {
	if t.cfg.Joined == nil {
		if t.topic, err = ps.Join(t.name); err != nil {
			return err
		}
	}
	if t.seen, err = t.topic.EventHandler(); err == nil {
		// As with a Broadcast, the filter takes every message.
		if t.sub, err = t.topic.Subscribe(pubsub.WithMessageFilter(t.receiveMessage), pubsub.WithBufferSize(1)); err == nil {
			return nil
		}
		t.seen.Cancel()
	}
	if t.cfg.Joined == nil {
		t.topic.Close()
	}
	return err
}

// maxPublish returns how many bytes fit into a message on the topic: an RPC with this
// message alone has to be within pubsub's 1 MiB, or the stream that carries it ends at
// a receiver, which from then on hears nothing of us.
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
		m.Signature = append(m.Signature, make([]byte, 8)...) // their length differs
	}
	if public, err := h.ID().ExtractPublicKey(); err != nil || public == nil {
		if m.Key, err = crypto.MarshalPublicKey(key.GetPublic()); err != nil {
			return 0, fmt.Errorf("marshal the public key: %w", err)
		}
	}
	// A tag of one byte and a length of three go before the data, and before the message.
	return pubsub.DefaultMaxMessageSize - 4 - proto.Size(m) - 4, nil
}

// Name returns the name of the topic.
func (t *Topic) Name() string { return t.name }

// MaxSize returns how many bytes Publish takes at most: about 1 MiB less the envelope,
// in which the name of the topic is.
func (t *Topic) MaxSize() int { return t.maxSize }

// Publish sends data, exactly as it is and signed by this node, to everybody on the
// topic; data may be empty, and belongs to the caller again when Publish returns. nil
// means that it is on its way to the members: nobody confirms it, and a member that
// does not take what was sent for five seconds misses what is sent to it then.
//
// Publish waits, up to five seconds, while a member has much to take of what was sent
// before, until ctx ends; not again for the same member until it has taken all.
// ErrTooLarge (for more than MaxSize bytes), ErrNoPeers (nobody is on the topic, see
// Ready) and ErrClosed come at once. After any error nothing was sent.
func (t *Topic) Publish(ctx context.Context, data []byte) error {
	if err := t.publish(ctx, data); err != nil {
		return &topicError{t.name, err}
	}
	return nil
}

func (t *Topic) publish(ctx context.Context, data []byte) error {
	switch {
	case t.ctx.Err() != nil:
		return ErrClosed
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case len(data) > t.maxSize:
		return fmt.Errorf("%w: %d bytes, at most %d fit", ErrTooLarge, len(data), t.maxSize)
	case t.isEmpty():
		return ErrNoPeers
	}
	if t.cfg.AwaitRoom != nil {
		if err := t.cfg.AwaitRoom(ctx); err != nil {
			return err
		}
	}
	// Pubsub keeps what it is given. Some readers miss a field that is left out, so
	// nothing is sent as an empty one.
	if err := t.topic.Publish(ctx, append([]byte{}, data...)); err != nil {
		if t.ctx.Err() != nil {
			return ErrClosed
		}
		return err
	}
	t.published.Add(1)
	return nil
}

// topicError says on which topic something could not be published.
type topicError struct {
	topic string
	err   error
}

func (e *topicError) Error() string {
	return fmt.Sprintf("events: publish on topic %s: %s", quote(e.topic), errs.Text(e.err))
}
func (e *topicError) Unwrap() error { return e.err }

// receiveMessage is the subscription's filter. It runs in pubsub's event loop, so it does not
// block, and keeps every message out of the subscription's own queue.
func (t *Topic) receiveMessage(m *pubsub.Message) bool {
	switch from := m.GetFrom(); {
	case m.ReceivedFrom == t.self || from == t.self:
		// Nobody hears itself.
	case len(m.Signature) == 0:
		// Pubsub verifies the signatures that are there. Of one that the application
		// lends, it is not known whether it insists on them.
		t.unsigned.Add(1)
	case !t.raw.put(from, m.Data):
		t.unhandled.Add(1)
	}
	return false
}

// On calls f for what others publish on the topic. The signature has proven who the
// author is. data belongs to f, and may be empty. The messages of one author are
// handled one after the other as they came; f may be called for several authors at
// once. f's ctx ends at Close; a panic of f is caught, counted and logged.
//
// What waits for handlers has a bound of 4 MiB and of 4,096 authors; beyond it messages
// are lost and counted, those of the author of whom most waits first.
func (t *Topic) On(f func(ctx context.Context, from peer.ID, data []byte)) (off func()) {
	return t.raw.on(f)
}

// All returns what others publish as a loop, which runs on the caller's goroutine with
// no lock held. It subscribes at once, so that nothing is missed that comes before the
// loop begins, and can be looped over once. It ends when ctx or the Topic does. While
// the body runs, messages wait as for a slow handler; so a loop that is not wanted
// after all needs the end of its ctx.
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
	forget := context.AfterFunc(ctx, leave)
	return func(yield func(peer.ID, []byte) bool) {
		defer forget()
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

// Members returns who is on the topic, as far as this node is connected to them. The
// slice is the caller's.
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

// Ready waits until somebody is on the topic, so that what is published reaches them;
// to be connected is not enough. When ctx ends first the error is ErrNoPeers and that
// of ctx. After Close it is ErrClosed.
func (t *Topic) Ready(ctx context.Context) error {
	start := time.Now()
	for {
		t.mu.Lock()
		ready, change := len(t.members) > 0, t.change
		t.mu.Unlock()
		switch {
		case t.ctx.Err() != nil:
			return ErrClosed
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

// notReady is why Ready gave up.
type notReady struct {
	topic string
	after time.Duration
	cause error
}

func (e *notReady) Error() string {
	return fmt.Sprintf("events: nobody is on topic %s after %v: connect to a peer that takes part in it, and spell its name the same",
		quote(e.topic), e.after.Round(100*time.Millisecond))
}
func (e *notReady) Unwrap() []error { return []error{ErrNoPeers, e.cause} }

// memberWatch is a handler of OnJoin or OnLeave.
type memberWatch struct {
	f     func(context.Context, peer.ID)
	joins bool
	known map[peer.ID]bool // the members as f knows them
	off   atomic.Bool
}

// OnJoin calls f for each member of the topic: for those that are there already, and
// for others when they come. When f is called, what is published goes to that member.
// The handlers of OnJoin and OnLeave are called one at a time; who came and left again
// while one was busy is not told. f's ctx ends at Close; a panic of f is caught,
// counted and logged.
func (t *Topic) OnJoin(f func(ctx context.Context, p peer.ID)) (off func()) {
	return t.watchMembers(&memberWatch{f: f, joins: true, known: make(map[peer.ID]bool)})
}

// OnLeave calls f when a member has left the topic, or is connected no more.
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
	signal(t.news)
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

// watch follows who is on the topic. Without a gate, pubsub can hear of somebody there
// before it has a stream to them, and loses until then what it should send. So one who
// was seen there is a member when pubsub lists them, too.
func (t *Topic) watch() {
	seen := make(map[peer.ID]bool)
	pause := time.Duration(0)
	for {
		ctx, cancel := t.ctx, context.CancelFunc(func() {})
		if len(seen) > 0 {
			pause = min(2*pause+time.Millisecond, time.Second)
			ctx, cancel = context.WithTimeout(t.ctx, pause)
		}
		ev, err := t.seen.NextPeerEvent(ctx)
		cancel()
		switch {
		case t.ctx.Err() != nil:
			return
		case err != nil:
			if len(seen) == 0 {
				return
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
		for _, p := range t.topic.ListPeers() {
			if seen[p] {
				delete(seen, p)
				t.setMember(p, true)
			}
		}
	}
}

// setMember notes who came or left.
func (t *Topic) setMember(p peer.ID, is bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if is {
		t.members[p] = true
	} else {
		delete(t.members, p)
	}
	close(t.change)
	t.change = make(chan struct{})
	signal(t.news)
}

// notifyLoop calls the handlers of OnJoin and OnLeave.
func (t *Topic) notifyLoop(ctx context.Context) {
	for {
		if w, p, ok := t.nextChange(); ok {
			if !w.off.Load() {
				t.call(ctx, w.f, p)
			}
			continue
		}
		select {
		case <-t.news:
		case <-t.ctx.Done():
			return
		}
	}
}

// nextChange returns what is to be told next, and notes it as told.
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
	defer t.dispatcher.recovered("a handler of members panicked", p)
	f(ctx, p)
}

// Stats returns the counters.
func (t *Topic) Stats() TopicStats {
	return TopicStats{
		Published: t.published.Load(),
		Received:  t.raw.delivered.Load(),
		Dropped:   t.raw.dropped.Load(),
		Unsigned:  t.unsigned.Load(),
		Unhandled: t.unhandled.Load(),
		Panics:    t.dispatcher.panics(),
	}
}

// Done is closed when Close begins.
func (t *Topic) Done() <-chan struct{} { return t.ctx.Done() }

// Close leaves the topic, drops what waits for handlers, and ends the contexts of
// handlers, for which it does not wait. It may be called again, and from a handler.
func (t *Topic) Close() {
	t.once.Do(func() {
		t.cancel()
		t.raw.close()
		t.sub.Cancel()
		t.seen.Cancel()
		if t.cfg.Joined != nil {
			return
		}
		if err := t.topic.Close(); err != nil {
			t.cfg.Log.Debug("the topic stays joined", "topic", quote(t.name), "error", err)
		}
	})
}

// Shutdown closes the Topic and waits for its handlers until ctx ends, which is its
// only error; a handler that gives its own ctx is not waited for.
func (t *Topic) Shutdown(ctx context.Context) error {
	t.Close()
	return t.dispatcher.waitAll(ctx, &t.tasks, "the topic is")
}
