package integration_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"weak"

	"github.com/libp2p/go-libp2p"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/internal/hosttest"
)

const (
	appProtocol protocol.ID = "/app/echo/1.0.0"
	appTopic    string      = "app/news"
	appFriends  int         = 40
	appReaders  int         = 5 // of the topic, among the friends
)

// application is a program that has a libp2p host already: streams to forty friends on which it
// checks every byte, a gossipsub topic of which it checks every number, a connection
// manager that is always above its high water, and tight limits.
type application struct {
	t       *testing.T
	host    corehost.Host
	pubsub  *pubsub.PubSub
	topic   *pubsub.Topic
	friends []corehost.Host
	topics  []*pubsub.Topic // of the readers

	stop  chan struct{}
	tasks sync.WaitGroup
	lost  atomic.Int64 // connections to friends
	bytes atomic.Int64 // echoed

	mu        sync.Mutex
	published map[peer.ID]uint64
	read      []map[peer.ID]*arrived // by reader and publisher
	news      int                    // numbers that came, here and there
}

// arrived are the numbers that came.
type arrived struct {
	has   []bool
	count uint64
}

// add reports whether n is new.
func (a *arrived) add(n uint64) bool {
	for uint64(len(a.has)) <= n {
		a.has = append(a.has, false)
	}
	if a.has[n] {
		return false
	}
	a.has[n] = true
	a.count++
	return true
}

func newApplication(t *testing.T) *application {
	t.Helper()
	a := &application{t: t, stop: make(chan struct{}), published: map[peer.ID]uint64{}}

	// Only known protocols are allowed streams, and each only a few.
	limits := rcmgr.DefaultLimits
	few := rcmgr.BaseLimit{Streams: 64, StreamsInbound: 64, StreamsOutbound: 64, Memory: 16 << 20}
	limits.ProtocolBaseLimit, limits.ProtocolLimitIncrease = rcmgr.BaseLimit{}, rcmgr.BaseLimitIncrease{}
	limits.ServiceBaseLimit, limits.ServiceLimitIncrease = rcmgr.BaseLimit{}, rcmgr.BaseLimitIncrease{}
	limits.PeerBaseLimit, limits.PeerLimitIncrease = few, rcmgr.BaseLimitIncrease{}
	limits.PeerBaseLimit.Conns, limits.PeerBaseLimit.ConnsInbound, limits.PeerBaseLimit.ConnsOutbound, limits.PeerBaseLimit.FD = 4, 4, 4, 4
	limits.SystemBaseLimit.Conns, limits.SystemBaseLimit.ConnsInbound, limits.SystemBaseLimit.ConnsOutbound = 64, 64, 64
	limits.SystemLimitIncrease = rcmgr.BaseLimitIncrease{}
	libp2p.SetDefaultServiceLimits(&limits)
	for _, id := range []protocol.ID{appProtocol, "/meshsub/1.3.0", "/meshsub/1.2.0", "/meshsub/1.1.0", "/meshsub/1.0.0", pubsub.FloodSubID} {
		limits.AddProtocolLimit(id, rcmgr.BaseLimit{Streams: 128, StreamsInbound: 64, StreamsOutbound: 64, Memory: 16 << 20}, rcmgr.BaseLimitIncrease{})
	}
	smokesignal.AddLimits(&limits)
	manager, err := rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(limits.AutoScale()), rcmgr.WithMetricsDisabled())
	if err != nil {
		t.Fatal(err)
	}
	conns, err := connmgr.NewConnManager(20, 30, connmgr.WithGracePeriod(time.Second), connmgr.WithSilencePeriod(time.Second))
	if err != nil {
		t.Fatal(err)
	}
	a.host = rawHost(t, libp2p.ResourceManager(manager), libp2p.ConnectionManager(conns))
	a.pubsub = lentPubSub(t, a.host, pubsub.NewGossipSub)
	a.host.SetStreamHandler(appProtocol, echo)

	var sub *pubsub.Subscription
	a.topic, sub = a.join(a.pubsub)
	for i := range appFriends {
		f := rawHost(t)
		f.SetStreamHandler(appProtocol, echo)
		// Every connection is protected: above its high-water mark the manager closes
		// the unprotected ones.
		conns.Protect(f.ID(), fmt.Sprint("app-", i%2))
		conns.TagPeer(f.ID(), "app", i)
		from, to := a.host, f
		if i%2 == 0 {
			from, to = f, a.host
		}
		if err := from.Connect(within(t, soon), *corehost.InfoFromHost(to)); err != nil {
			t.Fatal(err)
		}
		a.friends = append(a.friends, f)
	}
	subs := []*pubsub.Subscription{sub}
	for _, f := range a.friends[:appReaders] {
		topic, sub := a.join(lentPubSub(t, f, pubsub.NewGossipSub))
		a.topics = append(a.topics, topic)
		subs = append(subs, sub)
	}
	hosttest.Eventually(t, "all readers see each other", func() bool { return len(a.topic.ListPeers()) == appReaders })

	ids := map[peer.ID]bool{}
	for _, f := range a.friends {
		ids[f.ID()] = true
	}
	a.host.Network().Notify(&network.NotifyBundle{DisconnectedF: func(_ network.Network, c network.Conn) {
		if ids[c.RemotePeer()] {
			a.lost.Add(1)
		}
	}})
	for i, f := range a.friends {
		if i%2 == 0 {
			a.talk(a.host, f.ID())
		} else {
			a.talk(f, a.host.ID())
		}
	}
	for _, sub := range subs {
		a.follow(sub)
	}
	// Messages published before there is a mesh may reach nobody. Number 0 shows when there is one.
	hosttest.Eventually(t, "the mesh reaches everybody", func() bool {
		for _, topic := range []*pubsub.Topic{a.topic, a.topics[0]} {
			if err := topic.Publish(context.Background(), make([]byte, 8)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(50 * time.Millisecond) // so that there are not too many
		return a.all(func(count, _ uint64) bool { return count == 1 })
	})
	a.publish(a.host, a.topic)
	a.publish(a.friends[0], a.topics[0])
	return a
}

func (a *application) join(ps *pubsub.PubSub) (*pubsub.Topic, *pubsub.Subscription) {
	a.t.Helper()
	topic, err := ps.Join(appTopic)
	if err != nil {
		a.t.Fatal(err)
	}
	sub, err := topic.Subscribe(pubsub.WithBufferSize(1000))
	if err != nil {
		a.t.Fatal(err)
	}
	return topic, sub
}

func echo(s network.Stream) {
	io.Copy(s, s)
	s.Reset()
}

// each runs f at intervals until the application stops.
func (a *application) each(d time.Duration, f func() error) {
	a.tasks.Go(func() {
		tick := time.NewTicker(d) // a steady load is part of the test
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-a.stop:
				return
			}
			if err := f(); err != nil {
				a.t.Errorf("the application: %v", err)
				return
			}
		}
	})
}

