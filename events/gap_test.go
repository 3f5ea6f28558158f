package events

import (
	"context"
	"slices"
	"testing"

	"github.com/go-smokesignal/smokesignal/events/internal/engine"
	"github.com/go-smokesignal/smokesignal/internal/event"
)

// What nobody has any more is reported in its place, to handlers, and
// counted; a handler that panics does not keep it from the others.
func TestGapIsReportedInItsPlace(t *testing.T) {
	t.Parallel()
	s := newStation(t, overTCP, Config{})
	r := newRawPeer(t, s)
	s.OnGap(func(context.Context, Gap) { panic("of the handler") })
	gaps := make(chan Gap, 10)
	s.OnGap(func(_ context.Context, g Gap) { gaps <- g })
	var story []string // of one sender, so its handlers run one after the other
	done := make(chan struct{})
	note := func(text string) {
		if story = append(story, text); len(story) == 4 {
			close(done)
		}
	}
	s.On("x", func(_ context.Context, ev *event.Event) {
		b, _ := ev.Bytes(0)
		note(string(b))
	})
	s.OnGap(func(_ context.Context, g Gap) { note(g.String()) })
	r.batch(rawSession(1), 1, "1")
	r.batch(rawSession(1), 5, "5")
	r.batch(rawSession(2), 1, "next 1") // which ends the waiting for the gap
	g := <-gaps
	if g.From != r.host.ID() || g.Session != rawSession(1).ID || g.First != 2 || g.Last != 4 || g.Len() != 3 || g.Slow {
		t.Errorf("%+v", g)
	}
	<-done
	if want := []string{"1", g.String(), "5", "next 1"}; !slices.Equal(story, want) {
		t.Errorf("%q, want %q", story, want)
	}
	if st := s.Stats(); st["lost"] != 3 || st["delivered"] != 3 || st["panics"] != 1 {
		t.Errorf("%+v", st)
	}
}

// A gap is not reported to a handler that was removed, and the events around it are handled.
func TestRemovedGapHandlerIsNotCalled(t *testing.T) {
	t.Parallel()
	s := newStation(t, overTCP, Config{})
	r := newRawPeer(t, s)
	gaps := make(chan Gap, 10)
	off := s.OnGap(func(_ context.Context, g Gap) { gaps <- g })
	off()
	r.batch(rawSession(2), 1, "1")
	r.batch(rawSession(2), 3, "3")
	r.batch(rawSession(3), 1, "last")
	s.wait(r.asStation(), "1", "3", "last")
	if st := s.Stats(); st["lost"] != 1 {
		t.Errorf("%+v", st)
	}
	if len(gaps) != 0 {
		t.Error("a handler that was removed is called")
	}
}

// A neighbor's false mark about a sender does not stop the delivery of that sender's
// events.
func TestFalseMarkDoesNotSilenceASender(t *testing.T) {
	t.Parallel()
	s := newStation(t, overTCP, Config{})
	r := newRawPeer(t, s)
	r.batch(rawSession(1), 1, "1")
	s.wait(r.asStation(), "1")
	liar := newStation(t, overTCP, Config{})
	link(t, s, liar)
	s.link(liar.id(), appendMarks(nil, []engine.Mark{markOf(r.host.ID(), rawSession(1), 1<<60)}))
	r.batch(rawSession(1), 2, "2")
	r.batch(rawSession(1), 3, "3")
	s.wait(r.asStation(), "1", "2", "3")
}
