// Package hosttest helps tests that need a libp2p host as an application makes it.
package hosttest

import (
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
)

// TCP and QUIC are loopback addresses with a free port, for libp2p.ListenAddrStrings.
const (
	TCP  = "/ip4/127.0.0.1/tcp/0"
	QUIC = "/ip4/127.0.0.1/udp/0/quic-v1"
)

// New returns a host that closes with the test. It listens nowhere unless an option
// says so, is not a relay, and registers no metrics.
func New(t testing.TB, opts ...libp2p.Option) host.Host {
	t.Helper()
	h, err := libp2p.New(append([]libp2p.Option{libp2p.NoListenAddrs, libp2p.DisableRelay(), libp2p.DisableMetrics()}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

// Eventually waits until ok returns true, and fails the test after 20 s. It polls,
// since some states of libp2p and pubsub can only be asked for.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// OverTCPAndQUIC runs the test once with each transport's listen address.
func OverTCPAndQUIC(t *testing.T, test func(t *testing.T, listen string)) {
	t.Run("tcp", func(t *testing.T) { test(t, TCP) })
	t.Run("quic", func(t *testing.T) { test(t, QUIC) })
}