// talk sends random bytes over one stream, and wants each back.
func (a *application) talk(from corehost.Host, to peer.ID) {
	a.t.Helper()
	s, err := from.NewStream(within(a.t, soon), to, appProtocol)
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { s.Reset() })
	sent, back := make([]byte, 4<<10), make([]byte, 4<<10)
	a.each(100*time.Millisecond, func() error {
		rand.Read(sent)
		s.SetDeadline(time.Now().Add(soon))
		if _, err := s.Write(sent); err != nil {
			return err
		}
		if _, err := io.ReadFull(s, back); err != nil {
			return err
		}
		if !bytes.Equal(sent, back) {
			return errors.New("other bytes came back")
		}
		a.bytes.Add(int64(len(back)))
		return nil
	})
}

// publish counts on the topic, in the name of h.
func (a *application) publish(h corehost.Host, topic *pubsub.Topic) {
	a.each(50*time.Millisecond, func() error {
		a.mu.Lock()
		a.published[h.ID()]++
		n := a.published[h.ID()]
		a.mu.Unlock()
		return topic.Publish(context.Background(), binary.BigEndian.AppendUint64(nil, n))
	})
}

// follow wants every number of everybody, once. Gossipsub promises no order: it checks
// messages on several cores.
func (a *application) follow(sub *pubsub.Subscription) {
	seen := map[peer.ID]*arrived{}
	a.read = append(a.read, seen)
	go func() { // until the pubsub is ended
		for {
			m, err := sub.Next(context.Background())
			if err != nil {
				return
			}
			from, n := m.GetFrom(), binary.BigEndian.Uint64(m.Data)
			a.mu.Lock()
			if seen[from] == nil {
				seen[from] = new(arrived)
			}
			if !seen[from].add(n) && n > 0 {
				a.t.Errorf("the application: number %d of %v came twice", n, from)
			}
			a.news++
			a.mu.Unlock()
		}
	}()
}

// heard is how many numbers have come.
func (a *application) heard() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.news
}

// close ends the traffic, and demands that every number has come everywhere.
func (a *application) close() {
	a.t.Helper()
	close(a.stop)
	a.tasks.Wait()
	hosttest.Eventually(a.t, "the application: every number at every reader", func() bool {
		return a.all(func(count, published uint64) bool { return count == published+1 })
	})
}

// all reports whether ok holds for every reader and every publisher.
func (a *application) all(ok func(count, published uint64) bool) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, seen := range a.read {
		for _, h := range []corehost.Host{a.host, a.friends[0]} {
			if seen[h.ID()] == nil || !ok(seen[h.ID()].count, a.published[h.ID()]) {
				return false
			}
		}
	}
	return true
}

