package gate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/internal/bubble"
)

// fakePeer is a host that has one peer, which reads as many bytes as the test allows.
type fakePeer struct {
	corehost.Host

	mu      sync.Mutex
	room    int           // bytes that it still reads
	pace    time.Duration // of a write
	streams []*fakeStream // that were opened
	change  chan struct{} // closed when something has changed
	frozen  chan struct{} // nil, or resets block until it is closed
}

const fakeID = peer.ID("the peer")

func (p *fakePeer) ID() peer.ID              { return "ourselves" }
func (p *fakePeer) Network() network.Network { return fakeNetwork{} }
func (p *fakePeer) EventBus() event.Bus      { return eventbus.NewBus() }

type fakeNetwork struct{ network.Network }

func (fakeNetwork) Connectedness(peer.ID) network.Connectedness { return network.Connected }
func (fakeNetwork) ConnsToPeer(peer.ID) []network.Conn          { return []network.Conn{fakeConn{}} }

type fakeConn struct{ network.Conn }

func (fakeConn) RemoteMultiaddr() ma.Multiaddr { return ma.StringCast("/ip4/127.0.0.1/tcp/8495") }

func (p *fakePeer) NewStream(context.Context, peer.ID, ...protocol.ID) (network.Stream, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := &fakeStream{peer: p}
	p.streams = append(p.streams, s)
	return s, nil
}

// allow lets the peer read n bytes more.
func (p *fakePeer) allow(n int) {
	p.mu.Lock()
	p.room += n
	p.changed()
	p.mu.Unlock()
	synctest.Wait()
}

// allowOnly lets it read n bytes and then nothing.
func (p *fakePeer) allowOnly(n int) {
	p.mu.Lock()
	p.room = n
	p.mu.Unlock()
}

// breaks breaks the stream that was opened last, and returns how many were.
func (p *fakePeer) breaks() int {
	p.mu.Lock()
	n := len(p.streams)
	last := p.streams[n-1]
	p.mu.Unlock()
	last.Reset()
	return n
}

func (p *fakePeer) changed() {
	close(p.change)
	p.change = make(chan struct{})
}

// got returns the bytes that a stream accepted, and the number of writes.
func (p *fakePeer) got(stream int) (b []byte, writes int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.streams[stream]
	return slices.Clone(s.got), s.writes
}

type fakeStream struct {
	network.Stream
	peer *fakePeer // its mu guards these

	got      []byte
	writes   int
	deadline time.Time
	broken   bool
}

func (s *fakeStream) Conn() network.Conn { return fakeConn{} }

// await waits for a change or the deadline, with the lock released.
func (s *fakeStream) await(deadline time.Time) {
	change := s.peer.change
	s.peer.mu.Unlock()
	defer s.peer.mu.Lock()
	var timeout <-chan time.Time
	if !deadline.IsZero() {
		timeout = time.After(time.Until(deadline))
	}
	select {
	case <-change:
	case <-timeout:
	}
}

func (s *fakeStream) Write(b []byte) (n int, err error) {
	s.peer.mu.Lock()
	defer s.peer.mu.Unlock()
	s.writes++
	pace := s.peer.pace
	s.peer.mu.Unlock()
	time.Sleep(pace)
	s.peer.mu.Lock()
	for {
		if s.broken {
			return n, network.ErrReset
		}
		m := min(len(b)-n, s.peer.room)
		s.got = append(s.got, b[n:n+m]...)
		s.peer.room -= m
		n += m
		if n == len(b) {
			return n, nil
		}
		if !s.deadline.IsZero() && !time.Now().Before(s.deadline) {
			return n, os.ErrDeadlineExceeded
		}
		s.await(s.deadline)
	}
}

func (s *fakeStream) Read([]byte) (int, error) {
	s.peer.mu.Lock()
	defer s.peer.mu.Unlock()
	for !s.broken {
		s.await(time.Time{})
	}
	return 0, network.ErrReset
}

func (s *fakeStream) SetWriteDeadline(t time.Time) error {
	s.peer.mu.Lock()
	defer s.peer.mu.Unlock()
	s.deadline = t
	s.peer.changed()
	return nil
}

