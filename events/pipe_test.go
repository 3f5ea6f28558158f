package events

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/go-smokesignal/smokesignal/internal/bubble"
)

// newView returns a view whose events are delivered through the mux, and where
// its writes go.
func newView(m *dispatcher) (v *pipe, written *[]string) {
	written = new([]string)
	return newPipe(DefaultMaxEventSize, func(b []byte) error {
		*written = append(*written, string(b))
		return nil
	}, func(f func(context.Context, *Event)) func() { return m.on(PipeName, f) }), written
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
	m := newDispatcher(discard)
	v, _ := newView(m)
	for _, s := range []string{"a long one", "", "b", "c"} {
		m.dispatch(t.Context(), decoded(t, PipeName, []byte(s)))
	}
	m.dispatch(t.Context(), decoded(t, PipeName, "text"))
	m.dispatch(t.Context(), decoded(t, PipeName))
	m.dispatch(t.Context(), decoded(t, "other", []byte("x")))
	read(t, v, 0, "")
	read(t, v, 4, "a lo")
	read(t, v, 100, "ng one")
	read(t, v, 100, "b")
	read(t, v, 100, "c")
	if n := m.undecodable(); n != 2 {
		t.Errorf("%d undecodable events, want 2", n)
	}
	v.finish()
	if _, err := v.Read(make([]byte, 1)); err != io.EOF {
		t.Error(err)
	}
}

func TestWriteIsOneEvent(t *testing.T) {
	v, written := newView(newDispatcher(discard))
	for _, s := range []string{"one", "", "two"} {
		if n, err := io.WriteString(v, s); n != len(s) || err != nil {
			t.Error(n, err)
		}
	}
	if got := strings.Join(*written, "|"); got != "one|two" {
		t.Errorf("emitted %q", got)
	}
	v.emit = func([]byte) error { return ErrStalled }
	if n, err := v.Write([]byte("x")); n != 0 || err != ErrStalled {
		t.Error(n, err)
	}
}

// A reader that does not read holds the sender back, within a bound, and only
// until the view is closed.
func TestUnreadViewHoldsBackUntilClosed(t *testing.T) {
	for _, size := range []int{1, 1000, 100 << 10} {
		bubble.Test(t, func(t *testing.T) {
			m := newDispatcher(discard)
			v, _ := newView(m)
			sent := 0
			go func() {
				for range 1000 {
					m.dispatch(context.Background(), decoded(t, PipeName, make([]byte, size)))
					sent++
				}
			}()
			synctest.Wait()
			want := max(min(pipeEvents, pipeBytes/size), 1)
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
		m := newDispatcher(discard)
		v, _ := newView(m)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			for range pipeEvents + 1 {
				m.dispatch(ctx, decoded(t, PipeName, []byte("x")))
			}
			close(done)
		}()
		synctest.Wait()
		cancel()
		<-done
		v.finish()
		if b, err := io.ReadAll(v); err != nil || len(b) != pipeEvents {
			t.Error(len(b), err)
		}
	})
}

func TestCloseEndsReadAndWrite(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		m := newDispatcher(discard)
		off := make(chan struct{})
		v := newPipe(DefaultMaxEventSize,
			func([]byte) error { <-off; return context.Canceled },
			func(f func(context.Context, *Event)) func() {
				off1 := m.on(PipeName, f)
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
		if !(a == io.EOF && errors.Is(b, ErrClosed) || b == io.EOF && errors.Is(a, ErrClosed)) {
			t.Error(a, b)
		}
		if _, err := v.Write([]byte("x")); !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
		if _, err := v.Read(make([]byte, 1)); err != io.EOF {
			t.Error(err)
		}
		m.dispatch(t.Context(), decoded(t, PipeName, []byte("x")))
		if n := m.unhandled(); n != 1 {
			t.Error("a closed view still listens")
		}
	})
}
