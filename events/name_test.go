package events

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/bubble"
)

// loop is an emitter whose events come out of it again.
type loop struct {
	t testing.TB
	*mux
	done chan struct{}
}

func newLoop(t testing.TB) loop { return loop{t, newMux(discard), make(chan struct{})} }

func (l loop) On(name string, f func(context.Context, *Event)) func() { return l.on(name, f) }
func (l loop) Done() <-chan struct{}                                  { return l.done }
func (l loop) Emit(ctx context.Context, name string, args ...any) error {
	l.dispatch(ctx, decoded(l.t, name, args...))
	return nil
}

func TestNamesOfManyTypes(t *testing.T) {
	l, ctx := newLoop(t), t.Context()
	var got []string
	check := func(want string) {
		t.Helper()
		if s := strings.Join(got, " "); s != want {
			t.Errorf("got %s, want %s", s, want)
		}
		got = nil
	}
	note := func(v any) { got = append(got, fmt.Sprintf("%T:%v", v, v)) }

	Name[string]("s").On(l, func(_ context.Context, from peer.ID, v string) { note(v); note(string(from)) })
	Name[string]("s").Emit(ctx, l, "text")
	check("string:text string:sender")

	Name[point]("p").On(l, func(_ context.Context, _ peer.ID, v point) { note(v) })
	Name[*point]("p").On(l, func(_ context.Context, _ peer.ID, v *point) { note(v.X) })
	Name[point]("p").Emit(ctx, l, point{X: 1, Y: 2})
	check("events.point:{1 2 } int:1")

	Name[[]byte]("b").On(l, func(_ context.Context, _ peer.ID, v []byte) { note(v) })
	Name[[]byte]("b").Emit(ctx, l, []byte{1, 2})
	check("[]uint8:[1 2]")

	Name[any]("x").On(l, func(_ context.Context, _ peer.ID, v any) { note(v) })
	Name[any]("x").Emit(ctx, l, 1)
	Name[any]("x").Emit(ctx, l, nil)
	check("float64:1 <nil>:<nil>")

	// An event of nothing has no arguments, and may have any.
	Name[struct{}]("n").On(l, func(_ context.Context, _ peer.ID, v struct{}) { note(v) })
	l.On("n", func(_ context.Context, ev *Event) { note(ev.Len()) })
	Name[struct{}]("n").Emit(ctx, l, struct{}{})
	l.Emit(ctx, "n", 1, 2)
	check("struct {}:{} int:0 struct {}:{} int:2")
}

func TestUndecodablePayloadsAreCountedAndLogged(t *testing.T) {
	var log bytes.Buffer
	l, ctx := newLoop(t), t.Context()
	l.mux = newMux(logTo(&log))
	called := 0
	n := Name[int]("number")
	off := n.On(l, func(context.Context, peer.ID, int) { called++ })
	Name[string]("number").Emit(ctx, l, "no")
	l.Emit(ctx, "number")
	l.Emit(ctx, "number", []byte("7"))
	n.Emit(ctx, l, 7)
	if bad := l.nUndecodable.Load(); called != 1 || bad != 3 {
		t.Errorf("%d calls, %d undecodable", called, bad)
	}
	for _, want := range []string{"level=DEBUG", "number", "argument 1", "from="} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log lacks %q: %s", want, &log)
		}
	}
	off()
	n.Emit(ctx, l, 7)
	if called != 1 {
		t.Error("called after off")
	}
}

// The loop gets every event in order, a bad one as an error in its place, and
// ends with its context.
func TestAll(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		l := newLoop(t)
		n := Name[int]("number")
		ctx, cancel := context.WithCancel(t.Context())
		var got []string
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			for msg, err := range n.All(ctx, l) {
				got = append(got, fmt.Sprint(msg.Value, msg.From, errors.Is(err, ErrUndecodable)))
			}
		}()
		synctest.Wait()
		n.Emit(ctx, l, 1)
		Name[string]("number").Emit(ctx, l, "two")
		n.Emit(ctx, l, 3)
		synctest.Wait()
		cancel()
		<-ended
		if s, want := fmt.Sprint(got), fmt.Sprint([]string{
			fmt.Sprint(1, peer.ID("sender"), false), fmt.Sprint(0, peer.ID("sender"), true), fmt.Sprint(3, peer.ID("sender"), false)}); s != want {
			t.Errorf("got %v, want %v", s, want)
		}
		n.Emit(ctx, l, 4) // nobody listens: it does not block
		if l.nUnhandled.Load() != 1 {
			t.Error("the loop still listens")
		}
	})
}

// Who loops slowly holds the sender back, and nobody after leaving the loop.
func TestAllHoldsBackItsSender(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		l := newLoop(t)
		n := Name[int]("number")
		sent := 0
		go func() {
			for i := range 10 {
				n.Emit(context.Background(), l, i)
				sent++
			}
		}()
		synctest.Wait() // all ten with nobody listening
		sent = 0
		step, ended := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(ended)
			for range n.All(context.Background(), l) {
				if _, more := <-step; !more {
					return
				}
			}
		}()
		synctest.Wait()
		go func() {
			for i := range 10 {
				n.Emit(context.Background(), l, i)
				sent++
			}
		}()
		synctest.Wait()
		if sent != 1 {
			t.Errorf("%d events handed over while the body of the first runs", sent)
		}
		step <- struct{}{}
		synctest.Wait()
		if sent != 2 {
			t.Errorf("%d events handed over while the body of the second runs", sent)
		}
		close(step)
		<-ended
		synctest.Wait()
		if sent != 10 {
			t.Errorf("%d events after the loop was left, want 10", sent)
		}
	})
}

// What comes between the call of All and the loop waits for the loop; if there
// is none it waits for the end of ctx.
func TestAllSubscribesAtOnce(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		l := newLoop(t)
		n := Name[int]("number")
		ctx, cancel := context.WithCancel(t.Context())
		loop := n.All(ctx, l)
		go n.Emit(context.Background(), l, 1)
		synctest.Wait()
		for msg := range loop {
			if msg.Value != 1 {
				t.Error(msg.Value)
			}
			break
		}
		for range loop {
			t.Error("a second loop")
		}

		n.All(ctx, l) // never looped over
		sent := false
		go func() {
			n.Emit(context.Background(), l, 2)
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

func TestAllEndsWhenItsSourceCloses(t *testing.T) {
	l := newLoop(t)
	close(l.done)
	for range Name[int]("number").All(t.Context(), l) {
		t.Error("an event out of nowhere")
	}
}
