// Package hosttest helps tests that need a libp2p host that was not made by this library.
package hosttest

import (
	"flag"
	"fmt"
	"net"
	"sync/atomic"
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

// Eventually calls ok every 2 ms until it returns true, and fails the test after 60 s. what
// says in its message what was awaited. Eventually polls, because libp2p and pubsub do not
// report changes of some of their state.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(60 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("not within 60 s: %s", what)
		}
	}
}

// OverTCPAndQUIC runs the test with each transport's listen address, in two parallel
// subtests.
func OverTCPAndQUIC(t *testing.T, test func(t *testing.T, listen string)) {
	for name, listen := range map[string]string{"tcp": TCP, "quic": QUIC} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, listen)
		})
	}
}

// Main runs the tests of a package and returns the exit code, for TestMain. At most 12
// parallel tests run at the same time, unless the flag -parallel is given. That is more than
// there are cores, because these tests wait for timers most of the time.
func Main(m *testing.M) (code int) {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		flag.Set("test.parallel", "12")
	}
	return m.Run()
}

var nextPort atomic.Int32

// FreePort returns a port of the loopback interface that is free for TCP and UDP. The
// port is below the range from which the system takes ports by itself, so a node that
// is started again finds it free.
func FreePort(t testing.TB) int {
	t.Helper()
	nextPort.CompareAndSwap(0, 20000+int32(time.Now().UnixNano()%8000))
	for range 1000 {
		port := int(nextPort.Add(1))
		tcp, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		tcp.Close()
		udp, err := net.ListenPacket("udp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		udp.Close()
		return port
	}
	t.Fatal("no port is free for both TCP and UDP")
	return 0
}

// FreeAddress returns 127.0.0.1 with a port from FreePort, as the option Listen takes it.
func FreeAddress(t testing.TB) string {
	t.Helper()
	return fmt.Sprintf("127.0.0.1:%d", FreePort(t))
}
