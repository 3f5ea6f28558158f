package gate

import (
	"context"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/internal/hosttest"
	"github.com/go-smokesignal/smokesignal/internal/peers"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

// nodeProtocol is the protocol by which the gates of these tests recognize nodes.
const nodeProtocol = protocol.Overlay

// newOpenTo is newGated with a gate that admits guests.
func newOpenTo(t *testing.T, maxGuests int, listen ...string) *gated {
	t.Helper()
	n := newBare(t, listen...)
	n.admitByRecords(maxGuests, nil)
	n.begin()
	return n
}

type newPubSub func(context.Context, *gated) (*pubsub.PubSub, error)

func floodsub(ctx context.Context, n *gated) (*pubsub.PubSub, error) {
	return pubsub.NewFloodSub(ctx, n.host, pubsub.WithPeerOutboundQueueSize(1<<16))
}

func gossipsub(ctx context.Context, n *gated) (*pubsub.PubSub, error) {
	return pubsub.NewGossipSub(ctx, n.host)
}

func newPlain(t *testing.T, make newPubSub, listen ...string) *gated {
	t.Helper()
	n := newBare(t, listen...)
	n.gate.Close()
	var ctx context.Context
	ctx, n.stop = context.WithCancel(context.Background())
	var err error
	if n.ps, err = make(ctx, n); err != nil {
		t.Fatal(err)
	}
	n.join("topic")
	return n
}

// node makes the plain host look like a node, or no more.
func (n *gated) node(is bool) {
	if is {
		n.host.SetStreamHandler(nodeProtocol, func(s network.Stream) { s.Reset() })
	} else {
		n.host.RemoveStreamHandler(nodeProtocol)
	}
}

func (g *Gate) guestCount() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := 0
	for _, r := range g.peers {
		if r.Guest {
			n++
		}
	}
	return n
}

// A peer that speaks pubsub and is not a node is on the topic by itself, whoever has
// dialed, and until it is gone.
func TestGateAdmitsGuests(t *testing.T) {
	t.Parallel()
	for name, make := range map[string]newPubSub{"floodsub": floodsub, "gossipsub": gossipsub} {
		t.Run(name, func(t *testing.T) {
			hosttest.OverTCPAndQUIC(t, func(t *testing.T, listen string) {
				n := newOpenTo(t, 0, listen)
				for round := range 3 {
					f := newPlain(t, make, listen)
					if round%2 == 0 {
						connect(t, f, n)
					} else {
						connect(t, n, f)
					}
					waitLinked(t, n, f)
					talk(t, n, f, fmt.Sprint(round))
					f.host.Close()
					hosttest.Eventually(t, "it is gone", func() bool { return n.sees() && n.gate.guestCount() == 0 })
				}
			})
		})
	}
}

// A peer that is connected before pubsub begins is classified as well.
func TestGateAdmitsGuestsFromBeforePubSub(t *testing.T) {
	t.Parallel()
	n := newBare(t, hosttest.TCP)
	n.admitByRecords(0, nil)
	f := newPlain(t, floodsub, hosttest.TCP)
	connect(t, f, n)
	hosttest.Eventually(t, "they know each other", func() bool { return n.gate.speaks(f.host.ID(), pubsub.FloodSubID) })
	n.begin()
	waitLinked(t, n, f)
	talk(t, n, f, "x")
}

// A peer that opens a pubsub stream without being known to speak pubsub is queried again.
func TestGateRechecksPeersThatOpenAStream(t *testing.T) {
	t.Parallel()
	n, f := newOpenTo(t, 0, hosttest.TCP), hosttest.NewScripted(t)
	f.Dial(n.host)
	f.Next()("/x")
	open(t, f, n, pubsub.FloodSubID)
	f.Next()("/x", pubsub.FloodSubID)
	hosttest.Eventually(t, "it is a guest", func() bool { return n.gate.guestCount() == 1 })
}

