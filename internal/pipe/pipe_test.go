package pipe

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/go-smokesignal/smokesignal/internal/bubble"
	"github.com/go-smokesignal/smokesignal/internal/dispatch"
	"github.com/go-smokesignal/smokesignal/internal/errs"
	"github.com/go-smokesignal/smokesignal/internal/event"
	"github.com/go-smokesignal/smokesignal/internal/eventtest"
)

// newView returns a view whose events are delivered through the mux, and where
// its writes go.
func newView(m *dispatch.Dispatcher) (v *pipe, written *[]string) {
	written = new([]string)
	return New(event.DefaultMaxSize, func(b []byte) error {
		*written = append(*written, string(b))
		return nil
	}, func(f func(context.Context, *event.Event)) func() { return m.On(EventName, f) }), written
}

func read(t *testing.T, r io.Reader, n int, want string) {
	t.Helper()
	b := make([]byte, n)
	n, err := r.Read(b)
	if err != nil || string(b[:n]) != want {
		t.Errorf("read %q, %v, want %q", b[:n], err, want)
	}
}

func TestReadReturnsOneEventAtATime(t *testing.T) {
	m := dispatch.New(slog.New(slog.DiscardHandler))
	v, _ := newView(m)
	for _, s := range []string{"a long one", "", "b", "c"} {
		m.Dispatch(t.Context(), eventtest.Decoded(t, EventName, []byte(s)))
	}
	m.Dispatch(t.Context(), eventtest.Decoded(t, EventName, "text"))
	m.Dispatch(t.Context(), eventtest.Decoded(t, EventName))
	m.Dispatch(t.Context(), eventtest.Decoded(t, "other", []byte("x")))
	read(t, v, 0, "")
	read(t, v, 4, "a lo")
	read(t, v, 100, "ng one")
	read(t, v, 100, "b")
	read(t, v, 100, "c")
	if n := m.Undecodable(); n != 2 {
		t.Errorf("%d undecodable events, want 2", n)
	}
	v.Finish()
	if _, err := v.Read(make([]byte, 1)); err != io.EOF {
		t.Error(err)
	}
}

func TestWriteIsOneEvent(t *testing.T) {
	v, written := newView(dispatch.New(slog.New(slog.DiscardHandler)))
	for _, s := range []string{"one", "", "two"} {
		if n, err := io.WriteString(v, s); n != len(s) || err != nil {
			t.Error(n, err)
		}
	}
	if got := strings.Join(*written, "|"); got != "one|two" {
		t.Errorf("emitted %q", got)
	}
	refused := errors.New("refused")
	v.emit = func([]byte) error { return refused }
	if n, err := v.Write([]byte("x")); n != 0 || err != refused {
		t.Error(n, err)
	}
}

// A reader that does not read holds the sender back, within a bound, and only
// until the view is closed.
func TestUnreadViewHoldsBackUntilClosed(t *testing.T) {
	for _, size := range []int{1, 1000, 100 << 10} {
		bubble.Test(t, func(t *testing.T) {
			m := dispatch.New(slog.New(slog.DiscardHandler))
			v, _ := newView(m)
			sent := 0
			go func() {
				for range 1000 {
					m.Dispatch(context.Background(), eventtest.Decoded(t, EventName, make([]byte, size)))
					sent++
				}
			}()
			synctest.Wait()
			want := max(min(MaxEvents, pipeBytes/size), 1)
			if sent != want {
				t.Errorf("%d events of %d bytes held, want %d", sent, size, want)
			}
			io.ReadFull(v, make([]byte, size))
			synctest.Wait()
			if sent != want+1 {
				t.Errorf("%d events of %d bytes after one was read, want %d", sent, size, want+1)
			}
			v.Close()
			synctest.Wait()
			if sent != 1000 {
				t.Errorf("%d events after Close, want all", sent)
			}
		})
	}
}

// The handler's context ends a delivery that waits; the node is closing then.
func TestDeliveryEndsWithItsContext(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		m := dispatch.New(slog.New(slog.DiscardHandler))
		v, _ := newView(m)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			for range MaxEvents + 1 {
				m.Dispatch(ctx, eventtest.Decoded(t, EventName, []byte("x")))
			}
			close(done)
		}()
		synctest.Wait()
		cancel()
		<-done
		v.Finish()
		if b, err := io.ReadAll(v); err != nil || len(b) != MaxEvents {
			t.Error(len(b), err)
		}
	})
}

func TestCloseEndsReadAndWrite(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		m := dispatch.New(slog.New(slog.DiscardHandler))
		off := make(chan struct{})
		v := New(event.DefaultMaxSize,
			func([]byte) error { <-off; return context.Canceled },
			func(f func(context.Context, *event.Event)) func() {
				off1 := m.On(EventName, f)
				return func() { off1(); close(off) }
			})
		got := make(chan error, 2)
		go func() { _, err := v.Read(make([]byte, 1)); got <- err }()
		synctest.Wait()
		go func() { _, err := v.Write([]byte("x")); got <- err }()
		synctest.Wait()
		if err := v.Close(); err != nil {
			t.Error(err)
		}
		a, b := <-got, <-got
		if !(a == io.EOF && errors.Is(b, errs.ErrClosed) || b == io.EOF && errors.Is(a, errs.ErrClosed)) {
			t.Error(a, b)
		}
		if _, err := v.Write([]byte("x")); !errors.Is(err, errs.ErrClosed) {
			t.Error(err)
		}
		if _, err := v.Read(make([]byte, 1)); err != io.EOF {
			t.Error(err)
		}
		m.Dispatch(t.Context(), eventtest.Decoded(t, EventName, []byte("x")))
		if n := m.Unhandled(); n != 1 {
			t.Error("a closed view still listens")
		}
	})
}