func (s *fakeStream) Reset() error {
	if frozen := s.peer.frozen; frozen != nil {
		<-frozen
	}
	s.peer.mu.Lock()
	defer s.peer.mu.Unlock()
	s.broken = true
	s.peer.changed()
	return nil
}

// withPeer runs a test with a gate that has admitted a peer, and with pubsub's
// stream to it.
func withPeer(t *testing.T, cfg Config, f func(t *testing.T, p *fakePeer, g *Gate, s network.Stream)) {
	bubble.Test(t, func(t *testing.T) {
		p := &fakePeer{change: make(chan struct{})}
		g := New(p, cfg)
		g.admit(fakeID)
		s, err := g.Host().NewStream(t.Context(), fakeID, "/test")
		if err != nil {
			t.Fatal(err)
		}
		var reading sync.WaitGroup
		reading.Go(func() {
			if _, err := s.Read(nil); !errors.Is(err, errEnded) {
				t.Errorf("read %v", err)
			}
		})
		synctest.Wait()
		f(t, p, g, s)
		g.Close()
		reading.Wait()
	})
}

func write(t *testing.T, s network.Stream, rpc []byte) {
	t.Helper()
	if n, err := s.Write(rpc); n != len(rpc) || err != nil {
		t.Fatalf("wrote %d bytes of %d: %v", n, len(rpc), err)
	}
}

// A single message is written when Write returns, so it costs no wait for a
// goroutine; messages that follow at once are written together.
func TestGateGathersWrites(t *testing.T) {
	t.Parallel()
	withPeer(t, Config{}, func(t *testing.T, p *fakePeer, _ *Gate, s network.Stream) {
		p.allow(1 << 20)
		for i := range 3 {
			write(t, s, message("%d", i))
			if _, writes := p.got(0); writes != i+1 {
				t.Fatalf("after the single message %d: %d writes", i, writes)
			}
			time.Sleep(time.Millisecond)
		}
		p.mu.Lock()
		p.pace = time.Millisecond
		p.mu.Unlock()
		want := []string{"0", "1", "2"}
		for i := 3; i < 100; i++ {
			want = append(want, fmt.Sprint(i))
			time.Sleep(time.Microsecond)
			write(t, s, message("%d", i))
		}
		time.Sleep(time.Second)
		got, writes := p.got(0)
		wantHeard(t, got, want...)
		if writes > 6 {
			t.Errorf("%d writes", writes)
		}
	})
}

// A peer that reads nothing costs as much memory as it may, delays pubsub for
// the timeout, and then nothing more; when it reads something again, all that
// waited arrives, and what was announced meanwhile.
func TestGateDropsMessagesForAStalledPeer(t *testing.T) {
	t.Parallel()
	withPeer(t, Config{MaxPending: 100, StallTimeout: 4 * time.Second}, func(t *testing.T, p *fakePeer, g *Gate, s network.Stream) {
		start := time.Now()
		p.allow(3) // not a whole message
		write(t, s, message("0"))
		if d := time.Since(start); d > time.Second {
			t.Errorf("the first write took %v", d)
		}
		write(t, s, message("1")) // there is no room for this
		seen := time.Since(start)
		if seen < 4*time.Second || seen > 4500*time.Millisecond { // progress is seen once in an eighth
			t.Errorf("it was seen to be stalled after %v", seen)
		}
		for i := range 10 {
			write(t, s, message("%d", i))
			write(t, s, announce("a", i%2 == 0))
		}
		if d := time.Since(start); d != seen {
			t.Errorf("a stalled peer made writing take %v more", d-seen)
		}
		time.Sleep(time.Hour)
		if got := g.Stats(); got != (Stats{Dropped: 11, Stalls: 1}) {
			t.Errorf("%+v", got)
		}
		p.allow(1 << 10)
		write(t, s, message("after"))
		synctest.Wait()
		got, _ := p.got(0)
		wantHeard(t, got, "0", "a: false", "after")
		if got := g.Stats(); got != (Stats{Dropped: 11, Stalls: 1}) {
			t.Errorf("%+v", got)
		}
	})
}

