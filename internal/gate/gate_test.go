package gate

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/internal/hosttest"
)

// Pubsub gets an admitted peer, and loses it when it is evicted.
func TestGateAdmitsAndEvicts(t *testing.T) {
	t.Parallel()
	hosttest.OverTCPAndQUIC(t, func(t *testing.T, listen string) {
		a, b := newGated(t, listen), newGated(t, listen)
		connect(t, a, b)
		for round := range 6 { // pubsub gives up after the fourth stream
			link(a, b)
			waitLinked(t, a, b)
			a.publish("a %d", round)
			b.publish("b %d", round)
			a.waitFor("b %d", round)
			b.waitFor("a %d", round)
			cut(a, b)
			hosttest.Eventually(t, "neither sees the other", func() bool { return a.sees() && b.sees() })
		}
		if c := a.gate.Host().Network().Connectedness(b.host.ID()); c != network.NotConnected {
			t.Errorf("an evicted peer is %v", c)
		}
	})
}

// Pubsub sees only the connected peers that are admitted.
func TestGateShowsAdmittedPeersOnly(t *testing.T) {
	t.Parallel()
	a, b, c := newGated(t, hosttest.TCP), newGated(t, hosttest.TCP), newGated(t, hosttest.TCP)
	connect(t, a, b)
	connect(t, a, c)
	link(a, b)
	waitLinked(t, a, b)
	shown := a.gate.Host().Network()
	if peers := shown.Peers(); len(peers) != 1 || peers[0] != b.host.ID() {
		t.Errorf("peers %v", peers)
	}
	if shown.Connectedness(b.host.ID()) != network.Connected || shown.Connectedness(c.host.ID()) != network.NotConnected {
		t.Error("wrong connectedness")
	}
	if _, err := a.gate.Host().NewStream(t.Context(), c.host.ID(), pubsub.FloodSubID); err == nil {
		t.Error("a stream to a peer that is not admitted")
	}
	a.gate.admit(a.host.ID())
	if shown.Connectedness(a.host.ID()) != network.NotConnected {
		t.Error("it admitted itself")
	}
}

// One side admits first: within the time the other keeps its stream, and so
// late that the stream was refused, several times.
func TestGateLetsEitherSideAdmitFirst(t *testing.T) {
	t.Parallel()
	hosttest.OverTCPAndQUIC(t, func(t *testing.T, listen string) {
		for _, early := range []time.Duration{0, 300 * time.Millisecond, 1500 * time.Millisecond} {
			t.Run(early.String(), func(t *testing.T) {
				t.Parallel()
				a, b := newGated(t, listen), newGated(t, listen)
				b.gate.cfg.Wait = 400 * time.Millisecond
				connect(t, a, b)
				a.gate.admit(b.host.ID())
				time.Sleep(early) // the case under test
				if !a.sees() {
					t.Error("a sees a peer that has not admitted it")
				}
				b.gate.admit(a.host.ID())
				waitLinked(t, a, b)
				a.publish("a")
				b.publish("b")
				a.waitFor("b")
				b.waitFor("a")
			})
		}
	})
}

