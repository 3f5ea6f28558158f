package events

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/errs"
	"github.com/go-smokesignal/smokesignal/internal/event"
	"github.com/go-smokesignal/smokesignal/internal/hosttest"
	"github.com/go-smokesignal/smokesignal/internal/notify"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
	"github.com/go-smokesignal/smokesignal/internal/wiring"
)

// Two neighbors deliver each other's events in order and none of their own.
func TestBroadcastPairDeliversInOrder(t *testing.T) {
	over(t, func(t *testing.T, listen string) {
		pair := line(t, 2, listen)
		a, b := pair[0], pair[1]
		own := make(chan string, 1)
		a.On("*", func(_ context.Context, ev *event.Event) {
			if ev.From == a.id() {
				own <- ev.Name
			}
		})
		for i := range 100 {
			a.emit("%d", i)
			b.emit("%d", i)
		}
		a.wait(b, texts(100)...)
		b.wait(a, texts(100)...)
		select {
		case name := <-own:
			t.Errorf("a hears its own %s", name)
		default:
		}
		for _, s := range pair {
			if st := s.Stats(); st["emitted"] != 100 || st["delivered"] != 100 || st["lost"]+st["overrun"]+st["foreign"]+st["undecodable"] != 0 {
				t.Errorf("%+v", st)
			}
		}
	})
}

// The arguments of an event are decoded at the receiver with the values that were sent.
func TestBroadcastArgumentsAreDecoded(t *testing.T) {
	pair := line(t, 2, overTCP)
	type result struct {
		n    int
		s    string
		raw  []byte
		from peer.ID
	}
	got := make(chan result, 1)
	pair[1].On("move", func(_ context.Context, ev *event.Event) {
		var r result
		if err := ev.Decode(&r.n, &r.s, &r.raw); err != nil {
			t.Error(err)
		}
		r.from = ev.From
		got <- r
	})
	raw := []byte("raw")
	if err := pair[0].Emit(t.Context(), "move", 3, "west", raw); err != nil {
		t.Fatal(err)
	}
	raw[0] = 'X' // the caller's again
	r := <-got
	if r.n != 3 || r.s != "west" || string(r.raw) != "raw" || r.from != pair[0].id() {
		t.Errorf("%+v", r)
	}
}

// Events reach all nodes of a line through the nodes in between.
func TestBroadcastPassesEventsAlongALine(t *testing.T) {
	nodes := line(t, 5, overTCP)
	for i := range 50 {
		for _, s := range nodes {
			s.emit("%d", i)
		}
	}
	for _, s := range nodes {
		for _, other := range nodes {
			if s != other {
				s.wait(other, texts(50)...)
			}
		}
	}
}

// A burst arrives whole; the default queues of pubsub would lose half of it.
func TestBroadcastBurstLosesNothing(t *testing.T) {
	const n = 10_000
	nodes := line(t, 5, overTCP)
	want := make([]string, n)
	for i := range want {
		want[i] = fmt.Sprintf("%05d%s", i, strings.Repeat("x", 295))
		nodes[0].emit("%s", want[i])
	}
	for i, s := range nodes[1:] {
		s.wait(nodes[0], want...)
		if st := s.Stats(); st["delivered"] != n || st["lost"]+st["overrun"] != 0 {
			t.Errorf("node %d: %+v", i+1, st)
		}
		if st := s.guard.Stats(); st["dropped"]+st["overload"] != 0 {
			t.Errorf("node %d: pubsub dropped messages: %v", i+1, st)
		}
		eventually(t, "no message counts as unchecked", func() bool {
			messages, bytes := s.guard.Unchecked()
			return messages == 0 && bytes == 0
		})
	}
}

// On a pubsub with the default queues of 32, the dropped events are repaired, so no event
// is lost either.
func TestBroadcastBurstOverDefaultPubSub(t *testing.T) {
	const n = 10_000
	var nodes []*station
	for i := range 3 {
		nodes = append(nodes, newStationOn(t, overTCP, Config{}))
		if i > 0 {
			link(t, nodes[i-1], nodes[i])
		}
	}
	want := texts(n)
	for _, text := range want {
		nodes[0].emit("%s", text)
	}
	for i, s := range nodes[1:] {
		s.wait(nodes[0], want...)
		if st := s.Stats(); st["delivered"] != n || st["lost"]+st["overrun"] != 0 {
			t.Errorf("node %d: %+v", i+1, st)
		}
	}
}