// As long as a peer reads something, nothing is dropped, but pubsub is not
// held up longer than it wants to be.
func TestGateDropsMessagesForASlowPeer(t *testing.T) {
	t.Parallel()
	withPeer(t, Config{MaxPending: 10, StallTimeout: time.Second}, func(t *testing.T, p *fakePeer, g *Gate, s network.Stream) {
		slow, stop := context.WithCancel(t.Context())
		var reading sync.WaitGroup
		reading.Go(func() {
			for slow.Err() == nil {
				time.Sleep(500 * time.Millisecond)
				p.mu.Lock()
				p.room++
				p.changed()
				p.mu.Unlock()
			}
		})
		defer reading.Wait()
		defer stop()
		var want []string
		for i := range 20 {
			want = append(want, fmt.Sprint(i))
			write(t, s, message("%d", i))
		}
		if got := g.Stats(); got != (Stats{}) {
			t.Errorf("%+v", got)
		}
		start := time.Now()
		s.SetWriteDeadline(start.Add(3 * time.Second))
		write(t, s, messages(make([]byte, 100)))
		write(t, s, message("late"))
		if d := time.Since(start); d != 3*time.Second {
			t.Errorf("the write took %v", d)
		}
		if got := g.Stats(); got != (Stats{Dropped: 2, Stalls: 1}) {
			t.Errorf("%+v", got)
		}
		p.mu.Lock()
		p.room += 1 << 10
		p.changed()
		p.mu.Unlock()
		synctest.Wait()
		got, _ := p.got(0)
		wantHeard(t, got, want...)
	})
}

// The messages that wait when a stream breaks go to the next one, behind the
// announcement, but for the message that was begun.
func TestGateMovesWaitingMessagesToTheNextStream(t *testing.T) {
	t.Parallel()
	withPeer(t, Config{}, func(t *testing.T, p *fakePeer, g *Gate, s network.Stream) {
		p.allow(1 << 10)
		write(t, s, announce("topic", true))
		time.Sleep(time.Second)
		p.allowOnly(len(message("0")) + 1)
		for i := range 5 {
			write(t, s, message("%d", i))
		}
		synctest.Wait()
		p.breaks()
		p.allow(1 << 20)
		time.Sleep(time.Second)
		got, _ := p.got(0)
		wantHeard(t, got[:len(got)-1], "topic: true", "0")
		got, _ = p.got(1)
		wantHeard(t, got, "topic: true", "2", "3", "4")
		if got := g.Stats(); got != (Stats{Dropped: 1, Reopened: 1}) {
			t.Errorf("%+v", got)
		}
	})
}

// A peer that stalled in the middle of the only message that waits is heard and sent to
// again when its stream breaks: on the next one nothing is left of the stall.
func TestGateKeepsAStallAcrossStreams(t *testing.T) {
	t.Parallel()
	withPeer(t, Config{StallTimeout: time.Second}, func(t *testing.T, p *fakePeer, g *Gate, s network.Stream) {
		p.allow(1 << 10)
		write(t, s, announce("a", true))
		time.Sleep(time.Second)
		p.allowOnly(1)
		write(t, s, message("0"))
		time.Sleep(2 * time.Second)
		write(t, s, message("1")) // which finds out
		write(t, s, announce("a", false))
		write(t, s, announce("b", true))
		if got := g.Stats(); got.Stalls != 1 || got.Dropped != 1 {
			t.Fatalf("%+v", got)
		}
		p.breaks()
		p.allow(1 << 20)
		time.Sleep(time.Second)
		write(t, s, message("2"))
		time.Sleep(time.Second)
		got, _ := p.got(1)
		what := heard(t, got)
		topics := make(map[string]bool) // the latest announcements, as some are repeated
		for _, w := range what {
			if topic, on, ok := strings.Cut(w, ": "); ok {
				topics[topic] = on == "true"
			}
		}
		if !slices.Contains(what, "2") || topics["a"] || !topics["b"] {
			t.Errorf("on its next stream the peer hears %q", what)
		}
		if got := g.Stats(); got != (Stats{Dropped: 2, Stalls: 1, Reopened: 1}) {
			t.Errorf("%+v", got)
		}
	})
}

