package forward

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal/internal/leaks"
)

// soon is how long a test waits for an operation that takes milliseconds.
const soon = 30 * time.Second

// A line is a Forwarder with one connection. near is the end that connected, far is
// the end at the target.
type line struct {
	*Forwarder
	t      *testing.T
	target *net.TCPListener
}

func newLine(t *testing.T) *line {
	t.Helper()
	target, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f, err := New(target.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		f.Close()
		target.Close()
	})
	return &line{f, t, target.(*net.TCPListener)}
}

// connect opens another connection. Reads and writes at both ends fail after soon.
func (l *line) connect() (near, far *net.TCPConn) {
	l.t.Helper()
	c, err := net.Dial("tcp", l.Addr())
	if err != nil {
		l.t.Fatal(err)
	}
	l.target.SetDeadline(time.Now().Add(soon))
	far, err = l.target.AcceptTCP()
	if err != nil {
		l.t.Fatal(err)
	}
	near = c.(*net.TCPConn)
	for _, c := range []*net.TCPConn{near, far} {
		c.SetDeadline(time.Now().Add(soon))
		l.t.Cleanup(func() { c.Close() })
	}
	return near, far
}

// data returns n bytes in which every part differs from the others.
func data(n int) []byte {
	b := make([]byte, n)
	x := uint32(1)
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
}

func send(t *testing.T, c net.Conn, b []byte) {
	t.Helper()
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
}

func want(t *testing.T, c net.Conn, b []byte) {
	t.Helper()
	got := make([]byte, len(b))
	if n, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, b) {
		t.Fatalf("%d bytes of %d, %v", n, len(b), err)
	}
}

// nothing fails the test if c delivers bytes within a short time.
func nothing(t *testing.T, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("read %d bytes and %v, want silence", n, err)
	}
	c.SetReadDeadline(time.Now().Add(soon))
}

// A forwarder carries bytes both ways, and the end of one direction.
func TestBothWaysAndHalfClose(t *testing.T) {
	l := newLine(t)
	near, far := l.connect()
	up, down := data(1<<20), data(300_000)
	var wg sync.WaitGroup
	wg.Go(func() { near.Write(up); near.CloseWrite() })
	wg.Go(func() {
		got, err := io.ReadAll(far)
		if err != nil || !bytes.Equal(got, up) {
			t.Errorf("up: %d bytes, %v", len(got), err)
		}
		far.Write(down) // after the end of the other direction
		far.CloseWrite()
	})
	got, err := io.ReadAll(near)
	if err != nil || !bytes.Equal(got, down) {
		t.Errorf("down: %d bytes, %v", len(got), err)
	}
	wg.Wait()
	if s := l.Stats(); s.Up.Forwarded != 1<<20 || s.Down.Forwarded != 300_000 || s.Up.Dropped+s.Down.Dropped != 0 || s.Accepted != 1 {
		t.Errorf("%+v", s)
	}
	l.until("both ended, so it is gone", func(s Stats) bool { return s.Open == 0 })
}

// until waits until the counters meet the condition ok.
func (l *line) until(what string, ok func(Stats) bool) {
	l.t.Helper()
	for end := time.Now().Add(soon); !ok(l.Stats()); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			l.t.Fatalf("%s: %+v", what, l.Stats())
		}
	}
}

// A pause delays bytes and loses none.
func TestPauseHoldsBackAndLosesNothing(t *testing.T) {
	l := newLine(t)
	near, far := l.connect()
	l.Up.Pause()
	send(t, near, []byte("one"))
	nothing(t, far)
	send(t, far, []byte("answer")) // the other way is open
	want(t, near, []byte("answer"))
	l.Up.Resume()
	want(t, far, []byte("one"))

	// During a long pause the sender blocks, and the end of the stream is held back too.
	l.Up.Pause()
	big := data(64 << 20)
	near.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
	sent, err := near.Write(big)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%d bytes were accepted during a pause, %v", sent, err)
	}
	near.CloseWrite()
	nothing(t, far)
	l.Up.Resume()
	if got, err := io.ReadAll(far); err != nil || !bytes.Equal(got, big[:sent]) {
		t.Errorf("%d bytes of %d, %v", len(got), sent, err)
	}
}

// With Drop, bytes vanish and the connection stays open.
func TestDropIsABlackHole(t *testing.T) {
	l := newLine(t)
	near, far := l.connect()
	other, otherFar := l.connect()
	l.Up.Drop(true)
	send(t, near, make([]byte, 1000))
	l.until("it is swallowed", func(s Stats) bool { return s.Up.Dropped == 1000 })
	send(t, far, []byte("answer"))
	want(t, near, []byte("answer"))
	l.Up.Drop(false)
	send(t, near, []byte("no path delivers what follows a hole"))
	near.CloseWrite()
	nothing(t, far)
	send(t, other, []byte("this one lost nothing"))
	want(t, otherFar, []byte("this one lost nothing"))
	l.Cut(Reset)
	if _, err := far.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Error(err)
	}
}