// A node is admitted only by its link, and by Open. A host may become a node, and cease
// to be one, while it is connected.
func TestGateDistinguishesNodesFromGuests(t *testing.T) {
	t.Parallel()
	n := newOpenTo(t, 0, hosttest.TCP)
	f := newPlain(t, floodsub, hosttest.TCP)
	f.node(true)
	connect(t, f, n)
	hosttest.Eventually(t, "they know each other", func() bool { return n.gate.speaks(f.host.ID(), nodeProtocol) })
	other := newPlain(t, floodsub, hosttest.TCP) // events before its own were handled before it
	connect(t, other, n)
	waitLinked(t, n, other)
	if !n.sees(other) {
		t.Error("a node that nobody has admitted is on the topic")
	}
	f.node(false)
	hosttest.Eventually(t, "it is a guest", func() bool { return n.sees(f, other) })
	f.node(true)
	hosttest.Eventually(t, "it is a node", func() bool { return n.sees(other) })
	n.gate.admit(f.host.ID())
	hosttest.Eventually(t, "it is admitted", func() bool { return n.sees(f, other) })
	n.gate.evict(f.host.ID())
	hosttest.Eventually(t, "it is evicted", func() bool { return n.sees(other) })
	n.records.OpenPubSub()
	hosttest.Eventually(t, "the gate is open", func() bool { return n.sees(f, other) })
	n.gate.admit(f.host.ID())
	n.gate.evict(f.host.ID())
	hosttest.Eventually(t, "the other side sees it too", func() bool { return f.sees(n) })
	f.publish("still")
	n.waitFor("still")
	if !n.sees(f, other) {
		t.Error("the end of a link removed an open gate's guest")
	}
}

// The number of guests is limited, and a free place goes to a waiting peer.
func TestGateBoundsGuests(t *testing.T) {
	t.Parallel()
	n := newOpenTo(t, 2, hosttest.TCP)
	var list []*gated
	for range 4 {
		f := newPlain(t, floodsub, hosttest.TCP)
		connect(t, f, n)
		hosttest.Eventually(t, "it is classified", func() bool {
			return n.records.TurnedAway()+uint64(n.gate.guestCount()) == uint64(len(list)+1)
		})
		list = append(list, f)
	}
	hosttest.Eventually(t, "the first two are in", func() bool { return n.sees(list[0], list[1]) })
	n.records.Spoke(list[3].host.ID(), peers.Abilities{PubSub: true})
	if n.records.TurnedAway() != 2 {
		t.Error("a peer that was turned away is counted again, though it has not disconnected")
	}
	list[0].host.Close()
	hosttest.Eventually(t, "another gets the place", func() bool { return n.sees(list[1], list[2]) || n.sees(list[1], list[3]) })
	n.records.OpenPubSub()
	hosttest.Eventually(t, "all are in", func() bool { return n.sees(list[1:]...) })

	none := newOpenTo(t, -1, hosttest.TCP)
	connect(t, list[3], none)
	hosttest.Eventually(t, "it is a guest", func() bool { return none.records.Standing(list[3].host.ID()).Role == peers.Guest })
	if none.gate.guestCount() != 0 || none.records.TurnedAway() != 0 {
		t.Errorf("%d guests where none are wanted, %d turned away", none.gate.guestCount(), none.records.TurnedAway())
	}
}

// Of two open gates either side may be the first: what it finds closed it tries again
// later, and at once when the other comes.
func TestGateOpensOneAfterTheOther(t *testing.T) {
	t.Parallel()
	a, b := newOpenTo(t, 0, hosttest.TCP), newOpenTo(t, 0, hosttest.TCP)
	b.gate.cfg.Wait = 10 * time.Millisecond
	for _, n := range []*gated{a, b} {
		n.node(true)
	}
	connect(t, a, b)
	a.records.OpenPubSub()
	hosttest.Eventually(t, "the pauses are long", func() bool {
		if a.gate.Stats().Reopened < 8 {
			return false
		}
		a.gate.mu.Lock()
		o := a.gate.peers[b.host.ID()].out
		a.gate.mu.Unlock()
		o.mu.Lock()
		defer o.mu.Unlock()
		return o.carrier == nil // and in the ninth
	})
	start := time.Now()
	b.records.OpenPubSub()
	waitLinked(t, a, b)
	// The pause after the eighth is 2.6 s long.
	if d := time.Since(start); d > time.Second {
		t.Errorf("the two saw each other after %v", d)
	}
	talk(t, a, b, "x")
}

// Whatever breaks the stream of a peer without a gate, both hear each other again:
// pubsub there forgets our topics with it, and they are announced to it anew.
func TestGateHealsGuests(t *testing.T) {
	t.Parallel()
	hosttest.OverTCPAndQUIC(t, func(t *testing.T, listen string) {
		n, f := newOpenTo(t, 0, listen), newPlain(t, floodsub, listen)
		connect(t, f, n)
		waitLinked(t, n, f)
		for round := range 4 { // pubsub there gives up after the fourth
			broken := 0
			for _, c := range n.host.Network().Conns() {
				for _, s := range c.GetStreams() {
					if s.Protocol() == pubsub.FloodSubID && s.Stat().Direction == network.DirInbound {
						s.Reset()
						broken++
					}
				}
			}
			if broken == 0 {
				t.Fatal("no stream to break")
			}
			talk(t, n, f, fmt.Sprint(round))
			waitLinked(t, n, f)
		}
	})
}