// A stream on which not even the announcement can be written is given up for
// another, and an eviction ends that at once.
func TestGateOpensUntilAnnounced(t *testing.T) {
	t.Parallel()
	withPeer(t, Config{}, func(t *testing.T, p *fakePeer, g *Gate, s network.Stream) {
		p.allow(1 << 10)
		write(t, s, announce("topic", true))
		p.allowOnly(0)
		p.breaks()
		time.Sleep(openTimeout + time.Second)
		p.allow(1)
		time.Sleep(openTimeout)
		if got := g.Stats(); got != (Stats{}) {
			t.Errorf("%+v", got)
		}
		p.allow(1 << 10)
		if got := g.Stats(); got != (Stats{Reopened: 1}) {
			t.Errorf("%+v", got)
		}
		got, _ := p.got(3)
		wantHeard(t, got, "topic: true")
		p.allowOnly(0)
		if n := p.breaks(); n != 4 {
			t.Errorf("%d streams were opened", n)
		}
		time.Sleep(time.Second)
		start := time.Now()
		g.evict(fakeID)
		if _, err := s.Read(nil); err == nil || time.Since(start) != 0 {
			t.Errorf("it took %v until %v", time.Since(start), err)
		}
	})
}

// An eviction ends pubsub's blocked Write at once and the writer too, even if
// the connection is so frozen that a reset blocks; the waiting messages are counted.
func TestGateEndsABlockedWriter(t *testing.T) {
	t.Parallel()
	for _, waiting := range []int{1, 5} { // in the first write, for room
		withPeer(t, Config{MaxPending: 1, StallTimeout: time.Hour}, func(t *testing.T, p *fakePeer, g *Gate, s network.Stream) {
			p.mu.Lock()
			p.frozen = make(chan struct{})
			p.mu.Unlock()
			var writing sync.WaitGroup
			writing.Go(func() {
				for i := range waiting {
					s.Write(message("%d", i))
				}
			})
			time.Sleep(time.Duration(waiting) * 5 * time.Minute)
			start := time.Now()
			g.evict(fakeID)
			writing.Wait()
			synctest.Wait()
			if d := time.Since(start); d != 0 {
				t.Errorf("it took %v", d)
			}
			if got, want := g.Stats().Dropped, uint64(waiting); got != want {
				t.Errorf("%d dropped, want %d", got, want)
			}
			if n, err := s.Write(message("late")); n != 0 || !errors.Is(err, errEnded) {
				t.Errorf("then it wrote %d bytes, %v", n, err)
			}
			close(p.frozen)
		})
	}
}

// The messages that wait for a guest are limited before the gate, too: its messages are dropped as
// soon as the queue is full, and pubsub's writer never waits.
func TestGateDoesNotWaitForAGuest(t *testing.T) {
	t.Parallel()
	withPeer(t, Config{MaxPending: 8 << 10}, func(t *testing.T, p *fakePeer, g *Gate, s network.Stream) {
		g.SetAdmission(fakeID, Admission{Guest: true})
		start, sent := time.Now(), 0
		for range 100 {
			write(t, s, messages(make([]byte, 1<<10)))
			sent++
		}
		waited := time.Since(start)
		if waited > g.cfg.StallTimeout/8 { // which is how long the first is tried
			t.Errorf("the writes waited %v", waited)
		}
		// The first is being written, and what fills the queue waits.
		if n := g.Stats().Dropped; n < uint64(sent)-chunkSize>>10-9 || n >= uint64(sent) {
			t.Errorf("%d of %d messages were dropped", n, sent)
		}
		if err := g.AwaitRoom(t.Context()); err != nil || time.Since(start) != waited {
			t.Errorf("waited %v for a peer that misses messages anyway: %v", time.Since(start), err)
		}
		p.allow(1 << 20)
		synctest.Wait()
		before := g.Stats().Dropped
		write(t, s, messages([]byte("after")))
		if g.Stats().Dropped != before {
			t.Error("a message is dropped though the peer reads everything")
		}
	})
}