// traces is what a node could leave on the application's host, and in its process.
type traces struct {
	protocols  []protocol.ID
	streams    map[protocol.ID]int
	conns      int
	topics     []string
	events     []string // types on the event bus
	goroutines int
	heap       uint64 // but for what pubsubs remember of messages
}

func (a *application) traces() traces {
	runtime.GC()
	runtime.GC()
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	var events []string
	for _, typ := range a.host.EventBus().GetAllEventTypes() {
		events = append(events, typ.String())
	}
	slices.Sort(events)
	return traces{
		events:    events,
		protocols: a.host.Mux().Protocols(),
		streams: streamsOf(a.host, func(id protocol.ID) bool {
			return id != "" && !strings.HasPrefix(string(id), "/ipfs/id/") // which libp2p opens now and then
		}),
		conns:  len(a.host.Network().Conns()),
		topics: a.pubsub.GetTopics(), goroutines: runtime.NumGoroutine(), heap: mem.HeapAlloc - min(mem.HeapAlloc, seenCaches()),
	}
}

// seenCaches estimates how much of the heap is used by the pubsubs' memory of the
// messages that they have seen, the application's own among them: maps, which keep
// their size when they forget. It is found in the heap profile, scaled as by pprof.
func seenCaches() (bytes uint64) {
	records := make([]runtime.MemProfileRecord, 1000)
	for {
		n, ok := runtime.MemProfile(records, false)
		if ok {
			records = records[:n]
			break
		}
		records = make([]runtime.MemProfileRecord, 2*n)
	}
	for _, r := range records {
		frames := runtime.CallersFrames(r.Stack())
		for more := r.InUseObjects() > 0; more; {
			var f runtime.Frame
			if f, more = frames.Next(); strings.Contains(f.Function, "go-libp2p-pubsub/timecache.") {
				size := float64(r.InUseBytes()) / float64(r.InUseObjects())
				bytes += uint64(float64(r.InUseBytes()) / (1 - math.Exp(-size/float64(runtime.MemProfileRate))))
				break
			}
		}
	}
	return bytes
}

// stacks returns the stacks of all goroutines, by goroutine number.
func stacks() map[string]string {
	all := make([]byte, 16<<20)
	list := map[string]string{}
	for stack := range strings.SplitSeq(string(all[:runtime.Stack(all, true)]), "\n\n") {
		id, _, _ := strings.Cut(stack, " [")
		list[id] = stack
	}
	return list
}

// TestApplicationGetsANode: an application at work does not notice that a node is added
// to it, works beside it, and is closed again. It runs alone, as it counts goroutines.
func TestApplicationGetsANode(t *testing.T) {
	lasts := map[size]time.Duration{byDefault: 3 * time.Second, long: time.Minute, full: 5 * time.Minute}[chosen()]
	// A node of this process has been here, so that what libraries start once is there.
	lentNode(t, rawHost(t)).Close()

	a := newApplication(t)
	hosttest.Eventually(t, "the application is at work", func() bool { return a.bytes.Load() > 1<<20 && a.heard() > 100 })
	before, running := a.traces(), stacks()
	lent, during := a.work(lasts)
	ended := time.Now()

	var after traces
	left := func() (what string) {
		after = a.traces()
		for name, same := range map[string]bool{
			"protocols": slices.Equal(after.protocols, before.protocols), "streams": maps.Equal(after.streams, before.streams),
			"connections": after.conns == before.conns, "topics": slices.Equal(after.topics, before.topics),
			"types of events": slices.Equal(after.events, before.events), "goroutines": after.goroutines <= before.goroutines,
			"who holds the node": lent.Value() == nil,
		} {
			if !same {
				what = name
			}
		}
		return what
	}
	last := ""
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) { // no event says that a process is at rest
		what := left()
		if what == "" {
			break
		}
		if last = what; time.Now().After(deadline) {
			t.Errorf("the node left %s\nbefore %+v\nduring %+v\nafter  %+v", what, before, during, after)
			for id, stack := range stacks() {
				if running[id] == "" {
					t.Logf("since then there is\n%s", stack)
				}
			}
			break
		}
	}
	t.Logf("all was as before %v after Close, last of all the %s; goroutines %d, %d with the node, %d",
		time.Since(ended).Round(100*time.Millisecond), last, before.goroutines, during.goroutines, after.goroutines)
	for i, f := range a.friends {
		if !a.host.ConnManager().IsProtected(f.ID(), fmt.Sprint("app-", i%2)) || a.host.ConnManager().GetTagInfo(f.ID()).Tags["app"] != i {
			t.Errorf("friend %d is not protected and tagged as before", i)
		}
	}
	mark, news := a.bytes.Load(), a.heard()
	hosttest.Eventually(t, "the application goes on", func() bool { return a.bytes.Load() > mark+1<<20 && a.heard() > news+100 })
	if n := a.lost.Load(); n > 0 {
		t.Errorf("the application lost %d connections", n)
	}
	a.close()
	t.Logf("the application echoed %d KiB and read %d numbers", a.bytes.Load()>>10, a.heard())

	// The application's gossipsubs remember for three minutes who has sent which message,
	// so the heap is what it was when the application has been at rest for as long.
	const slack = 4 << 20
	after = a.traces()
	for deadline := time.Now().Add(4 * time.Minute); after.heap > before.heap+slack && time.Now().Before(deadline); after = a.traces() {
		time.Sleep(time.Second) // no event says that something is forgotten
	}
	if after.heap > before.heap+slack {
		t.Errorf("the heap has %d KiB, before it had %d", after.heap>>10, before.heap>>10)
	}
	t.Logf("without what pubsubs remember of messages the heap had %d KiB, with the node %d, and has %d after %v; they remember in %d KiB",
		before.heap>>10, during.heap>>10, after.heap>>10, time.Since(ended).Round(time.Second), seenCaches()>>10)
}