// In a ring every event arrives from both sides and is delivered once.
func TestBroadcastDeliversOnceInARing(t *testing.T) {
	nodes := line(t, 4, overTCP)
	link(t, nodes[3], nodes[0])
	for i := range 100 {
		for _, s := range nodes {
			s.emit("%d", i)
		}
	}
	for _, s := range nodes {
		for _, other := range nodes {
			if s != other {
				s.wait(other, texts(100)...)
			}
		}
	}
	for _, s := range nodes {
		if err := s.Flush(t.Context()); err != nil {
			t.Error(err)
		}
		if st := s.Stats(); st["delivered"] != 300 || st["lost"] != 0 {
			t.Errorf("%+v", st)
		}
	}
}

// The events of a node are delivered in the order of its calls of Emit, also from many
// goroutines.
func TestBroadcastKeepsTheOrderOfCalls(t *testing.T) {
	pair := line(t, 2, overTCP)
	const callers, each = 16, 100
	var calls sync.WaitGroup
	for c := range callers {
		calls.Go(func() {
			for i := range each {
				pair[0].emit("%d %d", c, i)
			}
		})
	}
	calls.Wait()
	eventually(t, "all came", func() bool { return len(pair[1].received(pair[0])) == callers*each })
	var next [callers]int
	for _, text := range pair[1].received(pair[0]) {
		var c, i int
		fmt.Sscan(text, &c, &i)
		if i != next[c] {
			t.Fatalf("caller %d: %d instead of %d", c, i, next[c])
		}
		next[c]++
	}
}