// A connection is cut after the given number of bytes.
func TestCutAtAByte(t *testing.T) {
	all := data(200_000)
	for _, n := range []int{0, 1, 100, chunkSize - 1, chunkSize, chunkSize + 1, 150_000} {
		for _, how := range []End{Close, Reset} {
			l := newLine(t)
			near, far := l.connect()
			send(t, near, []byte("before"))
			want(t, far, []byte("before"))
			l.Up.CutAt(int64(n), how)
			go near.Write(all) // fails when the cut reaches it
			got, err := io.ReadAll(far)
			if how == Close && (err != nil || !bytes.Equal(got, all[:n])) {
				t.Errorf("cut at %d: %d bytes, %v", n, len(got), err)
			}
			if how == Reset && (!errors.Is(err, syscall.ECONNRESET) || len(got) > n || !bytes.HasPrefix(all, got)) {
				t.Errorf("reset at %d: %d bytes, %v", n, len(got), err)
			}
			if got := l.Stats().Up.Forwarded; got != int64(6+n) {
				t.Errorf("cut at %d: %d bytes were forwarded", n, got)
			}
			near, far = l.connect() // CutAt applies once
			send(t, near, all)
			want(t, far, all)
			l.Down.CutAt(3, Close)
			l.Down.CutAt(-1, Close)
			send(t, far, all)
			want(t, near, all)
		}
	}
}

// Bytes arrive after the delay.
func TestDelay(t *testing.T) {
	const d = 60 * time.Millisecond
	l := newLine(t)
	near, far := l.connect()
	l.Up.Delay(d)
	l.Down.Delay(d)
	began := time.Now()
	for i := range byte(10) { // in order; the delays of the bytes overlap
		send(t, near, []byte{i})
	}
	want(t, far, []byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9})
	send(t, far, []byte("answer"))
	want(t, near, []byte("answer"))
	if took := time.Since(began); took < 2*d || took > 8*d+time.Second {
		t.Errorf("there and back took %v with %v each way", took, d)
	}
	l.Up.Delay(time.Hour)
	send(t, near, []byte("late"))
	nothing(t, far)
	l.Up.Delay(0) // applies to buffered bytes too
	want(t, far, []byte("late"))
}

// Bytes pass at no more than the limited rate.
func TestLimit(t *testing.T) {
	l := newLine(t)
	near, far := l.connect()
	l.Up.Limit(100_000)
	began := time.Now()
	send(t, near, data(30_000))
	want(t, far, data(30_000))
	if took := time.Since(began); took < 250*time.Millisecond {
		t.Errorf("30 kB at 100 kB/s took %v", took)
	}
	l.Up.Limit(1)
	send(t, near, data(1 << 20)[:100_000])
	l.Up.Limit(0) // applies to waiting bytes too
	want(t, far, data(1 << 20)[:100_000])
}

// A cut ends the connections, and Refuse ends new ones.
func TestCutAndRefuse(t *testing.T) {
	l := newLine(t)
	for _, how := range []End{Close, Reset} {
		near, far := l.connect()
		l.Up.Pause() // a pause does not delay a cut
		send(t, near, []byte("lost"))
		l.Refuse(true)
		l.Cut(how)
		for _, c := range []net.Conn{near, far} {
			_, err := c.Read(make([]byte, 1))
			if how == Close && !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) || how == Reset && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("how %d: %v", how, err)
			}
		}
		l.wantReset()
		l.Refuse(false)
		l.Up.Resume()
		near, far = l.connect()
		send(t, near, []byte("healed"))
		want(t, far, []byte("healed"))
	}
}

// A connection to a target that does not listen ends.
func TestTargetThatDoesNotListen(t *testing.T) {
	l := newLine(t)
	l.target.Close()
	l.wantReset()
}

// wantReset connects and expects a reset, during the dial or after it.
func (l *line) wantReset() {
	l.t.Helper()
	c, err := net.Dial("tcp", l.Addr())
	if err == nil {
		defer c.Close()
		c.SetReadDeadline(time.Now().Add(soon))
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		l.t.Errorf("connected to a target that does not listen: %v", err)
	}
}

// Close ends all connections and goroutines, no matter what they wait for.
func TestCloseLeavesNothing(t *testing.T) {
	noneLeft := leaks.Watch(t)
	l := newLine(t)
	for _, order := range []func(){
		func() {}, l.Up.Pause, func() { l.Up.Resume(); l.Up.Drop(true) }, func() { l.Up.Drop(false); l.Up.Limit(1) }, func() { l.Up.Limit(0); l.Up.Delay(time.Hour) },
	} {
		near, far := l.connect()
		order()
		go near.Write(data(1 << 20))
		far.CloseWrite()
	}
	l.Close()
	l.Close()
	if s := l.Stats(); s.Open != 0 {
		t.Errorf("%+v", s)
	}
	if c, err := net.Dial("tcp", l.Addr()); err == nil {
		c.Close()
		t.Error("it still listens")
	}
	noneLeft()
}

// Settings may change while bytes are forwarded. This test is for the race detector.
func TestSettingsChangeAtAnyTime(t *testing.T) {
	l := newLine(t)
	all := data(2 << 20)
	stop := make(chan struct{})
	var orders, streams sync.WaitGroup
	for _, f := range []*Flow{l.Up, l.Down} {
		orders.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				f.Pause()
				f.Delay(time.Duration(i%3) * time.Microsecond)
				f.Limit(i % 2 * (1 << 30))
				f.CutAt(1<<40, Reset)
				f.Resume()
				l.Stats()
				time.Sleep(100 * time.Microsecond)
			}
		})
	}
	for range 3 {
		near, far := l.connect()
		for _, ends := range [][2]*net.TCPConn{{near, far}, {far, near}} {
			streams.Go(func() { ends[0].Write(all); ends[0].CloseWrite() })
			streams.Go(func() {
				if got, err := io.ReadAll(ends[1]); err != nil || !bytes.Equal(got, all) {
					t.Errorf("%d bytes of %d, %v", len(got), len(all), err)
				}
			})
		}
	}
	streams.Wait()
	close(stop)
	orders.Wait()
}