// Everybody is connected to everybody, admitted are only the neighbors in a
// line; so a message has to pass every hop, and a cut stops it.
func TestGateConfinesTheFlood(t *testing.T) {
	t.Parallel()
	const n = 8
	nodes := make([]*gated, n)
	for i := range nodes {
		nodes[i] = newGated(t, hosttest.TCP)
		for j := range i {
			connect(t, nodes[i], nodes[j])
		}
	}
	neighbors := func(i int) (ns []*gated) {
		if i > 0 {
			ns = append(ns, nodes[i-1])
		}
		if i < n-1 {
			ns = append(ns, nodes[i+1])
		}
		return ns
	}
	for i := range n - 1 {
		link(nodes[i], nodes[i+1])
	}
	hosttest.Eventually(t, "everybody sees its neighbors only", func() bool {
		for i, node := range nodes {
			if !node.sees(neighbors(i)...) {
				return false
			}
		}
		return true
	})
	for i, node := range nodes {
		node.publish("from %d", i)
	}
	for i, node := range nodes {
		for j := range nodes {
			node.waitFor("from %d", j)
		}
		node.mu.Lock()
		delete(node.from, node.host.ID())
		for _, nb := range neighbors(i) {
			delete(node.from, nb.host.ID())
		}
		if len(node.from) != 0 {
			t.Errorf("node %d got messages past the gate, from %v", i, node.from)
		}
		node.mu.Unlock()
	}

	cut(nodes[3], nodes[4])
	hosttest.Eventually(t, "the cut is seen", func() bool { return nodes[3].sees(nodes[2]) && nodes[4].sees(nodes[5]) })
	nodes[0].publish("left")
	nodes[7].publish("right")
	nodes[3].waitFor("left")
	nodes[4].waitFor("right")
	link(nodes[3], nodes[4])
	waitFar := func() bool { return nodes[3].sees(nodes[2], nodes[4]) && nodes[4].sees(nodes[3], nodes[5]) }
	hosttest.Eventually(t, "the new link is seen", waitFar)
	nodes[0].publish("all")
	nodes[7].waitFor("all")
	if nodes[4].has("left") || nodes[3].has("right") {
		t.Error("a message crossed the cut")
	}
}

// However wildly both sides admit and evict, once they agree and see each
// other, everything arrives. It runs beside no other test, since a machine that is busy
// for a second makes the gate drop messages.
func TestGateSurvivesFlapping(t *testing.T) {
	hosttest.OverTCPAndQUIC(t, func(t *testing.T, listen string) {
		a, b := newGated(t, listen), newGated(t, listen)
		connect(t, a, b)
		rnd := rand.New(rand.NewPCG(1, 2))
		pause := func() { time.Sleep(time.Duration(rnd.IntN(30)) * time.Millisecond) }
		for round := range 30 {
			link(a, b)
			pause()
			if round%3 == 0 {
				waitLinked(t, a, b)
			}
			switch rnd.IntN(4) {
			case 0:
				cut(a, b)
				pause()
			case 1: // on one side only, and admitted again at once
				a.gate.evict(b.host.ID())
			case 2:
				b.gate.evict(a.host.ID())
				pause()
			case 3:
				a.gate.evict(b.host.ID())
				a.gate.admit(b.host.ID())
				a.gate.evict(b.host.ID())
			}
		}
		link(a, b)
		waitLinked(t, a, b)
		for i := range 200 {
			a.publish("a %d", i)
			b.publish("b %d", i)
		}
		for i := range 200 {
			a.waitFor("b %d", i)
			b.waitFor("a %d", i)
		}
	})
}

// Pubsub must not confuse the end of the old streams with the beginning of the
// new ones: then one side would be deaf for good.
func TestGateEvictsAndAdmitsAtOnce(t *testing.T) {
	t.Parallel()
	hosttest.OverTCPAndQUIC(t, func(t *testing.T, listen string) {
		a, b := newGated(t, listen), newGated(t, listen)
		connect(t, a, b)
		link(a, b)
		for round := range 100 {
			talk(t, a, b, fmt.Sprint(round))
			a.gate.evict(b.host.ID())
			a.gate.admit(b.host.ID())
			if round%2 == 0 {
				b.gate.evict(a.host.ID())
				b.gate.admit(a.host.ID())
			}
		}
		talk(t, a, b, "last")
	})
}