// Each error of Emit can be matched with errors.Is, and a failed Emit uses no sequence
// number.
func TestEmitErrorsCanBeMatched(t *testing.T) {
	h := newStationHost(t, overTCP)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ps, err := pubsub.NewFloodSub(ctx, h, PubSubOptions(testTopic)...)
	if err != nil {
		t.Fatal(err)
	}
	for _, cfg := range []Config{
		{},
		{Topic: "t", MaxEventSize: maxBatch},
	} {
		if _, err := New(ps, h, cfg); err == nil {
			t.Errorf("no error for %+v", cfg)
		}
	}
	other := newStation(t, overTCP, Config{})
	b, err := New(ps, h, Config{Topic: testTopic, MaxEventSize: 1000, Node: new(wiring.Broadcasts)})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close(t.Context())
	if _, err := New(ps, h, Config{Topic: testTopic}); err == nil {
		t.Error("the topic was joined twice")
	}
	emit := func(want error, name string, args ...any) {
		t.Helper()
		err := b.Emit(t.Context(), name, args...)
		if !errors.Is(err, want) || (err == nil) != (want == nil) {
			t.Errorf("%v, want %v", err, want)
		}
	}
	emit(errs.ErrNotStarted, "x")
	if err := b.Flush(t.Context()); err != nil {
		t.Error(err)
	}
	b.start()
	b.start()
	emit(ErrNoPeers, "x")
	hosttest.Connect(t, h, other.host)
	eventually(t, "it is on the topic", func() bool { return len(ps.ListPeers(testTopic)) == 1 })
	if err := b.link(other.id(), other.greeting()); err != nil {
		t.Fatal(err)
	}
	emit(nil, "x", []byte("1"))
	emit(event.ErrTooLarge, "x", make([]byte, 1000))
	emit(event.ErrBadName, "")
	emit(event.ErrBadName, "*")
	emit(event.ErrBadName, strings.Repeat("x", 129))
	emit(event.ErrBadArgument, "x", make(chan int))
	gone, end := context.WithCancel(t.Context())
	end()
	if err := b.Emit(gone, "x"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	emit(nil, "x", []byte("2"))
	eventually(t, "both came", func() bool { return other.Stats()["delivered"] == 2 })
	if st := other.Stats(); st["lost"] != 0 {
		t.Errorf("a failed Emit took a number: %+v", st)
	}
	if err := b.Flush(t.Context()); err != nil {
		t.Error(err)
	}
	if err := b.Drain(t.Context()); err != nil {
		t.Error(err)
	}
	emit(ErrClosed, "x")
	if err := b.Flush(t.Context()); err != nil {
		t.Error(err)
	}
	if err := b.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if err := b.Close(t.Context()); err != nil {
		t.Error(err)
	}
	emit(ErrClosed, "x")
	b.start()
	emit(ErrClosed, "x")
	if err := b.link(other.id(), []byte{0xff}); !errors.Is(err, event.ErrMalformed) {
		t.Error(err)
	}
}

// A Broadcast that was closed before its start leaves its topic and registers no stream
// handler.
func TestBroadcastCloseBeforeStart(t *testing.T) {
	s := newStation(t, overTCP, Config{})
	s.Close(t.Context())
	cfg := Config{Topic: testTopic, Node: new(wiring.Broadcasts)}
	b, err := New(s.ps, s.host, cfg) // the topic is free again
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Close(t.Context()); err != nil {
		t.Error(err)
	}
	b.start()
	if slices.Contains(s.host.Mux().Protocols(), protocol.Repair) {
		t.Error("a handler was left")
	}
}

// The events of a restarted sender are delivered after those of its earlier session.
func TestEventsOfARestartedSenderComeAfterTheEarlier(t *testing.T) {
	nodes := line(t, 3, overTCP)
	var want []string
	for run := range 5 {
		for i := range 20 {
			text := fmt.Sprintf("%d %d", run, i)
			want = append(want, text)
			nodes[0].emit("%s", text)
		}
		if err := nodes[0].Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := nodes[0].Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is gone", func() bool { return !slices.Contains(nodes[1].neighbors(), nodes[0].id()) })
		nodes[0].begin(Config{})
		linked(t, nodes[0], nodes[1])
	}
	nodes[1].wait(nodes[0], want...)
	nodes[2].wait(nodes[0], want...)
	for _, s := range nodes[1:] {
		if st := s.Stats(); st["lost"]+st["old_sessions"]+st["duplicates"] != 0 {
			t.Errorf("%+v", st)
		}
	}
}

// A handler that is slow with one sender delays the events of that sender only.
func TestSlowHandlerDelaysOnlyItsSender(t *testing.T) {
	t.Parallel()
	nodes := line(t, 3, overTCP)
	slow, mid, fast := nodes[0], nodes[1], nodes[2]
	release := make(chan struct{})
	mid.On("x", func(_ context.Context, ev *event.Event) {
		if ev.From == slow.id() {
			<-release
		}
	})
	for i := range 200 {
		slow.emit("%d", i)
		fast.emit("%d", i)
	}
	mid.wait(fast, texts(200)...)
	fast.wait(slow, texts(200)...)
	if got := mid.received(slow); len(got) > 1 {
		t.Errorf("events of one sender overtook: %q", got)
	}
	close(release)
	mid.wait(slow, texts(200)...)
}

// A blocked handler uses a bounded amount of memory, only at its own node; the events it
// misses are reported as a gap in their place.
func TestBroadcastStoreIsBounded(t *testing.T) {
	t.Parallel()
	const events, size = 100, 4 << 10
	a := newStation(t, overTCP, Config{})
	b := newStation(t, overTCP, Config{StoreBytes: 16 * (size + signedBatchOverhead + 100)})
	c := newStation(t, overTCP, Config{})
	link(t, a, b)
	link(t, b, c)
	blocked, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	var mu sync.Mutex
	var missing []Gap
	last := byte(0)
	b.On("large", func(_ context.Context, ev *event.Event) {
		once.Do(func() { close(blocked) })
		<-release
		data, _ := ev.Bytes(0)
		mu.Lock()
		defer mu.Unlock()
		if last++; data[0] != last {
			t.Errorf("event %d where %d should be", data[0], last)
		}
	})
	b.OnGap(func(_ context.Context, g Gap) {
		mu.Lock()
		defer mu.Unlock()
		missing = append(missing, g)
		last += byte(g.Len())
	})
	large := func(n int) {
		t.Helper()
		data := make([]byte, size)
		data[0] = byte(n)
		if err := a.Emit(t.Context(), "large", data); err != nil {
			t.Fatal(err)
		}
	}
	large(1)
	<-blocked
	for n := 2; n <= events; n++ {
		large(n)
		if err := a.Flush(t.Context()); err != nil { // which does not wait for handlers
			t.Fatal(err)
		}
	}
	b.driver.mu.Lock()
	held := b.driver.engine.StoredEntries(a.id(), a.session, 1, events+1, 1<<30)
	b.driver.mu.Unlock()
	if len(held) > 16 || len(held) < 14 {
		t.Errorf("%d batches wait", len(held))
	}
	c.emit("0") // the small sender is not the one that loses
	b.wait(c, "0")
	close(release)
	eventually(t, "all is dealt with", func() bool {
		b.deliverer.mu.Lock()
		defer b.deliverer.mu.Unlock()
		return b.deliverer.turns.Len() == 0
	})
	st := b.Stats()
	if st["overrun"] == 0 || st["delivered"]+st["overrun"] != events+1 || st["lost"] != 0 {
		t.Errorf("%+v", st)
	}
	if len(missing) != 1 || !missing[0].Slow || missing[0].Len() != st["overrun"] || missing[0].From != a.id() {
		t.Errorf("%v", missing)
	}
}

// A panic in a handler is counted, and the later events are still delivered.
func TestBroadcastCountsPanics(t *testing.T) {
	pair := line(t, 2, overTCP)
	off := pair[1].On("x", func(context.Context, *event.Event) { panic("of the handler") })
	for i := range 3 {
		pair[0].emit("%d", i)
	}
	pair[1].wait(pair[0], texts(3)...)
	eventually(t, "three panics", func() bool { return pair[1].Stats()["panics"] == 3 })
	off()
	pair[0].emit("3")
	pair[1].wait(pair[0], texts(4)...)
}

// No event is handled before Admit accepts its sender, and none is lost meanwhile.
func TestEventsWaitForAdmit(t *testing.T) {
	a := newStation(t, overTCP, Config{})
	asked, admitted := make(chan peer.ID, 100), make(chan struct{})
	b := newStation(t, overTCP, Config{Node: &wiring.Broadcasts{Admit: func(ctx context.Context, p peer.ID) error {
		asked <- p
		select {
		case <-admitted:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}}})
	link(t, a, b)
	for i := range 10 {
		a.emit("%d", i)
	}
	if p := <-asked; p != a.id() {
		t.Errorf("asked for %s", p)
	}
	if err := a.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := b.received(a); len(got) != 0 {
		t.Errorf("handled before admitted: %q", got)
	}
	close(admitted)
	b.wait(a, texts(10)...)
}

// A pipe carries each write as one read, and ends when the Broadcast is closed.
func TestBroadcastPipeEndsWithClose(t *testing.T) {
	pair := line(t, 2, overTCP)
	from, to := pair[0].pipe(), pair[1].pipe()
	go func() {
		for i := range 50 {
			fmt.Fprintf(from, "line %d\n", i)
		}
	}()
	for i := range 50 {
		buf := make([]byte, 100)
		n, err := to.Read(buf)
		if want := fmt.Sprintf("line %d\n", i); err != nil || string(buf[:n]) != want {
			t.Fatalf("%q, %v; want %q", buf[:n], err, want)
		}
	}
	if err := pair[1].Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := to.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("read after the close: %v", err)
	}
	if _, err := to.Write([]byte("x")); !errors.Is(err, ErrClosed) {
		t.Errorf("write after the close: %v", err)
	}
}

// OnTopic reports each peer that joins or leaves the topic, one call at a time.
func TestOnTopicReportsPeersInTurn(t *testing.T) {
	a := newStation(t, overTCP, Config{})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	h := newStationHost(t, overTCP)
	ps, err := pubsub.NewFloodSub(ctx, h, PubSubOptions(testTopic)...)
	if err != nil {
		t.Fatal(err)
	}
	hosttest.Connect(t, h, a.host)
	eventually(t, "a is there already", func() bool { return len(ps.ListPeers(testTopic)) == 1 })
	type change struct {
		p       peer.ID
		present bool
	}
	changes, closing := make(chan change), make(chan struct{})
	var inside atomic.Int32
	b, err := New(ps, h, Config{Topic: testTopic, Node: &wiring.Broadcasts{OnTopic: func(p peer.ID, present bool) {
		if inside.Add(1) > 1 {
			t.Error("called twice at once")
		}
		defer inside.Add(-1)
		select {
		case changes <- change{p, present}:
		case <-closing:
		}
	}}})
	if err != nil {
		t.Fatal(err)
	}
	b.start()
	for range 3 {
		if c := <-changes; c.p != a.id() || !c.present {
			t.Errorf("%+v", c)
		}
		a.Close(t.Context())
		if c := <-changes; c.p != a.id() || c.present {
			t.Errorf("%+v", c)
		}
		a.begin(Config{})
	}
	close(closing)
	if err := b.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// With Last, a new node begins with the last events that its neighbor has stored.
func TestNewNodeGetsTheLastEvents(t *testing.T) {
	a := newStation(t, overTCP, Config{})
	b := newStation(t, overTCP, Config{})
	link(t, a, b)
	for i := range 20 {
		a.emit("%d", i)
	}
	b.wait(a, texts(20)...)
	last := newStation(t, overTCP, Config{Last: 5})
	all := newStation(t, overTCP, Config{Last: 1000})
	now := newStation(t, overTCP, Config{})
	for _, s := range []*station{last, all, now} {
		link(t, b, s) // which has them from a
	}
	a.emit("20")
	want := texts(21)
	now.wait(a, want[20:]...)
	all.wait(a, want...)
	got := last.received(a)
	eventually(t, "the last five come", func() bool {
		got = last.received(a)
		return len(got) > 0 && got[len(got)-1] == "20"
	})
	// What went out together comes together, so it can be more.
	if len(got) < 6 || len(got) > len(want) || !slices.Equal(got, want[len(want)-len(got):]) {
		t.Errorf("%q, want the last five and one of %q", got, want)
	}
	// The newcomer can give on what it did not deliver itself.
	eventually(t, "it keeps them", func() bool {
		now.driver.mu.Lock()
		defer now.driver.mu.Unlock()
		return len(now.driver.engine.StoredEntries(a.id(), a.session, 1, 20, 1<<20)) > 0
	})
}

// TryEmit does not wait for a neighbor that acknowledges nothing; accepted events arrive
// and refused events do not.
func TestTryEmitDoesNotWait(t *testing.T) {
	pair := line(t, 2, overTCP)
	stopAcknowledging(pair[1])
	var want []string
	pad := strings.Repeat("x", 4<<10)
	for {
		text := fmt.Sprintf("%04d%s", len(want), pad)
		err := pair[0].TryEmit("x", []byte(text))
		if errors.Is(err, ErrQueueFull) {
			break
		}
		if err != nil || len(want) > 1000 {
			t.Fatalf("%v after %d events", err, len(want))
		}
		want = append(want, text)
	}
	want = append(want, "end")
	if err := pair[0].emitBytes(t.Context(), "x", []byte("end")); err != nil { // which waits
		t.Fatal(err)
	}
	pair[1].wait(pair[0], want...)
	if err := pair[0].TryEmit("*"); !errors.Is(err, event.ErrBadName) {
		t.Error(err)
	}
}

// A lent pubsub may refuse our messages by a validator of the application. Emit waits for
// it at most until its ctx ends, accepted events are sent in order when it allows them,
// and Close does not wait for it.
func TestEmitWaitsForARefusingPubSub(t *testing.T) {
	a, b := lendStation(t, Config{}), newStation(t, overTCP, Config{})
	var refusing atomic.Bool
	tried := notify.NewSignal()
	err := a.ps.RegisterTopicValidator(testTopic, func(_ context.Context, from peer.ID, _ *pubsub.Message) bool {
		if from != a.id() || !refusing.Load() {
			return true
		}
		tried.Set()
		return false
	})
	if err != nil {
		t.Fatal(err)
	}
	link(t, a, b)
	var want []string
	emit := func(ctx context.Context, size int) error {
		text := fmt.Sprintf("%04d%s", len(want), strings.Repeat("x", size))
		done := make(chan error, 1)
		go func() { done <- a.Emit(ctx, "x", []byte(text)) }()
		select {
		case err := <-done:
			if err == nil {
				want = append(want, text)
			}
			return err
		case <-time.After(10 * time.Second):
			t.Fatal("Emit waits for a pubsub that refuses, and not for its ctx")
			return nil
		}
	}
	refuse := func() {
		t.Helper()
		refusing.Store(true)
		eventually(t, "nothing is being published", func() bool {
			a.publisher.mu.Lock()
			defer a.publisher.mu.Unlock()
			a.publisher.detachedAt = time.Time{} // so that Emit publishes by itself
			return !a.publisher.publishing
		})
	}
	for round := range 2 {
		refuse()
		if err := emit(t.Context(), 0); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		<-tried
		// Behind it a batch is gathered; what finds no room there waits.
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		for err == nil && len(want) < 1000 {
			err = emit(ctx, 32<<10)
		}
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("round %d: after %d events %v", round, len(want), err)
		}
		err = nil
		refusing.Store(false)
		b.wait(a, want...)
		if err := a.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	refuse()
	if err := emit(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	<-tried
	if err := a.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := emit(t.Context(), 0); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close %v", err)
	}
}
