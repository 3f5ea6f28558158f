package smokesignal

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/go-smokesignal/smokesignal/internal/bubble"
)

// newPair returns two nodes that are linked over loopback. They close with the test.
func newPair(t *testing.T) (a, b *Node) {
	t.Helper()
	a = newNode(t)
	b = newNode(t, Seeds(a.Addrs()[0].String()))
	for _, n := range []*Node{a, b} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := n.Ready(ctx); err != nil {
			t.Fatal(err)
		}
	}
	return a, b
}

// newNode returns a node that was started on a free port of loopback.
func newNode(t *testing.T, opts ...Option) *Node {
	t.Helper()
	n, err := New(append([]Option{Listen("127.0.0.1:0")}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return n
}

// receive returns the next value of a channel.
func receive[T any](t *testing.T, from <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-from:
	case <-time.After(10 * time.Second):
		t.Fatal("nothing arrived within 10 s")
	}
	return v
}

type point struct{ X, Y int }

// trip sends v over every channel that takes typed events and returns what arrived.
func trip[T any](t *testing.T, a, b *Node, v T) (got []T) {
	t.Helper()
	name, ctx := Name[T](fmt.Sprintf("%T", v)), t.Context()
	arrived := make(chan T, 1)
	note := func(_ context.Context, from ID, v T) {
		if from != a.ID() {
			t.Errorf("from %s, want %s", from, a.ID())
		}
		arrived <- v
	}
	for _, way := range []struct {
		what string
		src  Source
		emit func() error
	}{
		{"broadcast", b.Broadcast(), func() error { return name.Emit(ctx, a.Broadcast(), v) }},
		{"broadcast at once", b.Broadcast(), func() error { return name.TryEmit(a.Broadcast(), v) }},
		{"broadcast confirmed", b.Broadcast(), func() error { return name.EmitConfirmed(ctx, a.Broadcast(), 1, v) }},
		{"to a peer", b.Direct(), func() error { return name.Emit(ctx, a.Peer(b.ID()), v) }},
		{"to a peer at once", b.Direct(), func() error { return name.TryEmit(a.Peer(b.ID()), v) }},
		{"from a peer", b.Peer(a.ID()), func() error { return name.Emit(ctx, a.Peer(b.ID()), v) }},
	} {
		off := name.On(way.src, note)
		if err := way.emit(); err != nil {
			t.Errorf("%s: %v", way.what, err)
			continue
		}
		got = append(got, receive(t, arrived))
		off()
	}
	return got
}

// Values of many types arrive unchanged over every channel of typed events.
func TestNamesOfManyTypesOnEveryChannel(t *testing.T) {
	a, b := newPair(t)
	if got := fmt.Sprintf("%q", trip(t, a, b, "text")); got != `["text" "text" "text" "text" "text" "text"]` {
		t.Error(got)
	}
	for _, p := range trip(t, a, b, point{1, 2}) {
		if p != (point{1, 2}) {
			t.Error(p)
		}
	}
	for _, p := range trip(t, a, b, &point{1, 2}) {
		if *p != (point{1, 2}) {
			t.Error(p)
		}
	}
	for _, p := range trip(t, a, b, []byte{1, 2}) {
		if !slices.Equal(p, []byte{1, 2}) {
			t.Error(p)
		}
	}
	for _, p := range trip(t, a, b, wrapperspb.String("Ada")) {
		if p.GetValue() != "Ada" {
			t.Error(p)
		}
	}
	trip(t, a, b, struct{}{})

	anything := make(chan any, 3)
	Name[any]("any").On(b.Direct(), func(_ context.Context, _ ID, v any) { anything <- v })
	for _, v := range []any{1, nil, []byte("raw")} {
		if err := Name[any]("any").Emit(t.Context(), a.Peer(b.ID()), v); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{"float64 1", "<nil> <nil>", "[]uint8 [114 97 119]"} {
		if v := receive(t, anything); fmt.Sprintf("%T %v", v, v) != want {
			t.Errorf("got %T %v, want %s", v, v, want)
		}
	}
}

// An event of struct{} has no argument, and one that has some is one, too.
func TestEventOfNothing(t *testing.T) {
	a, b := newPair(t)
	name, arrived, lens := Name[struct{}]("n"), make(chan struct{}, 2), make(chan int, 2)
	name.On(b.Direct(), func(context.Context, ID, struct{}) { arrived <- struct{}{} })
	b.Direct().On("n", func(_ context.Context, ev *Event) { lens <- ev.Len() })
	name.Emit(t.Context(), a.Peer(b.ID()), struct{}{})
	a.Peer(b.ID()).Emit(t.Context(), "n", 1, 2)
	for _, want := range []int{0, 2} {
		receive(t, arrived)
		if n := receive(t, lens); n != want {
			t.Errorf("%d arguments, want %d", n, want)
		}
	}
}

// Events that a typed handler cannot decode are counted.
func TestUndecodableEventsAreCounted(t *testing.T) {
	a, b := newPair(t)
	number, got := Name[int]("number"), make(chan int, 10)
	off := number.On(b.Direct(), func(_ context.Context, _ ID, n int) { got <- n })
	to, ctx := a.Peer(b.ID()), t.Context()
	Name[string]("number").Emit(ctx, to, "no")
	to.Emit(ctx, "number")
	to.Emit(ctx, "number", []byte("7"))
	number.Emit(ctx, to, 7)
	if n := receive(t, got); n != 7 {
		t.Errorf("the handler got %d", n)
	}
	if bad := b.Stats().Direct["undecodable"]; bad != 3 {
		t.Errorf("%d events are counted as undecodable, want 3", bad)
	}
	off()
	number.Emit(ctx, to, 8)
	if err := settle(a, b); err != nil || len(got) != 0 {
		t.Error("called after off", err)
	}
}

// settle returns when b has handled the direct events of a.
func settle(a, b *Node) error {
	defer Call[struct{}, struct{}]("settle").Handle(b.Direct(), func(context.Context, ID, struct{}) (struct{}, error) { return struct{}{}, nil })()
	_, err := Call[struct{}, struct{}]("settle").Do(context.Background(), a.Peer(b.ID()), struct{}{})
	return err
}

// The loop gets every event in order, a bad one as an error in its place, and ends when
// the node closes.
func TestLoopOverEvents(t *testing.T) {
	a, b := newPair(t)
	number, to := Name[int]("number"), a.Peer(b.ID())
	loop := number.All(context.Background(), b.Direct())
	ended := make(chan []string)
	stepped := make(chan struct{}, 3)
	go func() {
		var got []string
		for msg, err := range loop {
			got = append(got, fmt.Sprint(msg.Value, msg.From == a.ID(), errors.Is(err, ErrUndecodable)))
			stepped <- struct{}{}
		}
		ended <- got
	}()
	number.Emit(t.Context(), to, 1)
	Name[string]("number").Emit(t.Context(), to, "two")
	number.Emit(t.Context(), to, 3)
	for range 3 {
		receive(t, stepped)
	}
	b.Close()
	if got := strings.Join(receive(t, ended), ", "); got != "1 true false, 0 true true, 3 true false" {
		t.Error(got)
	}
}

// fakeSource is a Source whose events the test makes.
type fakeSource struct {
	mu       sync.Mutex
	handlers map[*func(context.Context, *Event)]string
	gaps     func(context.Context, Gap)
	closed   chan struct{}
}

func newFakeSource() *fakeSource {
	return &fakeSource{handlers: map[*func(context.Context, *Event)]string{}, closed: make(chan struct{})}
}

func (s *fakeSource) On(name string, f func(context.Context, *Event)) (off func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handlers[&f] = name
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.handlers, &f)
	}
}

