package discovery

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	mocknet "github.com/libp2p/go-libp2p/p2p/net/mock"

	"github.com/go-smokesignal/smokesignal/discovery/internal/overlay"
)

// linkedPair returns two linked nodes over QUIC. A closed QUIC port answers nothing, so a dial to
// a node that is gone takes as long as it may.
func linkedPair(t *testing.T) (a, b *tester) {
	t.Helper()
	const quic = "/ip4/127.0.0.1/udp/0/quic-v1"
	a = newTester(t, testConfig{max: 5, listen: quic})
	b = newTester(t, testConfig{min: 1, max: 5, listen: quic, seeds: []string{a.addr()}})
	a.d.Start()
	b.d.Start()
	a.until("link", a.hasLinks(1))
	b.until("link", b.hasLinks(1))
	return a, b
}

// closeHost closes the host of a node that goes on, as when its process dies, and waits until the
// other node has lost the connection.
func (x *tester) closeHost(other *tester) {
	x.Helper()
	x.d.host.Close()
	for deadline := time.Now().Add(15 * time.Second); len(other.d.host.Network().ConnsToPeer(x.d.host.ID())) > 0; {
		if time.Now().After(deadline) {
			x.Fatal("the connection was not lost within 15 s")
		}
		time.Sleep(time.Millisecond)
	}
}

// wantQuickClose closes the driver, which must take much less than the longest wait for a peer.
func (x *tester) wantQuickClose() {
	x.Helper()
	began := time.Now()
	x.d.Close()
	if took := time.Since(began); took > leaveTimeout/2 {
		x.Errorf("Close took %v", took)
	}
}

// The peer has said farewell and is gone, and a message to it is still being sent.
func TestCloseDoesNotWaitForAPeerThatClosedBefore(t *testing.T) {
	t.Parallel()
	a, b := linkedPair(t)
	at := a.d.host.Addrs()
	a.wantQuickClose()
	b.until("farewell", b.hasLine("the node was closed"))
	a.closeHost(b)
	b.d.ask(t.Context(), func() {
		b.d.send(overlay.Contact{ID: a.d.host.ID(), Addrs: at}, overlay.Shuffle{})
	})
	b.wantQuickClose()
}

// The connection of a link is lost, and Close begins before the driver has noticed.
func TestCloseDoesNotWaitForAPeerThatIsGone(t *testing.T) {
	t.Parallel()
	a, b := linkedPair(t)
	b.d.ask(t.Context(), func() {
		a.closeHost(b)
		b.d.leaveAll() // before the loop hears of the lost connection
	})
	b.wantQuickClose()
	a.d.Close()
}

// The streams of mocknet ignore deadlines, so only a reset ends a read.
func TestCloseEndsStreamsWithoutDeadlines(t *testing.T) {
	t.Parallel()
	mock := mocknet.New()
	defer mock.Close()
	nodes := make([]*tester, 3)
	for i := range nodes {
		h, err := mock.GenPeer()
		if err != nil {
			t.Fatal(err)
		}
		nodes[i] = newTester(t, testConfig{min: 2, max: 5, host: h})
	}
	if err := mock.LinkAll(); err != nil {
		t.Fatal(err)
	}
	for _, x := range nodes {
		x.d.Start()
	}
	for _, x := range nodes[1:] {
		for _, other := range nodes {
			if other != x {
				x.d.learn(overlay.Contact{ID: other.d.host.ID(), Addrs: other.d.host.Addrs()})
			}
		}
	}
	for _, x := range nodes {
		x.until("links", x.hasLinks(2))
	}
	for _, x := range nodes {
		x.wantQuickClose()
	}
}

// A dial that a caller waits for ends at Close, and Close waits for it.
func TestCloseEndsTheDialsOfItsCallers(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // says nothing to whoever connects
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for name, dial := range map[string]func(d *Driver, at string) error{
		"dial": func(d *Driver, at string) error {
			_, err := d.dial(context.Background(), mustParse(t, at), nil)
			return err
		},
		"Connect": func(d *Driver, at string) error {
			_, err := d.Connect(context.Background(), at)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			x := newTester(t, testConfig{max: 5})
			x.d.Start()
			result := make(chan error, 1)
			go func() { result <- dial(x.d, silent.Addr().String()) }()
			c, err := silent.Accept() // the dial is under way
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			x.d.Close()
			if err := <-result; !errors.Is(err, ErrClosed) {
				t.Errorf("under way at Close: %v", err)
			}
			if err := dial(x.d, silent.Addr().String()); !errors.Is(err, ErrClosed) {
				t.Errorf("after Close: %v", err)
			}
		})
	}
}