// work adds a node to the application, has it and two others of its network send and
// receive for that long, and closes all three. Nothing but the result knows of them then.
func (a *application) work(lasts time.Duration) (lent weak.Pointer[smokesignal.Node], during traces) {
	a.t.Helper()
	var nodes []*smokesignal.Node
	for _, opt := range [][]smokesignal.Option{
		{smokesignal.WithHost(a.host), smokesignal.WithPubSub(a.pubsub)}, {smokesignal.Listen("127.0.0.1:0")}, {smokesignal.Listen("127.0.0.1:0")},
	} {
		n, err := smokesignal.New(append(opt, smokesignal.PeerLimits(0, 5))...)
		if err != nil {
			a.t.Fatal(err)
		}
		defer n.Close()
		if err := n.Start(a.t.Context()); err != nil {
			a.t.Fatal(err)
		}
		nodes = append(nodes, n)
	}
	lent = weak.Make(nodes[0])
	var removed atomic.Int64
	nodes[0].OnPeerRemoved(func(context.Context, *smokesignal.Peer) { removed.Add(1) })
	introduce(a.t, nodes[0], nodes[1])
	introduce(a.t, nodes[2], nodes[0])

	type flow struct {
		*tally
		sent *atomic.Uint64
	}
	var flows []flow
	var directs atomic.Int64
	var working sync.WaitGroup
	ctx, cancel := context.WithTimeout(a.t.Context(), lasts+soon)
	defer cancel()
	end := time.Now().Add(lasts)
	for _, from := range nodes {
		sent := new(atomic.Uint64)
		for i, to := range nodes {
			if to == from {
				continue
			}
			flows = append(flows, flow{newTally(a.t, fmt.Sprintf("n%d", i), to, from.ID(), nil), sent})
			next := 0
			to.Peer(from.ID()).On("direct", func(_ context.Context, ev *smokesignal.Event) {
				var got int
				if err := ev.Decode(&got); err != nil || got != next {
					a.t.Errorf("direct event %d came in place of %d: %v", got, next, err)
				}
				next = got + 1
				directs.Add(1)
			})
			working.Go(func() {
				for i := 0; time.Now().Before(end); i++ {
					if err := from.Peer(to.ID()).Emit(ctx, "direct", i); err != nil {
						a.t.Errorf("direct: %v", err)
						return
					}
					directs.Add(-1)
					time.Sleep(20 * time.Millisecond) // a steady load is part of the test
				}
			})
		}
		working.Go(func() {
			for time.Now().Before(end) {
				if err := emitNumbered(ctx, from, sent.Load()+1, sent.Load()+2, 200); err != nil {
					a.t.Error(err)
					return
				}
				sent.Add(1)
				time.Sleep(20 * time.Millisecond) // likewise
			}
		})
	}
	working.Wait()
	var events uint64
	for _, f := range flows {
		f.all(f.sent.Load()+1, soon)
		events += f.sent.Load()
	}
	hosttest.Eventually(a.t, "all direct events have come", func() bool { return directs.Load() == 0 })
	if n := removed.Load(); n > 0 {
		a.t.Errorf("%d links ended: the connection manager took connections of peers?", n)
	}
	during = a.traces()
	for i, n := range nodes {
		began := time.Now()
		if err := n.Close(); err != nil {
			a.t.Errorf("Close: %v", err)
		}
		if i == 0 {
			a.t.Logf("%d broadcasts delivered in %v; Close took %v", events, lasts, time.Since(began).Round(time.Millisecond))
		} else if a.host.ConnManager().IsProtected(n.ID(), "") {
			a.t.Error("a peer of the node is still protected")
		}
	}
	return lent, during
}