// Once a peer is seen on the topic, messages go to it, even if its
// stream was there long before ours.
func TestGateReachesEveryPeerThatIsSeen(t *testing.T) {
	t.Parallel()
	a, b := newGated(t, hosttest.TCP), newGated(t, hosttest.TCP)
	connect(t, a, b)
	seen, err := a.topic.EventHandler()
	if err != nil {
		t.Fatal(err)
	}
	next := func(want pubsub.EventType) {
		t.Helper()
		if ev, err := seen.NextPeerEvent(t.Context()); err != nil || ev.Type != want {
			t.Fatalf("%v, %v; want %v", ev, err, want)
		}
	}
	for round := range 100 {
		b.gate.admit(a.host.ID())
		hosttest.Eventually(t, "b's stream waits", func() bool {
			a.gate.mu.Lock()
			defer a.gate.mu.Unlock()
			r := a.gate.peers[b.host.ID()]
			return r != nil && r.waiting != nil
		})
		a.gate.admit(b.host.ID())
		next(pubsub.PeerJoin)
		a.publish("a %d", round)
		b.waitFor("a %d", round)
		cut(a, b)
		next(pubsub.PeerLeave)
	}
}

// A stream that breaks while the peer stays admitted and connected is opened
// again. Without the gate one side would be deaf for good.
func TestGateHealsBrokenStreams(t *testing.T) {
	t.Parallel()
	hosttest.OverTCPAndQUIC(t, func(t *testing.T, listen string) {
		a, b := newGated(t, listen), newGated(t, listen)
		connect(t, a, b)
		link(a, b)
		waitLinked(t, a, b)
		for round := range 8 {
			breaker := a
			if round%2 == 1 {
				breaker = b
			}
			broken := 0
			for _, c := range breaker.host.Network().Conns() {
				for _, s := range c.GetStreams() {
					if s.Protocol() == pubsub.FloodSubID && (round < 4 || s.Stat().Direction == network.DirInbound) {
						s.Reset()
						broken++
					}
				}
			}
			if broken == 0 {
				t.Fatal("no stream to break")
			}
			// What is published before the break is noticed is lost.
			talk(t, a, b, fmt.Sprint(round))
			waitLinked(t, a, b)
		}
	})
}

// The announcement that is repeated is the latest, also of topics joined and
// left while a stream was open.
func TestGateRepeatsTheLatestAnnouncement(t *testing.T) {
	t.Parallel()
	a, b := newGated(t, hosttest.TCP), newGated(t, hosttest.TCP)
	connect(t, a, b)
	link(a, b)
	waitLinked(t, a, b)
	old, oldSub := a.topic, a.sub
	a.join("second")
	oldSub.Cancel()
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	b2, err := b.ps.Join("second")
	if err != nil {
		t.Fatal(err)
	}
	latest := func() bool { return len(b2.ListPeers()) == 1 && len(b.topic.ListPeers()) == 0 }
	hosttest.Eventually(t, "b knows a's topics", latest)
	for round := range 5 {
		b.gate.mu.Lock()
		old := b.gate.peers[a.host.ID()].in
		b.gate.mu.Unlock()
		old.Reset()
		hosttest.Eventually(t, "pubsub is done with the stream", func() bool {
			b.gate.mu.Lock()
			defer b.gate.mu.Unlock()
			in := b.gate.peers[a.host.ID()].in
			return in != nil && in != old
		})
		hosttest.Eventually(t, "a message of b arrives", func() bool {
			b2.Publish(t.Context(), fmt.Append(nil, "b", round))
			return a.has(fmt.Sprint("b", round))
		})
		if !latest() {
			t.Errorf("b knows topics that a has left")
		}
	}
}

// streams counts the floodsub streams of the host.
func (n *gated) streams(dir network.Direction) (count int) {
	for _, c := range n.host.Network().Conns() {
		for _, s := range c.GetStreams() {
			if s.Protocol() == pubsub.FloodSubID && s.Stat().Direction == dir {
				count++
			}
		}
	}
	return count
}