// Whoever asks for room before each message makes a slow peer miss none, and is not
// held up by one that reads nothing for longer than StallTimeout.
func TestGateAwaitsRoom(t *testing.T) {
	t.Parallel()
	withPeer(t, Config{MaxPending: 64 << 10, StallTimeout: time.Second}, func(t *testing.T, p *fakePeer, g *Gate, s network.Stream) {
		g.SetAdmission(fakeID, Admission{Guest: true})
		const size = 20 << 10
		rpc := messages(make([]byte, size))
		go func() {
			for range 40 {
				time.Sleep(100 * time.Millisecond)
				p.allow(len(rpc))
			}
		}()
		start := time.Now()
		for range 20 {
			if err := g.AwaitRoom(t.Context()); err != nil {
				t.Fatal(err)
			}
			write(t, s, rpc)
		}
		if n, d := g.Stats().Dropped, time.Since(start); n != 0 || d < time.Second {
			t.Errorf("%d messages were dropped, 20 took %v", n, d)
		}
		time.Sleep(5 * time.Second) // everything is read
		p.allowOnly(0)
		for range 3 {
			write(t, s, rpc)
		}
		start = time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if err := g.AwaitRoom(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("waiting ended with %v when its ctx did", err)
		}
		if err := g.AwaitRoom(t.Context()); err != nil || time.Since(start) > 1200*time.Millisecond {
			t.Errorf("waited %v for a peer that reads nothing: %v", time.Since(start), err)
		}
	})
}

// A guest that reads a little all the time never stalls and never empties its queue. It is
// waited for once, and again only when it has read everything.
func TestGateAwaitsASlowPeerOnce(t *testing.T) {
	t.Parallel()
	const pending = 512 << 10
	withPeer(t, Config{MaxPending: pending, StallTimeout: time.Second}, func(t *testing.T, p *fakePeer, g *Gate, s network.Stream) {
		g.SetAdmission(fakeID, Admission{Guest: true})
		rpc := messages(make([]byte, 20<<10))
		awaits := func() time.Duration {
			t.Helper()
			start := time.Now()
			if err := g.AwaitRoom(t.Context()); err != nil {
				t.Error(err)
			}
			return time.Since(start)
		}
		fill := func() {
			for range pending*3/4/len(rpc) + 1 {
				write(t, s, rpc)
			}
		}
		ctx, stop := context.WithCancel(t.Context())
		var reading sync.WaitGroup
		reading.Go(func() {
			for ctx.Err() == nil {
				time.Sleep(300 * time.Millisecond)
				p.mu.Lock()
				p.room += 200
				p.changed()
				p.mu.Unlock()
			}
		})
		fill()
		var others sync.WaitGroup
		others.Go(func() {
			time.Sleep(500 * time.Millisecond)
			if d := awaits(); d > 700*time.Millisecond { // looked at once in an eighth
				t.Errorf("another call has waited %v, and not until the first gave up", d)
			}
		})
		if d := awaits(); d != time.Second {
			t.Errorf("the first call has waited %v", d)
		}
		others.Wait()
		for range 20 {
			if d := awaits(); d != 0 {
				t.Fatalf("a call has waited %v for a peer that another call had timed out on", d)
			}
			time.Sleep(time.Second)
		}
		if n := g.Stats().Stalls; n != 0 {
			t.Fatalf("%d stalls: that is another case", n)
		}
		stop()
		reading.Wait()
		p.allow(pending / 2) // which is below half, and not all
		fill()
		if d := awaits(); d != 0 {
			t.Errorf("a call has waited %v although the queue was never empty", d)
		}
		p.allow(2 * pending)
		time.Sleep(time.Second)
		p.allowOnly(0)
		fill()
		go func() {
			time.Sleep(200 * time.Millisecond)
			p.allow(pending)
		}()
		if d := awaits(); d != 200*time.Millisecond {
			t.Errorf("a call has waited %v for a peer whose queue was empty in between", d)
		}
	})
}
