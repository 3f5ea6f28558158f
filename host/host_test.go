package host

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	golog "github.com/ipfs/go-log/v2"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/quic-go/quic-go"

	"github.com/go-smokesignal/smokesignal/internal/leaks"
)

// Some cases need a process of their own: what a host prints by default,
// another network. It is this test binary, with the name of the case in a
// variable.
const childEnv = "SMOKESIGNAL_HOST_CHILD"

var children = map[string]func(){
	"identity": childOpensIdentity,
	"quiet":    childProvokesErrors,
	"quic":     childUsesQUIC,
	"metrics":  childPrintsMetrics,
}

func init() {
	if name, ok := os.LookupEnv(childEnv); ok {
		if child, ok := children[name]; ok {
			child()
		} else {
			linuxChildren[name]()
		}
		os.Exit(0)
	}
}

// runChild returns what the child wrote to stdout and stderr. It must exit
// with 0. Variables about logging are only those given.
func runChild(t *testing.T, name string, attr *syscall.SysProcAttr, env ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.SysProcAttr = attr
	cmd.Env = slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return strings.HasPrefix(kv, "GOLOG_") || strings.HasPrefix(kv, "IPFS_LOGGING") || strings.HasPrefix(kv, "QUIC_GO_")
	})
	cmd.Env = append(append(cmd.Env, childEnv+"="+name), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

// newHost makes a host that closes with the test. Without listen texts it
// listens on loopback.
func newHost(t testing.TB, listen ...string) *Host {
	t.Helper()
	if len(listen) == 0 {
		listen = []string{"127.0.0.1:0"}
	}
	h, err := New(Config{Listen: listen})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

func listening(t testing.TB, listen ...string) *Host {
	t.Helper()
	h := newHost(t, listen...)
	if err := h.Listen(); err != nil {
		t.Fatal(err)
	}
	return h
}

// Another host can dial each address that Dialable returns, over each transport.
func TestEveryTransportCanBeDialed(t *testing.T) {
	h := listening(t, "127.0.0.1:0", "/ip4/127.0.0.1/tcp/0/ws", "/ip4/127.0.0.1/udp/0/quic-v1/webtransport", "/ip4/127.0.0.1/udp/0/webrtc-direct")
	var names []string
	for _, addr := range h.Dialable() {
		d := newHost(t)
		info, err := peer.AddrInfoFromP2pAddr(addr)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Host().Connect(t.Context(), *info); err != nil {
			t.Errorf("%v: %v", addr, err)
			continue
		}
		conn := d.Host().Network().ConnsToPeer(h.Host().ID())[0]
		names = append(names, conn.ConnState().Transport)
		if agent, err := d.Host().Peerstore().Get(h.Host().ID(), "AgentVersion"); agent != "smokesignal" {
			t.Errorf("user agent %v %v", agent, err)
		}
	}
	if want := []string{"tcp", "quic-v1", "websocket", "webtransport", "webrtc-direct"}; !slices.Equal(names, want) {
		t.Errorf("connected by %q, want %q", names, want)
	}
}

// Before Listen the host has its id and its event bus, and no addresses.
func TestIDAndBusWorkBeforeListen(t *testing.T) {
	h := newHost(t)
	if h.Host().ID().Validate() != nil || len(h.Dialable()) != 0 || len(h.Host().Network().ListenAddresses()) != 0 {
		t.Errorf("id %q, dialable %v, listening on %v", h.Host().ID(), h.Dialable(), h.Host().Network().ListenAddresses())
	}
	sub, err := h.Host().EventBus().Subscribe(new(event.EvtLocalAddressesUpdated))
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	if err := h.Listen(); err != nil {
		t.Fatal(err)
	}
	<-sub.Out()
	if err := h.Listen(); !errors.Is(err, errListening) {
		t.Errorf("second Listen: %v", err)
	}
}

// A host made with a key has the id of that key.
func TestKeyIsTheIdentity(t *testing.T) {
	key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	want, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // also twice in one process
		h, err := New(Config{Key: key})
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		if h.Host().ID() != want {
			t.Errorf("id %s, want %s", h.Host().ID(), want)
		}
	}
}

// A goroutine left behind would show here, whatever state the host was in.
func TestCloseLeavesNothing(t *testing.T) {
	noneLeft := leaks.Watch(t)
	all := []string{"127.0.0.1:0", "/ip4/127.0.0.1/tcp/0/ws", "/ip4/127.0.0.1/udp/0/quic-v1/webtransport", "/ip4/127.0.0.1/udp/0/webrtc-direct"}
	for name, use := range map[string]func(h *Host){
		"new":    func(h *Host) {},
		"listen": func(h *Host) { h.Listen() },
		"failed listen": func(h *Host) {
			h.requests = append(h.requests, listenRequest{text: "x", ip: testNet(), kinds: plain})
			if h.Listen() == nil {
				t.Error("listening on an address that is not ours")
			}
		},
		"connected": func(h *Host) {
			h.Listen()
			d := newHost(t)
			for _, a := range h.Dialable() {
				info, _ := peer.AddrInfoFromP2pAddr(a)
				if err := d.Host().Connect(network.WithForceDirectDial(t.Context(), "test"), *info); err != nil {
					t.Error(err)
				}
			}
			d.Close()
		},
	} {
		h, err := New(Config{Listen: all})
		if err != nil {
			t.Fatal(err)
		}
		use(h)
		var wg sync.WaitGroup
		for range 4 { // several calls at once are one
			wg.Go(func() {
				if err := h.Close(); err != nil {
					t.Errorf("%s: Close: %v", name, err)
				}
			})
		}
		wg.Wait()
		if err := h.Listen(); !errors.Is(err, ErrClosed) {
			t.Errorf("%s: Listen after Close: %v", name, err)
		}
	}
	noneLeft()
}

// childPrintsMetrics is a process of its own because other tests may use
// libp2p.New, which does register them.
func childPrintsMetrics() {
	h, err := New(Config{Listen: []string{"127.0.0.1:0"}})
	if err != nil {
		panic(err)
	}
	defer h.Close()
	if err := h.Listen(); err != nil {
		panic(err)
	}
	families, err := prometheus.DefaultGatherer.Gather()
	if err != nil {
		panic(err)
	}
	for _, f := range families {
		fmt.Println(f.GetName())
	}
}

// No libp2p metric is registered with the application's default registry.
func TestNoGlobalMetrics(t *testing.T) {
	out := runChild(t, "metrics", nil)
	if !strings.Contains(out, "go_goroutines") {
		t.Errorf("not even the registry's own metrics: %s", out)
	}
	for name := range strings.Lines(out) {
		if strings.HasPrefix(name, "libp2p") {
			t.Errorf("registered with the application's registry: %s", name)
		}
	}
}

// failingKey cannot sign any more, which libp2p logs as an error.
type failingKey struct {
	crypto.PrivKey
	fail atomic.Bool
}

func (k *failingKey) Sign(b []byte) ([]byte, error) {
	if k.fail.Load() {
		return nil, errors.New("no ink")
	}
	return k.PrivKey.Sign(b)
}

func childProvokesErrors() {
	if os.Getenv("APP") == "go-log" {
		golog.SetLogLevel("*", "error")
	}
	inner, err := newKey()
	if err != nil {
		panic(err)
	}
	key := &failingKey{PrivKey: inner}
	h, err := New(Config{Key: key, Listen: []string{"127.0.0.1:0"}})
	if err != nil {
		panic(err)
	}
	key.fail.Store(true)
	if err := h.Listen(); err != nil {
		panic(err)
	}
	h.log.Error("ours")
	h.Close()
	// libp2p complains of a listener that was closed, now and then.
	for range 50 {
		h, err := New(Config{Listen: []string{"127.0.0.1:0", "/ip4/127.0.0.1/tcp/0/ws"}})
		if err != nil {
			panic(err)
		}
		if err := h.Listen(); err != nil {
			panic(err)
		}
		h.Close()
	}
}

// Nothing is logged unless the environment asks for it.
func TestQuietUnlessAsked(t *testing.T) {
	const libp2p, ours = "error creating a signed peer record", "ours"
	for _, tt := range []struct {
		env          []string
		want, unwant []string
	}{
		{nil, nil, nil}, // not a byte
		{[]string{"GOLOG_LOG_LEVEL=error"}, []string{libp2p, ours}, []string{"listening"}},
		{[]string{"GOLOG_LOG_LEVEL=error,smokesignal/host=debug"}, []string{libp2p, ours, "listening"}, nil},
		{[]string{"APP=go-log"}, []string{libp2p, ours}, []string{"listening"}},
	} {
		t.Run(strings.Join(tt.env, " "), func(t *testing.T) {
			t.Parallel()
			out := runChild(t, "quiet", nil, tt.env...)
			if tt.env == nil && out != "" {
				t.Errorf("uninvited:\n%s", out)
			}
			for _, want := range tt.want {
				if !strings.Contains(out, want) {
					t.Errorf("%q is missing in\n%s", want, out)
				}
			}
			for _, unwant := range tt.unwant {
				if strings.Contains(out, unwant) {
					t.Errorf("%q is in\n%s", unwant, out)
				}
			}
		})
	}
}

// A host with a logger of its own logs there.
func TestLogsToTheGivenLogger(t *testing.T) {
	var b bytes.Buffer
	h, err := New(Config{Listen: []string{"127.0.0.1:0"}, Log: slog.New(slog.NewTextHandler(&b, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := h.Listen(); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(b.String(), "listening") || !strings.Contains(b.String(), h.Host().ID().String()) {
		t.Errorf("logged %q", b.String())
	}
}

// childUsesQUIC makes quic-go say what it says when it cannot have the UDP
// buffers it wants. Whether it can depends on the machine, but not for a socket
// that cannot be asked.
func childUsesQUIC() {
	if os.Getenv("NEW") != "" {
		h, err := New(Config{Listen: []string{"127.0.0.1:0"}})
		if err != nil {
			panic(err)
		}
		defer h.Close()
	}
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	tr := quic.Transport{Conn: struct{ net.PacketConn }{c}}
	tr.WriteTo([]byte{0}, c.LocalAddr())
	tr.Close()
}

// The warning of quic-go about small buffers does not reach standard error.
func TestNoWarningAboutBuffers(t *testing.T) {
	if out := runChild(t, "quic", nil); !strings.Contains(out, "receive buffer") {
		t.Fatalf("quic-go does not warn any more, so this test shows nothing: %q", out)
	}
	if out := runChild(t, "quic", nil, "NEW=1"); out != "" {
		t.Errorf("uninvited: %s", out)
	}
}

// The warning of quic-go is logged at debug level.
func TestSmallBuffersAreLogged(t *testing.T) {
	var b bytes.Buffer
	h, err := New(Config{Listen: []string{"127.0.0.1:0"}, Log: slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := h.Listen(); err != nil {
		t.Fatal(err)
	}
	c := h.sockets.listening()[0].(*net.UDPConn)
	if _, ok := receiveBuffer(c); !ok {
		t.Skip("the system does not report it")
	}
	b.Reset()
	if err := c.SetReadBuffer(64 << 10); err != nil {
		t.Fatal(err)
	}
	h.logBuffers()
	if got := b.String(); !strings.Contains(got, "level=DEBUG") || !strings.Contains(got, c.LocalAddr().String()) {
		t.Errorf("logged %q", got)
	}
}

func BenchmarkNewListenClose(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		h, err := New(Config{Listen: []string{"127.0.0.1:0"}})
		if err != nil {
			b.Fatal(err)
		}
		if err := h.Listen(); err != nil {
			b.Fatal(err)
		}
		h.Close()
	}
}