func (s *fakeSource) OnGap(f func(context.Context, Gap)) (off func()) {
	s.gaps = f
	return func() {}
}

func (s *fakeSource) closing() <-chan struct{} { return s.closed }

// emit returns when the handlers have returned, as a channel that holds back the sender.
func (s *fakeSource) emit(name string) {
	s.mu.Lock()
	handlers := slices.Collect(maps.Keys(s.handlers))
	s.mu.Unlock()
	for _, f := range handlers {
		(*f)(context.Background(), &Event{From: "sender", Name: name})
	}
}

// A loop whose body is slow holds the sender back; a loop that was left does not.
func TestLoopHoldsBackItsSender(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		src := newFakeSource()
		step, ended := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(ended)
			for range Name[struct{}]("n").All(context.Background(), src) {
				if _, more := <-step; !more {
					return
				}
			}
		}()
		synctest.Wait()
		sent := 0
		go func() {
			for range 10 {
				src.emit("n")
				sent++
			}
		}()
		for want := range 2 {
			synctest.Wait()
			if sent != want+1 {
				t.Errorf("%d events are handed over while the body of event %d runs", sent, want+1)
			}
			if want == 0 {
				step <- struct{}{}
			}
		}
		close(step)
		<-ended
		synctest.Wait()
		if sent != 10 {
			t.Errorf("%d events after the loop was left, want 10", sent)
		}
	})
}

