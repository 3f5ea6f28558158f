package deadline

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-smokesignal/smokesignal/internal/bubble"
)

// stream is a net.Pipe that counts how often its deadline is set.
type stream struct {
	net.Conn
	deadlines atomic.Int32
	broken    error
}

func (s *stream) SetWriteDeadline(t time.Time) error {
	s.deadlines.Add(1)
	return s.Conn.SetWriteDeadline(t)
}

func (s *stream) Write(b []byte) (int, error) {
	if s.broken != nil {
		return 0, s.broken
	}
	return s.Conn.Write(b)
}

func newPipe(t *testing.T) (*stream, net.Conn) {
	near, far := net.Pipe()
	t.Cleanup(func() {
		near.Close()
		far.Close()
	})
	return &stream{Conn: near}, far
}

const timeout = time.Second

// Writes within half a second share one deadline of the stream.
func TestOneDeadlineServesManyWrites(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s, far := newPipe(t)
		go func() {
			for b := make([]byte, 100); ; {
				if _, err := far.Read(b); err != nil {
					return
				}
			}
		}()
		w := NewWriter(s)
		for range 20 {
			if n, err := w.Write([]byte("x"), timeout); n != 1 || err != nil {
				t.Fatal(n, err)
			}
			time.Sleep(timeout / 10)
		}
		if n := s.deadlines.Load(); n != 4 { // one for each half second, and a bit
			t.Errorf("%d deadlines were set for 20 writes in two seconds", n)
		}
		far.Close()
	})
}

// A write to a slow reader returns ErrTimeout and the number of written bytes.
func TestWriteReturnsWhenTheReaderIsSlow(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s, far := newPipe(t)
		go far.Read(make([]byte, 2))
		w := NewWriter(s)
		start := time.Now()
		n, err := w.Write([]byte("four"), timeout)
		if n != 2 || !errors.Is(err, ErrTimeout) || time.Since(start) != timeout {
			t.Errorf("wrote %d bytes in %v: %v", n, time.Since(start), err)
		}
		// The stream is intact.
		go far.Read(make([]byte, 2))
		if n, err := w.Write([]byte("ur"), timeout); n != 2 || err != nil {
			t.Error(n, err)
		}
	})
}

// One Write gives the stream at most one chunk.
func TestWriteGivesTheStreamAChunkAtMost(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s, far := newPipe(t)
		go far.Read(make([]byte, 2*ChunkSize))
		if n, err := NewWriter(s).Write(make([]byte, ChunkSize+1), timeout); n != ChunkSize || err != nil {
			t.Error(n, err)
		}
	})
}

// Stop ends a blocked Write.
func TestStopEndsABlockedWrite(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s, _ := newPipe(t)
		w := NewWriter(s)
		go func() {
			time.Sleep(timeout / 4)
			w.Stop()
		}()
		start := time.Now()
		if n, err := w.Write([]byte("x"), timeout); n != 0 || !errors.Is(err, ErrStopped) || time.Since(start) != timeout/4 {
			t.Errorf("wrote %d bytes in %v: %v", n, time.Since(start), err)
		}
		if _, err := w.Write([]byte("x"), timeout); !errors.Is(err, ErrStopped) {
			t.Errorf("the next Write returned %v", err)
		}
		synctest.Wait()
	})
}

// A timeout of the connection before the deadline is returned as it is, not as ErrTimeout.
func TestATimeoutBeforeTheDeadlineMeansThatTheStreamBroke(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s, _ := newPipe(t)
		s.broken = fmt.Errorf("the connection: %w", os.ErrDeadlineExceeded)
		if _, err := NewWriter(s).Write([]byte("x"), timeout); err != s.broken {
			t.Errorf("got %v", err)
		}
	})
}

// IsTimeout recognizes timeouts and nothing else.
func TestIsTimeout(t *testing.T) {
	for _, test := range []struct {
		err  error
		want bool
	}{
		{nil, false},
		{errors.New("reset"), false},
		{os.ErrDeadlineExceeded, true},
		{fmt.Errorf("read: %w", os.ErrDeadlineExceeded), true},
		{&net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}, true},
		{&net.DNSError{IsTimeout: true}, true},
		{net.ErrClosed, false},
	} {
		if got := IsTimeout(test.err); got != test.want {
			t.Errorf("IsTimeout(%v) is %v", test.err, got)
		}
	}
}
