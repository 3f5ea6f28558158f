package integration_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/checker"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/cluster"
)

// Fault 17: anybody could send in another's name, and a wrong payload under a
// known id kept the true one out.
func TestNobodySpeaksInAnothersName(t *testing.T) {
	t.Parallel()
	l, a, b := pair(t)
	attacker := l.start(cluster.Spec{Name: "attacker", Limits: manual})
	l.link(a, attacker)
	all := listen(t, a.Broadcast(), "*")
	emitNumbers(t, b.Broadcast(), "true", 1) // b's session is known to a
	all.wait(1, soon)

	key, _, err := crypto.GenerateEd25519Key(nil)
	if err != nil {
		t.Fatal(err)
	}
	own := attacker.Host().Peerstore().PrivKey(attacker.ID())
	const topic = "smokesignal/default"
	var lies []byte
	for seq := range uint64(50) {
		for _, data := range [][]byte{nil, []byte("null"), everyField(0), everyField(2), make([]byte, 100)} {
			lies = append(lies, rpc(t,
				forged(t, b.ID(), nil, topic, seq, data),        // without a signature that holds
				forged(t, b.ID(), key, topic, seq, data),        // signed by nobody
				forged(t, b.ID(), own, topic, seq, data),        // signed by the attacker
				forged(t, a.ID(), own, topic, seq, data),        // in the receiver's own name
				forged(t, peer.ID("x"), own, topic, seq, data),  // of no id at all
				forged(t, attacker.ID(), own, topic, seq, data), // truly its own, but no batch of ours
			)...)
		}
	}
	for range 3 {
		say(t, attacker.Host(), a.ID(), "/floodsub/1.0.0", lies, 100*time.Millisecond)
		emitNumbers(t, b.Broadcast(), "true", 10)
	}
	got := all.wait(31, soon)
	for _, h := range got {
		if h.From != b.ID() || h.Name != "true" {
			t.Errorf("%q of %s arrived", h.Name, h.From)
		}
	}
	for i, want := 1, 0; i < len(got); i, want = i+1, (want+1)%10 {
		if n := numbers(t, got[i:i+1])[0]; n != want {
			t.Fatalf("broadcast %d of b is %d, want %d", i, n, want)
		}
	}
}

// Fault 18: nodes of one process shared their listeners, and so did all peers
// of one node.
func TestNodesOfOneProcessAreApart(t *testing.T) {
	t.Parallel()
	l, a, b := pair(t)
	idle := l.create(cluster.Spec{Name: "idle"}) // never started
	c := l.start(cluster.Spec{Name: "c", Limits: manual})
	l.link(a, c)
	fromB, fromC := listen(t, a.Peer(b.ID()), "x"), listen(t, a.Peer(c.ID()), "x")
	idleHears := listen(t, idle.Direct(), "*")
	var closedB, closedC atomic.Int32
	a.Peer(b.ID()).OnClose(func(context.Context, error) { closedB.Add(1) })
	a.Peer(c.ID()).OnClose(func(context.Context, error) { closedC.Add(1) })
	emitNumbers(t, b.Peer(a.ID()), "x", 3)
	wantNumbers(t, "a, from b", fromB.wait(3, soon), 3)
	emitNumbers(t, c.Peer(a.ID()), "x", 2)
	wantNumbers(t, "a, from c", fromC.wait(2, soon), 2)
	wantNumbers(t, "a, from b", fromB.wait(3, soon), 3)
	l.close(b)
	l.wait(soon, "b is gone at a", func(s *checker.State) bool { return s.Proc("a").Counts[checker.PeerClose] == 1 })
	if closedB.Load() != 1 || closedC.Load() != 0 {
		t.Errorf("close was told %d times for b and %d times for c, want 1 and 0", closedB.Load(), closedC.Load())
	}
	l.wantStory(a, "connect", "peer added b", "add b", "peer added c", "add c", "peer removed b", "remove b", "close b")
	l.wantStory(c, "connect", "peer added a", "add a")
	l.wantStory(idle)
	if n := idleHears.count(); n != 0 {
		t.Errorf("a node that was not started heard %d events", n)
	}
}