// An event that arrives between the call of All and the loop waits for the loop; if
// there is no loop, it waits for the end of ctx.
func TestLoopSubscribesAtOnce(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		src := newFakeSource()
		ctx, cancel := context.WithCancel(t.Context())
		loop := Name[struct{}]("n").All(ctx, src)
		go src.emit("n")
		synctest.Wait()
		for msg := range loop {
			if msg.From != "sender" {
				t.Error(msg)
			}
			break
		}
		for range loop {
			t.Error("a second loop")
		}

		Name[struct{}]("n").All(ctx, src) // never looped over
		sent := false
		go func() {
			src.emit("n")
			sent = true
		}()
		synctest.Wait()
		if sent {
			t.Error("the event went nowhere")
		}
		cancel()
		synctest.Wait()
		if !sent {
			t.Error("the sender is still held back")
		}
	})
}

// A gap comes in the place of the missing events.
func TestLoopReportsGaps(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		src := newFakeSource()
		loop := Name[struct{}]("n").All(t.Context(), src)
		go src.gaps(t.Context(), Gap{From: "sender", First: 2, Last: 4})
		for msg, err := range loop {
			gap, ok := errors.AsType[Gap](err)
			if !ok || gap.Len() != 3 || msg.From != "sender" || !strings.Contains(err.Error(), "events 2 to 4 of") {
				t.Errorf("%+v, %v", msg, err)
			}
			break
		}
	})
}

// A loop over events ends when its source is closed.
func TestLoopEndsWhenItsSourceCloses(t *testing.T) {
	src := newFakeSource()
	close(src.closed)
	for range Name[struct{}]("n").All(t.Context(), src) {
		t.Error("an event out of nowhere")
	}
}

// An answer or an argument of another type is an error that says so.
func TestCallsOfOtherTypes(t *testing.T) {
	a, b := newPair(t)
	double := Call[int, int]("double")
	double.Handle(b.Direct(), func(_ context.Context, from ID, n int) (int, error) {
		if from != a.ID() {
			t.Error(from)
		}
		return 2 * n, nil
	})
	to, ctx := a.Peer(b.ID()), t.Context()
	if n, err := double.Do(ctx, to, 21); n != 42 || err != nil {
		t.Error(n, err)
	}
	if _, err := (Call[string, int])("double").Do(ctx, to, "x"); !errors.Is(err, ErrBadArgument) {
		t.Error(err)
	}
	if _, err := (Call[int, string])("double").Do(ctx, to, 1); !errors.Is(err, ErrUndecodable) || !strings.Contains(err.Error(), "the answer") {
		t.Error(err)
	}
	if _, err := (Call[int, int])("halve").Do(ctx, to, 1); !errors.Is(err, ErrNoHandler) {
		t.Error(err)
	}
	if bad := b.Stats().Direct["undecodable"]; bad != 1 {
		t.Errorf("%d events are counted as undecodable, want 1", bad)
	}
}