// A guest may send RPCs that are too large, as often as it likes.
func TestGateKeepsGuestsThatSendTooMuch(t *testing.T) {
	t.Parallel()
	n, f := newOpenTo(t, 0, hosttest.TCP), newPlain(t, floodsub, hosttest.TCP)
	connect(t, f, n)
	waitLinked(t, n, f)
	for round := range 6 {
		if err := f.topic.Publish(t.Context(), make([]byte, 1100<<10)); err != nil {
			t.Fatal(err)
		}
		f.publish("f %d", round)
		n.publish("n %d", round)
		n.waitFor("f %d", round)
		f.waitFor("n %d", round)
	}
	if st := n.gate.Stats(); st.Oversize != 6 {
		t.Errorf("%d were too large, want 6", st.Oversize)
	}
}

// A guest that reads nothing costs the others nothing.
func TestGateDoesNotWaitForAGuestThatReadsNothing(t *testing.T) {
	t.Parallel()
	n, f := newOpenTo(t, 0, hosttest.TCP), newPlain(t, floodsub, hosttest.TCP)
	connect(t, f, n)
	waitLinked(t, n, f)
	frozen := newUnadmittedHost(t, n)
	held := make(chan network.Stream, 16)
	frozen.SetStreamHandler(pubsub.FloodSubID, func(s network.Stream) { held <- s })
	s, err := frozen.NewStream(t.Context(), n.host.ID(), pubsub.FloodSubID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Write((&handmade{t: t}).hello()); err != nil {
		t.Fatal(err)
	}
	hosttest.Eventually(t, "it is on the topic", func() bool { return slices.Contains(n.topic.ListPeers(), frozen.ID()) })
	large := make([]byte, 256<<10)
	for i := 0; n.gate.Stats().Dropped == 0; i++ {
		if i == 1000 {
			t.Fatal("nothing was dropped")
		}
		n.publish("%d%s", i, large)
		n.publish("after %d", i)
		f.waitFor("after %d", i)
	}
	n.gate.mu.Lock()
	o := n.gate.peers[frozen.ID()].out
	n.gate.mu.Unlock()
	o.mu.Lock()
	defer o.mu.Unlock()
	if most := n.gate.cfg.MaxPending + 1<<20; o.queue.size > most {
		t.Errorf("%d bytes wait for it, at most %d should", o.queue.size, most)
	}
}

// A peer that is connected through a relay does not exist for pubsub, guest or not.
func TestGateIgnoresGuestsBehindARelay(t *testing.T) {
	t.Parallel()
	service := newBare(t, hosttest.TCP)
	r, err := relay.New(service.host)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	far, err := libp2p.New(libp2p.NoListenAddrs, libp2p.EnableRelay(), libp2p.ResourceManager(&network.NullResourceManager{}))
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	if _, err := pubsub.NewFloodSub(ctx, far); err != nil {
		t.Fatal(err)
	}
	at := peer.AddrInfo{ID: service.host.ID(), Addrs: service.host.Addrs()}
	if err := far.Connect(t.Context(), at); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Reserve(t.Context(), far, at); err != nil {
		t.Fatal(err)
	}
	dialer, err := libp2p.New(libp2p.NoListenAddrs, libp2p.EnableRelay(), libp2p.ResourceManager(&network.NullResourceManager{}))
	if err != nil {
		t.Fatal(err)
	}
	defer dialer.Close()
	identified := make(chan peer.ID, 10)
	n := gate(t, dialer, Config{})
	n.admitByRecords(0, identified)
	n.records.OpenPubSub()
	if _, err := pubsub.NewFloodSub(ctx, n.gate.Host()); err != nil {
		t.Fatal(err)
	}
	behind := service.host.Addrs()[0].Encapsulate(ma.StringCast(fmt.Sprintf("/p2p/%s/p2p-circuit", service.host.ID())))
	if err := dialer.Connect(t.Context(), peer.AddrInfo{ID: far.ID(), Addrs: []ma.Multiaddr{behind}}); err != nil {
		t.Fatal(err)
	}
	for p := range identified {
		if p == far.ID() && n.gate.speaks(p, pubsub.FloodSubID) {
			break
		}
	}
	if n.gate.guestCount() != 0 {
		t.Error("a peer behind a relay is a guest")
	}
	if s, err := far.NewStream(network.WithAllowLimitedConn(t.Context(), "test"), dialer.ID(), pubsub.FloodSubID); err == nil {
		if _, err = io.ReadAll(s); err == nil {
			t.Error("a pubsub stream through a relay was accepted")
		}
	}
}
