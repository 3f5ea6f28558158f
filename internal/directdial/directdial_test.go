package directdial_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/test"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/internal/bubble"
	"github.com/go-smokesignal/smokesignal/internal/directdial"
)

var errTestClosed = errors.New("closed by the test")

// manyPeers returns peers that cannot be reached, with so many addresses each that the swarm
// is busy for a while to choose among them.
func manyPeers(t *testing.T, n int) []peer.AddrInfo {
	t.Helper()
	var addrs []ma.Multiaddr
	for port := range 100 {
		addrs = append(addrs, ma.StringCast(fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", 1+port)))
	}
	peers := make([]peer.AddrInfo, n)
	for i := range peers {
		id, err := test.RandPeerID()
		if err != nil {
			t.Fatal(err)
		}
		peers[i] = peer.AddrInfo{ID: id, Addrs: addrs}
	}
	return peers
}

// Without the guard, or without its settle time, the swarm panics in one of about a hundred
// rounds, which ends the program.
func TestASwarmCanBeClosedAfterForcedDials(t *testing.T) {
	peers := manyPeers(t, 40)
	for round := range 60 {
		h, err := libp2p.New(libp2p.NoListenAddrs, libp2p.DisableIdentifyAddressDiscovery())
		if err != nil {
			t.Fatal(err)
		}
		guard := directdial.New()
		var dials sync.WaitGroup
		for _, p := range peers {
			dials.Go(func() { connect(t.Context(), guard, h, p) })
		}
		// Close comes at another moment of the dials in each round.
		time.Sleep(time.Duration(round%20) * 50 * time.Microsecond)
		guard.Close(errTestClosed)
		if err := h.Close(); err != nil {
			t.Error(err)
		}
		dials.Wait()
	}
}

func connect(ctx context.Context, guard *directdial.Dials, h corehost.Host, p peer.AddrInfo) {
	dial, end, err := guard.Begin(network.WithForceDirectDial(ctx, "test"), directdial.Forced)
	if err != nil {
		return // Close was first
	}
	defer end()
	h.Connect(dial, p)
}

// Close cancels the running dials and waits until they have ended.
func TestCloseEndsDialsAndWaitsForThem(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		guard := directdial.New()
		dial, end, err := guard.Begin(t.Context(), directdial.Plain)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			<-dial.Done()
			time.Sleep(time.Second)
			end()
		}()
		began := time.Now()
		guard.Close(errTestClosed)
		if took := time.Since(began); took != time.Second {
			t.Errorf("Close took %v", took)
		}
		if cause := context.Cause(dial); cause != errTestClosed {
			t.Errorf("the dial ended with %v", cause)
		}
		if _, _, err := guard.Begin(t.Context(), directdial.Plain); err != errTestClosed {
			t.Errorf("a dial after Close: %v", err)
		}
	})
}

// Close waits one second after a forced dial, and not after a plain one.
func TestCloseWaitsAMomentAfterAForcedDialOnly(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		for kind, ago := range map[directdial.Directness]time.Duration{directdial.Plain: 0, directdial.Forced: time.Second} {
			guard := directdial.New()
			_, end, _ := guard.Begin(t.Context(), kind)
			end()
			time.Sleep(ago)
			began := time.Now()
			guard.Close(errTestClosed)
			if took := time.Since(began); took != 0 {
				t.Errorf("Close took %v", took)
			}
		}
		guard := directdial.New()
		_, end, _ := guard.Begin(t.Context(), directdial.Forced)
		end()
		began := time.Now()
		guard.Close(errTestClosed)
		if time.Since(began) == 0 {
			t.Error("Close did not wait for the swarm")
		}
	})
}