// Fault 19: remoteAddress and remotePort were undefined, and close came twice.
func TestPeersHaveAddressesAndCloseOnce(t *testing.T) {
	t.Parallel()
	l, a, b := pair(t)
	for _, side := range []struct{ n, other *smokesignal.Node }{{a, b}, {b, a}} {
		p := side.n.Peer(side.other.ID())
		if at := p.AddrPort(); !at.IsValid() || at.Addr().String() != "127.0.0.1" || at.Port() == 0 {
			t.Errorf("%s has %s at %v", l.name(side.n), l.name(side.other), at)
		}
		if p.Addr() == nil {
			t.Errorf("%s has no multiaddr for %s", l.name(side.n), l.name(side.other))
		}
	}
	if at, want := a.Peer(b.ID()).AddrPort().String(), addr(b); !strings.Contains(want, fmt.Sprint(a.Peer(b.ID()).AddrPort().Port())) {
		t.Errorf("a dialled %s and says %s", want, at)
	}
	var closes [2]atomic.Int32
	a.Peer(b.ID()).OnClose(func(_ context.Context, reason error) {
		if reason == nil {
			t.Error("close without a reason")
		}
		closes[0].Add(1)
	})
	b.Peer(a.ID()).OnClose(func(context.Context, error) { closes[1].Add(1) })
	l.fault(a, checker.FaultLink)
	if err := a.Peer(b.ID()).Disconnect(); err != nil {
		t.Error(err)
	}
	l.wait(soon, "closed on both sides", func(s *checker.State) bool {
		return s.Proc("a").Counts[checker.PeerClose] > 0 && s.Proc("b").Counts[checker.PeerClose] > 0
	})
	l.close(a)
	l.close(b)
	if closes[0].Load() != 1 || closes[1].Load() != 1 {
		t.Errorf("close was told %d and %d times, want once each", closes[0].Load(), closes[1].Load())
	}
	l.check(checker.Config{})
}

