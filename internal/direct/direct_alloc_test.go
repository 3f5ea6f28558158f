package direct

import (
	"bytes"
	"context"
	"runtime"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/event"
)

// An event whose handlers all borrow it is reused, and an event that a handler may have
// stored is not.
func TestOnlyBorrowedEventsAreReused(t *testing.T) {
	a, b := pair(t, tcp, Config{})
	var borrowed, kept []*event.Event
	var values [][]byte
	var anys []any
	b.OnBorrowed("", "x", borrower(func(ev *event.Event) { borrowed = append(borrowed, ev) }))
	Name[[]byte]("x").On(b, func(_ context.Context, _ peer.ID, p []byte) { values = append(values, p) })
	Name[any]("x").On(b, func(_ context.Context, _ peer.ID, p any) { anys = append(anys, p) })
	off := b.On("keep", func(_ context.Context, ev *event.Event) { kept = append(kept, ev) })
	b.OnBorrowed(a.id(), "keep", borrower(func(ev *event.Event) {
		if p, _ := ev.Bytes(0); len(p) == 0 || p[0] != byte(len(kept)) {
			t.Error("a borrowed event beside a kept one:", p)
		}
	}))
	content := func(i int) []byte { return bytes.Repeat([]byte{byte(i)}, i*i%3000+1) }
	for i := 1; i <= 100; i++ {
		if err := a.EmitBytes(t.Context(), b.id(), "x", content(i)); err != nil {
			t.Fatal(err)
		}
		emit(t, a, b.id(), "keep", content(i))
	}
	end := make(chan struct{})
	b.On("end", func(context.Context, *event.Event) { close(end) })
	emit(t, a, b.id(), "end")
	<-end
	off()
	if len(borrowed) != 100 || len(values) != 100 || len(anys) != 100 || len(kept) != 100 {
		t.Fatal(len(borrowed), len(values), len(anys), len(kept))
	}
	for i := range 100 {
		want := content(i + 1)
		p, _ := kept[i].Bytes(0)
		if !bytes.Equal(values[i], want) || !bytes.Equal(anys[i].([]byte), want) || !bytes.Equal(p, want) || kept[i].Name != "keep" || kept[i].From != a.id() {
			t.Fatalf("event %d has changed", i+1)
		}
		if borrowed[i] != borrowed[0] {
			t.Error("a borrowed event was not used again")
		}
	}
}

func borrower(f func(*event.Event)) func(context.Context, *event.Event) {
	return func(_ context.Context, ev *event.Event) { f(ev) }
}

// An event costs both ends together, with the transport, a bounded number of allocations.
func TestAllocationsOfAnEvent(t *testing.T) {
	const events = 20_000
	a, b := pair(t, tcp, Config{})
	n, done := 0, make(chan struct{})
	count := func() {
		if n++; n == events {
			n = 0
			done <- struct{}{}
		}
	}
	b.On("event", func(context.Context, *event.Event) { count() })
	b.OnBorrowed("", "borrowed", borrower(func(*event.Event) { count() }))
	bytes := Name[[]byte]("bytes")
	bytes.On(b, func(context.Context, peer.ID, []byte) { count() })
	to, content := a.to(b.id()), make([]byte, 64)
	for _, c := range []struct {
		name string
		emit func() error
		most float64
	}{
		{"an event", func() error { return a.Emit(t.Context(), b.id(), "event", content) }, 2},
		{"bytes with a type", func() error { return bytes.Emit(t.Context(), to, content) }, 0.5},
		{"a borrowed event", func() error { return a.EmitBytes(t.Context(), b.id(), "borrowed", content) }, 0.5},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range events {
			if err := c.emit(); err != nil {
				t.Fatal(err)
			}
		}
		<-done
		runtime.ReadMemStats(&after)
		if each := float64(after.Mallocs-before.Mallocs) / events; each > c.most {
			t.Errorf("%s costs %.2f allocations, want at most %v", c.name, each, c.most)
		} else {
			t.Logf("%s costs %.2f allocations", c.name, each)
		}
	}
}