// Of two connections one is closed; the other has to carry the traffic.
func TestGateSurvivesTheLossOfAConnection(t *testing.T) {
	doubled := 0
	for range 8 {
		// Each dials the other at the same moment, over another transport.
		a, b := newGated(t, hosttest.TCP, hosttest.QUIC), newGated(t, hosttest.TCP, hosttest.QUIC)
		var both sync.WaitGroup
		start := make(chan struct{})
		for _, dial := range [][2]*gated{{a, b}, {b, a}} {
			both.Go(func() {
				<-start
				to := peer.AddrInfo{ID: dial[1].host.ID()}
				to.Addrs = slices.DeleteFunc(dial[1].host.Addrs(), func(m ma.Multiaddr) bool {
					_, err := m.ValueForProtocol(ma.P_TCP)
					return (err == nil) != (dial[0] == a)
				})
				if err := dial[0].host.Connect(t.Context(), to); err != nil {
					t.Error(err)
				}
			})
		}
		close(start)
		both.Wait()
		link(a, b)
		waitLinked(t, a, b)
		conns := a.host.Network().ConnsToPeer(b.host.ID())
		if len(conns) == 2 {
			doubled++
			conns[rand.IntN(2)].Close()
		}
		talk(t, a, b, "")
		// All connections end and one comes back, while both stay admitted.
		for _, c := range a.host.Network().ConnsToPeer(b.host.ID()) {
			c.Close()
		}
		hosttest.Eventually(t, "neither sees the other", func() bool { return a.sees() && b.sees() })
		connect(t, a, b)
		waitLinked(t, a, b)
	}
	t.Logf("%d of 8 pairs had two connections", doubled)
}

// newUnadmittedHost returns a host that is connected to n and admitted nowhere.
func newUnadmittedHost(t *testing.T, n *gated) corehost.Host {
	t.Helper()
	h, err := libp2p.New(libp2p.NoListenAddrs, libp2p.DisableRelay())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	if err := h.Connect(t.Context(), peer.AddrInfo{ID: n.host.ID(), Addrs: n.host.Addrs()}); err != nil {
		t.Fatal(err)
	}
	return h
}

// open opens a stream, to the end of the negotiation.
func open(t *testing.T, from corehost.Host, to *gated, id protocol.ID) network.Stream {
	t.Helper()
	s, err := from.NewStream(t.Context(), to.host.ID(), id)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Write([]byte{0}); err != nil {
		t.Fatal(err)
	}
	return s
}

// The number of pubsub streams that wait for their peer's admission is limited.
func TestGateBoundsTheStreamsThatWait(t *testing.T) {
	t.Parallel()
	n := newGated(t, hosttest.TCP)
	n.gate.cfg.MaxWaiting = 3
	n.gate.cfg.Wait = time.Hour
	var streams []network.Stream
	for range 5 {
		h := newUnadmittedHost(t, n)
		for range 4 { // of one peer the latest is kept
			streams = append(streams, open(t, h, n, pubsub.FloodSubID))
		}
	}
	hosttest.Eventually(t, "three streams wait", func() bool {
		n.gate.mu.Lock()
		defer n.gate.mu.Unlock()
		return n.gate.earlyStreams == 3 && len(n.gate.peers) == 3 && n.streams(network.DirInbound) == 3
	})
	n.gate.Close()
	for _, s := range streams {
		if _, err := s.Read(make([]byte, 1)); err == nil {
			t.Error("an answer")
		}
	}
	if n.gate.earlyStreams != 0 || len(n.gate.peers) != 0 {
		t.Errorf("%d streams and %d peers are left", n.gate.earlyStreams, len(n.gate.peers))
	}
}

// A pubsub stream is reset if its peer is not admitted in time.
func TestGateRefusesAPeerThatIsNotAdmittedInTime(t *testing.T) {
	t.Parallel()
	n := newGated(t, hosttest.TCP)
	n.gate.cfg.Wait = 20 * time.Millisecond
	s := open(t, newUnadmittedHost(t, n), n, pubsub.FloodSubID)
	if _, err := s.Read(make([]byte, 1)); err == nil {
		t.Error("an answer")
	}
	hosttest.Eventually(t, "nothing is left", func() bool {
		n.gate.mu.Lock()
		defer n.gate.mu.Unlock()
		return n.gate.earlyStreams == 0 && len(n.gate.peers) == 0
	})
}