// Fault 20: falsy options were replaced, a port as text or a hostname silently
// never joined, port 0 was advertised, and the server bound every interface.
func TestOptionsAreTakenAtTheirWord(t *testing.T) {
	t.Parallel()
	t.Run("zero is zero", func(t *testing.T) {
		l := newLocal(t)
		none := l.start(cluster.Spec{Name: "none", Limits: &[2]int{0, 0}})
		b := l.start(cluster.Spec{Name: "b", Limits: manual})
		if _, err := b.Connect(within(t, soon), addr(none)); !errors.Is(err, smokesignal.ErrFull) {
			t.Errorf("a node with max 0 was added: %v", err)
		}
		if _, err := none.Connect(within(t, soon), addr(b)); !errors.Is(err, smokesignal.ErrFull) {
			t.Errorf("a node with max 0 added another: %v", err)
		}
		l.wantStory(none)
		l.wantStory(b)
	})
	t.Run("what is wrong is named", func(t *testing.T) {
		for _, tt := range []struct {
			word string
			opt  smokesignal.Option
		}{
			{"Seeds", smokesignal.Seeds("127.0.0.1")},
			{"Seeds", smokesignal.Seeds("127.0.0.1:eighty")},
			{"Seeds", smokesignal.Seeds("127.0.0.1:70000")},
			{"Seeds", smokesignal.Seeds("")},
			{"Seeds", smokesignal.Seeds("/ip4/127.0.0.1/tcp/1/p2p/nobody")},
			{"Listen", smokesignal.Listen("here")},
			{"Listen", smokesignal.Listen("127.0.0.1:-1")},
			{"Listen", smokesignal.Listen("/ip4/127.0.0.1/carrier/pigeon")},
			{"PeerLimits", smokesignal.PeerLimits(-1, 5)},
			{"PeerLimits", smokesignal.PeerLimits(5, 3)},
			{"PeerLimits", smokesignal.PeerLimits(0, -2)},
			{"PingInterval", smokesignal.PingInterval(-time.Second)},
			{"PingTimeout", smokesignal.PingTimeout(-time.Second)},
			{"Network", smokesignal.Network("")},
			{"Subnet", smokesignal.Subnet("the one over there")},
			{"Advertise", smokesignal.Advertise("nowhere")},
			{"MaxEventSize", smokesignal.MaxEventSize(-1)},
			{"LAN", smokesignal.LAN()},
			{"IdentityFile", smokesignal.IdentityFile("")},
		} {
			n, err := smokesignal.New(tt.opt)
			if err == nil {
				n.Close()
				t.Errorf("a wrong %s is no error", tt.word)
			} else if !strings.Contains(err.Error(), tt.word) {
				t.Errorf("the error %q does not name %s", err, tt.word)
			}
		}
	})
	t.Run("a hostname joins", func(t *testing.T) {
		l := newLocal(t)
		port := freePort(t)
		l.start(cluster.Spec{Name: "seed", Listen: []string{hostPort(port)}})
		l.start(cluster.Spec{Name: "b", Seeds: []string{fmt.Sprintf("localhost:%d", port)}})
		l.wait(soon, "linked", func(s *checker.State) bool { return s.Gathered(2) })
	})
	t.Run("port 0 is advertised as what it became", func(t *testing.T) {
		l := newLocal(t)
		a := l.start(cluster.Spec{Name: "a", Listen: []string{"127.0.0.1:0"}})
		if len(a.Addrs()) == 0 {
			t.Fatal("no address")
		}
		for _, m := range a.Addrs() {
			if text := m.String(); strings.Contains(text, "/0/") || strings.Contains(text, "0.0.0.0") || !strings.HasSuffix(text, "/p2p/"+a.ID().String()) {
				t.Errorf("address %s", text)
			}
			b := l.start(cluster.Spec{Name: "b" + m.String(), Limits: manual})
			if _, err := b.Connect(within(t, soon), m.String()); err != nil {
				t.Errorf("%s does not join: %v", m, err)
			}
		}
	})
	t.Run("only what was asked is bound", func(t *testing.T) {
		port := freePort(t)
		a := newLocal(t).start(cluster.Spec{Name: "a", Listen: []string{hostPort(port)}})
		for _, m := range a.Host().Network().ListenAddresses() {
			if !strings.HasPrefix(m.String(), "/ip4/127.0.0.1/") {
				t.Errorf("bound %s", m)
			}
		}
		// All of 127.0.0.0/8 is this machine on Linux; elsewhere nothing answers
		// there anyhow.
		if c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.2:%d", port), time.Second); err == nil {
			c.Close()
			t.Error("the port is bound on 127.0.0.2 as well")
		}
	})
}

// Fault 21: a dial that was never answered leaked, frozen peers were kept for
// ever, and what was written to them piled up in memory.
func TestSilenceEnds(t *testing.T) {
	t.Parallel()
	t.Run("who accepts and says nothing", func(t *testing.T) {
		t.Parallel()
		mute, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer mute.Close() // the kernel accepts for it
		l := newLocal(t)
		a := l.start(cluster.Spec{Name: "a", Limits: manual})
		began := time.Now()
		if p, err := a.Connect(within(t, 30*time.Second), mute.Addr().String()); !errors.Is(err, smokesignal.ErrUnreachable) {
			t.Errorf("Connect returned %v, %v; want ErrUnreachable", p, err)
		}
		if took := time.Since(began); took > 12*slow*time.Second {
			t.Errorf("it took %v to give up", took)
		}
		if n := len(a.Host().Network().Conns()); n != 0 {
			t.Errorf("%d connections are left", n)
		}
	})
	t.Run("a frozen peer", func(t *testing.T) {
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
			t.Errorf("it was a peer for %v", total)
		}
		if !keep.Peer(a.ID()).Linked() {
			t.Error("the other peer was lost")
		}
	})
}

// Fault 23: the example listened to "disconnected", the event is "disconnect".
func TestChatIsToldOfDisconnect(t *testing.T) {
	t.Parallel()
	at := hostPort(freePort(t))
	first := startChat(t, "first", "-listen", at)
	second := startChat(t, "second", "-listen", "127.0.0.1:0", "-seed", at)
	second.want(soon, "* connected. Happy chatting!")
	first.stdin.Close() // it leaves; TestChatOfTwo kills
	second.want(soon, "* disconnected. Sorry.")
}
