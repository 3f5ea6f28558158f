package integration_test

import (
	"context"
	"crypto/rand"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/checker"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/cluster"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

// TestIDBelongsToTheKey shows that the id of a node is that of its public key.
func TestIDBelongsToTheKey(t *testing.T) {
	t.Parallel()
	a := newLocal(t).create(cluster.Spec{Name: "a"})
	if !a.ID().MatchesPublicKey(a.Host().Peerstore().PubKey(a.ID())) {
		t.Error("the id is not that of the host's key")
	}
}

// TestIdentityFileKeepsTheID shows that a node with an identity file has the same id in
// each run, that two nodes cannot use one file at once, and that nodes without a file
// have new ids.
func TestIdentityFileKeepsTheID(t *testing.T) {
	t.Parallel()
	l := newLocal(t)
	file := filepath.Join(t.TempDir(), "key")
	first := l.start(cluster.Spec{Name: "first", Identity: file})
	id := first.ID()
	if _, err := smokesignal.New(smokesignal.IdentityFile(file)); err == nil {
		t.Error("two nodes at once with one identity file")
	}
	l.close(first)
	if second := l.start(cluster.Spec{Name: "second", Identity: file}); second.ID() != id {
		t.Errorf("id %s, then %s", id, second.ID())
	}
	if x, y := l.create(cluster.Spec{Name: "x"}), l.create(cluster.Spec{Name: "y"}); x.ID() == y.ID() {
		t.Error("two nodes have the same id")
	}
}

// TestStreamsWithoutAHandshakeAreNotPeers shows that five hosts with one key and twenty
// streams each are not peers, since none of them has done the handshake.
func TestStreamsWithoutAHandshakeAreNotPeers(t *testing.T) {
	t.Parallel()
	a := newLocal(t).start(cluster.Spec{Name: "a", Limits: manual})
	identity, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		h := rawHost(t, libp2p.Identity(identity))
		connect(t, h, a)
		for range 20 {
			say(t, h, a.ID(), protocol.Overlay, nil)
		}
	}
	if n := a.Peers().Len(); n != 0 {
		t.Errorf("%d peers, none has done the handshake", n)
	}
}

// TestTwoNodesWithOneKeyAreOnePeer shows that two nodes with copies of one key are one
// peer at a time, and leave nothing behind in the list of peers.
func TestTwoNodesWithOneKeyAreOnePeer(t *testing.T) {
	parallelInVirtualTime(t)
	key := filepath.Join(t.TempDir(), "key")
	inVirtualTime(t, func(t *testing.T, v *virtual) {
		a := v.startOn(0, cluster.Spec{Name: "a", Limits: manual})
		b := v.startOn(1, cluster.Spec{Name: "b", Limits: manual, Identity: key})
		copied, err := os.ReadFile(key)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(key+"2", copied, 0o600); err != nil {
			t.Fatal(err)
		}
		twin := v.startOn(2, cluster.Spec{Name: "twin", Limits: manual, Identity: key + "2"})
		if twin.ID() != b.ID() {
			t.Fatalf("ids %s and %s of one key", b.ID(), twin.ID())
		}
		var most atomic.Int64
		a.Peers().OnAdd(func(context.Context, *smokesignal.Peer) {
			most.Store(max(most.Load(), int64(a.Peers().Len())))
		})
		if _, err := b.Connect(within(t, soon), addr(a)); err != nil {
			t.Error(err)
		}
		twin.Connect(within(t, soon), addr(a)) // either of the two may win
		if got := most.Load(); got > 1 {
			t.Errorf("one id was %d peers", got)
		}
		b.Close()
		twin.Close()
		v.wait(soon, "both are gone", func(s *checker.State) bool { return len(s.Proc("a").Peers) == 0 })
		if n := a.Peers().Len(); n != 0 {
			t.Errorf("%d peers are left in the list", n)
		}
	})
}

// TestNobodySpeaksInAnothersName shows that forged broadcasts in the name of a node
// neither arrive nor keep its true ones out.
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
				forged(t, b.ID(), nil, topic, seq, data),        // without a valid signature
				forged(t, b.ID(), key, topic, seq, data),        // signed with an unrelated key
				forged(t, b.ID(), own, topic, seq, data),        // signed by the attacker
				forged(t, a.ID(), own, topic, seq, data),        // in the name of the receiver
				forged(t, peer.ID("x"), own, topic, seq, data),  // from something that is not an id
				forged(t, attacker.ID(), own, topic, seq, data), // in the attacker's name, but not a batch
			)...)
		}
	}
	for range 3 {
		say(t, attacker.Host(), a.ID(), "/floodsub/1.0.0", lies)
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