// Pubsub handles the end of a stream only after it has accepted the next one,
// and then treats it as the end of that one.
func TestGateHandsOverOneStreamAfterTheOther(t *testing.T) {
	t.Parallel()
	const id = "/test"
	n := newBare(t, hosttest.TCP)
	h := newUnadmittedHost(t, n)
	h.SetStreamHandler(id, func(network.Stream) {})
	ended, next := make(chan struct{}), make(chan struct{})
	begun := make(chan int, 2)
	first := true
	n.gate.Host().SetStreamHandler(id, func(s network.Stream) {
		if first {
			first = false
			begun <- 1
			for err := error(nil); err == nil; {
				_, err = s.Read(make([]byte, 1))
			}
			close(ended)
			<-next
			return
		}
		begun <- 2
	})
	n.gate.admit(h.ID())
	if _, err := n.gate.Host().NewStream(t.Context(), h.ID(), id); err != nil {
		t.Fatal(err)
	}
	open(t, h, n, id)
	if i := <-begun; i != 1 {
		t.Fatal(i)
	}
	open(t, h, n, id)
	<-ended // the gate ended it
	select {
	case <-begun:
		t.Error("two at once")
	case <-time.After(50 * time.Millisecond):
	}
	close(next)
	if i := <-begun; i != 2 {
		t.Fatal(i)
	}
}

// Of an admitted peer that opens stream after stream one is read and the
// latest waits.
func TestGateBoundsTheStreamsOfAnAdmittedPeer(t *testing.T) {
	t.Parallel()
	a, b := newGated(t, hosttest.TCP), newGated(t, hosttest.TCP)
	connect(t, a, b)
	link(a, b)
	waitLinked(t, a, b)
	for range 200 {
		open(t, b.host, a, pubsub.FloodSubID)
	}
	hosttest.Eventually(t, "one stream is left", func() bool { return a.streams(network.DirInbound) == 1 })
	talk(t, a, b, "still")
}

// After Close the host is as it was before, also while a peer goes on sending.
func TestGateCloseLeavesNothing(t *testing.T) {
	hosttest.OverTCPAndQUIC(t, func(t *testing.T, listen string) {
		a, b := newGated(t, listen), newGated(t, listen)
		connect(t, a, b)
		link(a, b)
		waitLinked(t, a, b)
		stop := make(chan struct{})
		var sending sync.WaitGroup
		sending.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
					b.topic.Publish(t.Context(), fmt.Append(nil, i))
				}
			}
		})
		a.stop() // the pubsub first, which leaves streams behind
		a.gate.Close()
		a.gate.Close()
		close(stop)
		sending.Wait()
		for _, id := range a.host.Mux().Protocols() {
			if id == pubsub.FloodSubID {
				t.Error("the handler is still there")
			}
		}
		hosttest.Eventually(t, "no stream is left", func() bool {
			return a.streams(network.DirInbound) == 0 && a.streams(network.DirOutbound) == 0
		})
		a.gate.admit(b.host.ID())
		a.gate.evict(b.host.ID())
		if _, err := a.gate.Host().NewStream(t.Context(), b.host.ID(), pubsub.FloodSubID); err == nil {
			t.Error("a stream after Close")
		}
		b.gate.Close()
		b.stop()
		hosttest.Eventually(t, "no goroutine is left", func() bool {
			return !strings.Contains(stacks(), "pubsub") && !strings.Contains(stacks(), "host.(*Gate)")
		})
	})
}

func stacks() string {
	buf := make([]byte, 1<<20)
	return string(buf[:runtime.Stack(buf, true)])
}
