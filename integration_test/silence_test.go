package integration_test

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/checker"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/cluster"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

// TestConnectToASilentServerFails shows that Connect to a server that accepts and says
// nothing ends with ErrUnreachable and leaves no connection.
func TestConnectToASilentServerFails(t *testing.T) {
	t.Parallel()
	mute, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close() // the kernel accepts connections to it
	l := newLocal(t)
	a := l.start(cluster.Spec{Name: "a", Limits: manual})
	began := time.Now()
	if p, err := a.Connect(within(t, 30*time.Second), mute.Addr().String()); !errors.Is(err, smokesignal.ErrUnreachable) {
		t.Errorf("Connect returned %v, %v; want ErrUnreachable", p, err)
	}
	if took := time.Since(began); took > 12*slow*time.Second {
		t.Errorf("Connect gave up after %v", took)
	}
	if n := len(a.Host().Network().Conns()); n != 0 {
		t.Errorf("%d connections are left", n)
	}
}

// TestFrozenPeerIsRemoved shows that a peer whose process is stopped makes Emit fail,
// is removed, and takes little memory until then.
func TestFrozenPeerIsRemoved(t *testing.T) {
	t.Parallel()
	l := newLocal(t)
	a := l.start(cluster.Spec{Name: "a", Limits: manual})
	keep := l.start(cluster.Spec{Name: "keep", Limits: manual})
	l.link(a, keep)
	c := cluster.New(t)
	p := c.Start(cluster.Spec{Name: "frozen", Listen: []string{cluster.TCP}, Limits: manual})
	frozen, err := a.Connect(within(t, soon), p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	var reason atomic.Value
	frozen.OnClose(func(_ context.Context, err error) { reason.Store(err) })
	p.Stop()
	began := time.Now()
	accepted, sent := 0, make([]byte, 16<<10)
	for err == nil {
		if err = frozen.Emit(within(t, soon), "load", sent); err == nil {
			accepted += len(sent)
		}
	}
	t.Logf("%d KiB accepted, then after %v: %v", accepted>>10, time.Since(began).Round(time.Millisecond), err)
	if errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Emit to a frozen peer blocks until its own deadline")
	}
	if accepted > 16<<20 {
		t.Errorf("%d MiB were accepted for a frozen peer", accepted>>20)
	}
	took := l.wait(soon, "the frozen peer is removed", func(s *checker.State) bool { return s.Proc("a").Counts[checker.PeerClose] == 1 })
	t.Logf("removed %v later: %v", took.Round(time.Millisecond), reason.Load())
	if total := time.Since(began); total > 20*slow*time.Second {
		t.Errorf("the frozen peer was removed after %v", total)
	}
	if !keep.Peer(a.ID()).Linked() {
		t.Error("the other peer was lost")
	}
}

// TestStreamWithoutHandshakeEnds shows that a stream on which a handshake does not come
// is closed, and that its host does not become a peer.
func TestStreamWithoutHandshakeEnds(t *testing.T) {
	parallelInVirtualTime(t)
	inVirtualTime(t, func(t *testing.T, v *virtual) {
		a := v.startOn(0, cluster.Spec{Name: "a", Limits: manual})
		b := v.startOn(1, cluster.Spec{Name: "b", Limits: manual})
		connect(t, b.Host(), a)
		const most = 12 * time.Second
		lived := hold(t, b.Host(), a.ID(), protocol.Overlay, []byte{0x7f}, most) // the beginning of a frame
		t.Logf("the stream lived %v", lived)
		if lived >= most {
			t.Errorf("a stream without a handshake lives for more than %v", most)
		}
		v.wantStory(a)
	})
}

// TestAnsweringTwiceEndsInErrStalled shows that two nodes that answer each event with
// two more do not lock up: Emit gives up with ErrStalled, and the link works again. No
// queue is long enough for such answers, so both nodes write while neither reads.
func TestAnsweringTwiceEndsInErrStalled(t *testing.T) {
	parallelInVirtualTime(t)
	inVirtualTime(t, func(t *testing.T, v *virtual) {
		a, b := v.pair()
		var stop atomic.Bool
		stalled := make(chan error, 2)
		answerTwice := func(n, other *smokesignal.Node) {
			n.Direct().On("ball", func(ctx context.Context, _ *smokesignal.Event) {
				for range 2 {
					if stop.Load() {
						return
					}
					if err := n.Peer(other.ID()).Emit(ctx, "ball", make([]byte, 4096)); err != nil {
						stop.Store(true)
						stalled <- err
						return
					}
				}
			})
		}
		answerTwice(a, b)
		answerTwice(b, a)
		if err := a.Peer(b.ID()).Emit(t.Context(), "ball", make([]byte, 4096)); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		err := next(t, stalled)
		t.Logf("after %v: %v", time.Since(began), err)
		if !errors.Is(err, smokesignal.ErrStalled) {
			t.Errorf("Emit returned %v, want ErrStalled", err)
		}
		for n, other := range map[*smokesignal.Node]*smokesignal.Node{a: b, b: a} {
			in := listen(t, other.Direct(), "still there?")
			if err := n.Peer(other.ID()).Emit(within(t, soon), "still there?"); err != nil {
				t.Error(err)
			}
			in.wait(1, soon)
			if !n.Peer(other.ID()).Linked() {
				t.Error("the link was lost")
			}
		}
	})
}
