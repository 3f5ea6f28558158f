package integration_test

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal"
)

// The JavaScript package of js against our nodes. .ci/run installs what these tests need
// and sets SMOKESIGNAL_JS to say so.

// A jsLeaf is a process that runs js/test/live.js.
type jsLeaf struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.Closer
	lines chan string // of its standard output
	id    smokesignal.ID
}

const (
	jsDir  = "../js"
	webDir = "../examples/web"
)

// needsJS skips the test if Node 22 or the packages of js and examples/web are missing.
func needsJS(t *testing.T) {
	t.Helper()
	needs(t, long)
	if os.Getenv("SMOKESIGNAL_JS") == "" {
		cannot(t, errors.New("SMOKESIGNAL_JS does not say that Node 22 and the packages of js and examples/web are installed, see .ci/run"))
	}
}

// nodeCommand returns a command that runs a program with Node 22 in the directory dir.
func nodeCommand(dir string, args ...string) *exec.Cmd {
	cmd := exec.Command(cmp.Or(os.Getenv("SMOKESIGNAL_NODE"), "node"), args...)
	cmd.Dir = dir
	return cmd
}

type jsConfig struct {
	Addrs   []string `json:"addrs,omitempty"`
	Ticket  string   `json:"ticket,omitempty"`
	Network string   `json:"network,omitempty"`
	Pubsub  string   `json:"pubsub,omitempty"`

	NoMonitor bool `json:"noMonitor,omitempty"` // turns libp2p's own pings off
}

// startLeaf starts a leaf and waits until it is connected.
func startLeaf(t *testing.T, cfg jsConfig) *jsLeaf {
	t.Helper()
	arg, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l := &jsLeaf{t: t, lines: make(chan string, 100)}
	l.cmd = nodeCommand(jsDir, "test/live.js", string(arg))
	l.cmd.Stderr = t.Output()
	if l.stdin, err = l.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := l.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(l.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			l.lines <- s.Text()
		}
	}()
	t.Cleanup(func() {
		l.stdin.Close()
		kill := time.AfterFunc(20*time.Second, func() { l.cmd.Process.Kill() })
		defer kill.Stop()
		for range l.lines {
		}
		if err := l.cmd.Wait(); err != nil {
			t.Errorf("the leaf ended with %v", err)
		}
	})
	id, err := peer.Decode(strings.TrimPrefix(l.line("ready "), "ready "))
	if err != nil {
		t.Fatal(err)
	}
	l.id = id
	return l
}

// line waits for the next line that begins with prefix, and returns it.
func (l *jsLeaf) line(prefix string) string {
	l.t.Helper()
	timeout := time.After(30 * time.Second)
	for {
		select {
		case line, ok := <-l.lines:
			if !ok {
				l.t.Fatalf("the leaf ended before it said %q", prefix)
			}
			if strings.HasPrefix(line, prefix) {
				return line
			}
		case <-timeout:
			l.t.Fatalf("the leaf does not say %q", prefix)
		}
	}
}

// webNode returns a node that listens for TCP, WebSocket and WebRTC-direct.
func webNode(t *testing.T, opts ...smokesignal.Option) *smokesignal.Node {
	t.Helper()
	return newNode(t, append([]smokesignal.Option{smokesignal.Listen(webListen...), smokesignal.Network("js")}, opts...)...)
}

var webListen = []string{"/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/tcp/0/ws", "/ip4/127.0.0.1/udp/0/webrtc-direct"}

// gossipNode returns such a node on the host and the gossipsub of an application.
func gossipNode(t *testing.T, opts ...smokesignal.Option) *smokesignal.Node {
	t.Helper()
	h := rawHost(t, libp2p.ListenAddrStrings(webListen...))
	lent := smokesignal.WithPubSub(lentPubSub(t, h, pubsub.NewGossipSub))
	return newNode(t, append([]smokesignal.Option{smokesignal.WithHost(h), lent, smokesignal.Network("js")}, opts...)...)
}

func newNode(t *testing.T, opts ...smokesignal.Option) *smokesignal.Node {
	t.Helper()
	node, err := smokesignal.New(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { node.Close() })
	return node
}

func startNode(t *testing.T, node *smokesignal.Node) {
	t.Helper()
	if err := node.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// addrsOver returns the addresses of a node over one transport.
func addrsOver(t *testing.T, node *smokesignal.Node, over string) (list []string) {
	t.Helper()
	for _, a := range node.Addrs() {
		_, ws := a.ValueForProtocol(ma.P_WS)
		_, rtc := a.ValueForProtocol(ma.P_WEBRTC_DIRECT)
		if map[string]bool{"tcp": ws != nil && rtc != nil, "ws": ws == nil, "webrtc-direct": rtc == nil}[over] {
			list = append(list, a.String())
		}
	}
	if len(list) == 0 {
		t.Fatalf("no address over %s: %v", over, node.Addrs())
	}
	return list
}

var jsPayloads = map[string][]byte{
	"text":        []byte("grüße"),
	"NUL and 255": {0, 1, 0xff, 0xfe, 0},
	"empty":       {},
	"100 kB":      bytes.Repeat([]byte("0123456789"), 10_000),
}

// Over each transport and with each pubsub, a leaf takes part in broadcasts, direct events and
// calls, both ways, and in raw topics. The node has its own host, or runs on an application's
// gossipsub.
func TestJSMatrix(t *testing.T) {
	needsJS(t)
	for name, newNode := range map[string]func(*testing.T, ...smokesignal.Option) *smokesignal.Node{
		"": webNode, ", at a gossipsub in Go": gossipNode,
	} {
		for _, ps := range []string{"floodsub", "gossipsub"} {
			for _, over := range []string{"tcp", "ws", "webrtc-direct"} {
				t.Run(ps+" over "+over+name, func(t *testing.T) { jsCell(t, newNode(t), ps, over) })
			}
		}
	}
}

func jsCell(t *testing.T, node *smokesignal.Node, ps, over string) {
	pongs := make(chan pong, 100)
	receive := func(ctx context.Context, ev *smokesignal.Event) {
		p := pong{from: ev.From}
		if err := ev.Decode(&p.id, &p.data); err != nil {
			t.Errorf("pong: %v", err)
		}
		pongs <- p
	}
	node.Broadcast().On("pong", receive)
	node.Direct().On("pong", receive)
	node.Direct().Handle("echo", func(_ context.Context, ev *smokesignal.Event) ([]any, error) {
		data, _ := ev.Bytes(0)
		return []any{data}, nil
	})
	raw, back := rawTopic(t, node)
	startNode(t, node)
	leaf := startLeaf(t, jsConfig{Addrs: addrsOver(t, node, over), Network: "js", Pubsub: ps})
	if err := raw.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	awaitMesh(t, raw, back)
	at := node.Peer(leaf.id)
	for name, data := range jsPayloads {
		for channel, to := range map[string]smokesignal.Emitter{"broadcast": node.Broadcast(), "direct": at} {
			id := channel + " " + name
			if err := to.Emit(t.Context(), "ping", id, data); err != nil {
				t.Fatalf("%s: %v", id, err)
			}
			select {
			case p := <-pongs:
				if p.from != leaf.id || p.id != id || !bytes.Equal(p.data, data) {
					t.Errorf("%s came back as %q with %d bytes from %s", id, p.id, len(p.data), p.from)
				}
			case <-time.After(10 * time.Second):
				t.Fatalf("%s does not come back", id)
			}
		}
		if err := raw.Publish(t.Context(), data); err != nil {
			t.Fatalf("raw %s: %v", name, err)
		}
		select {
		case got := <-back:
			if !bytes.Equal(got, append([]byte{rawMark}, data...)) {
				t.Errorf("raw %s came back with %d bytes", name, len(got))
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("raw %s does not come back", name)
		}
		for _, call := range []string{"echo", "ask"} { // and the leaf asks us
			ev, err := at.Call(t.Context(), call, data)
			if err != nil {
				t.Fatalf("%s %s: %v", call, name, err)
			}
			if got, ok := ev.Bytes(0); !ok || !bytes.Equal(got, data) {
				t.Errorf("%s %s came back with %d bytes", call, name, len(got))
			}
		}
	}
	if _, err := at.Call(t.Context(), "fail"); fmt.Sprint(err) == "" || !strings.Contains(err.Error(), "as it was told") {
		t.Errorf("a handler that fails: %v", err)
	}
	var name string
	if ev, err := at.Call(t.Context(), "ask nobody"); err != nil || ev.Decode(&name) != nil || name != "NoHandlerError" {
		t.Errorf("a call without a handler: %v, %q", err, name)
	}
}

// awaitMesh publishes on the raw topic until the leaf answers, because two gossipsubs have no
// mesh at first.
func awaitMesh(t *testing.T, raw *smokesignal.Topic, back <-chan []byte) {
	t.Helper()
	hello := []byte("hello")
	for heard, deadline := false, time.Now().Add(30*time.Second); ; {
		if !heard {
			if err := raw.Publish(t.Context(), hello); err != nil {
				t.Fatal(err)
			}
		}
		select {
		case got := <-back:
			if heard = true; !bytes.Equal(got, append([]byte{rawMark}, hello...)) {
				t.Fatalf("%q came back", got)
			}
		case <-time.After(500 * time.Millisecond):
			if heard {
				return // late copies have arrived, too
			}
			if time.Now().After(deadline) {
				t.Fatal("nothing comes back on the raw topic")
			}
		}
	}
}

// rawMark is the byte that the leaf puts before the data that it sends back on the raw topic.
const rawMark = 0x40

func rawTopic(t *testing.T, node *smokesignal.Node) (*smokesignal.Topic, <-chan []byte) {
	t.Helper()
	raw, err := node.Topic("raw topic")
	if err != nil {
		t.Fatal(err)
	}
	back := make(chan []byte, 10)
	raw.On(func(_ context.Context, _ smokesignal.ID, data []byte) { back <- data })
	return raw, back
}

type pong struct {
	from smokesignal.ID
	id   string
	data []byte
}

// counter counts the numbers that a node receives, and those that are out of order.
type counter struct {
	mu          sync.Mutex
	next, wrong int
	done        chan struct{} // closed when all have arrived
	all         int
}

func newCounter(node *smokesignal.Node, all int) *counter {
	c := &counter{done: make(chan struct{}), all: all}
	node.Broadcast().On("tally", func(_ context.Context, ev *smokesignal.Event) {
		c.mu.Lock()
		defer c.mu.Unlock()
		var n int
		if ev.Decode(&n) != nil || n != c.next {
			c.wrong++
		}
		if c.next++; c.next == c.all {
			close(c.done)
		}
	})
	return c
}

// want fails the test if numbers are missing or out of order.
func (c *counter) want(t *testing.T) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.next != c.all || c.wrong > 0 {
		t.Errorf("%d of %d arrived, %d of them out of order", c.next, c.all, c.wrong)
	}
}

// counted waits until a leaf has counted that many events, and fails the test if events were
// lost or out of order.
func counted(t *testing.T, node *smokesignal.Node, leaf *jsLeaf, want int) {
	t.Helper()
	var got struct{ Next, Wrong, Lost, Repaired int }
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		ev, err := node.Peer(leaf.id).Call(t.Context(), "counted")
		if err != nil {
			t.Fatal(err)
		}
		if err := ev.Decode(&got); err != nil {
			t.Fatal(err)
		}
		if got.Next >= want || time.Now().After(deadline) {
			break
		}
	}
	if got.Next != want || got.Wrong > 0 || got.Lost > 0 {
		t.Errorf("the leaf has counted %+v of %d", got, want)
	}
}

// The connection of a leaf is cut while events are sent. The leaf dials again, and receives
// the events that it has missed. The events that it has sent meanwhile arrive, too.
func TestJSCut(t *testing.T) {
	needsJS(t)
	const many = 3000
	near, far := webNode(t), webNode(t)
	tally := newCounter(far, many)
	startNode(t, near)
	startNode(t, far)
	if _, err := far.Connect(t.Context(), addrsOver(t, near, "tcp")[0]); err != nil {
		t.Fatal(err)
	}
	leaf := startLeaf(t, jsConfig{Addrs: addrsOver(t, near, "tcp"), Network: "js"})
	if _, err := near.Peer(leaf.id).Call(t.Context(), "burst slowly", many); err != nil {
		t.Fatal(err)
	}
	for i := range many {
		if i == many/3 {
			if err := near.Host().Network().ClosePeer(leaf.id); err != nil {
				t.Fatal(err)
			}
			leaf.line("disconnected")
		}
		if i == 2*many/3 {
			leaf.line("connected")
		}
		if err := far.Broadcast().Emit(t.Context(), "count", i); err != nil {
			t.Fatal(err)
		}
	}
	counted(t, near, leaf, many)
	select {
	case <-tally.done:
	case <-time.After(time.Minute):
	}
	tally.want(t)
}

// A stream of pubsub breaks and the connection stays, which no pubsub in JavaScript repairs.
// The leaf notices and dials again. Nothing is missed on either side.
func TestJSStreamBreaks(t *testing.T) {
	needsJS(t)
	for name, which := range map[string]network.Direction{"the node's": network.DirOutbound, "the leaf's": network.DirInbound} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const many = 100
			node := webNode(t)
			tally := newCounter(node, many)
			startNode(t, node)
			leaf := startLeaf(t, jsConfig{Addrs: addrsOver(t, node, "tcp"), Network: "js"})
			broken := 0
			for _, c := range node.Host().Network().ConnsToPeer(leaf.id) {
				for _, s := range c.GetStreams() {
					if s.Protocol() == pubsub.FloodSubID && s.Stat().Direction == which {
						s.Reset()
						broken++
					}
				}
			}
			if broken != 1 {
				t.Fatalf("%d streams were there", broken)
			}
			for i := range many {
				if err := node.Broadcast().Emit(t.Context(), "count", i); err != nil {
					t.Fatal(err)
				}
			}
			leaf.line("disconnected")
			leaf.line("connected")
			if _, err := node.Peer(leaf.id).Call(t.Context(), "burst", many); err != nil {
				t.Fatal(err)
			}
			counted(t, node, leaf, many)
			select {
			case <-tally.done:
			case <-time.After(time.Minute):
			}
			tally.want(t)
		})
	}
}

// 10,000 events go from a node over another one to a leaf, and from the leaf to both,
// as fast as they can be emitted. All of them arrive in order.
func TestJSBurst(t *testing.T) {
	needsJS(t)
	const many = 10_000
	for _, ps := range []string{"floodsub", "gossipsub"} {
		t.Run(ps, func(t *testing.T) {
			near, far := webNode(t), webNode(t)
			counts := []*counter{newCounter(near, many), newCounter(far, many)}
			startNode(t, near)
			startNode(t, far)
			if _, err := far.Connect(t.Context(), addrsOver(t, near, "tcp")[0]); err != nil {
				t.Fatal(err)
			}
			leaf := startLeaf(t, jsConfig{Addrs: addrsOver(t, near, "ws"), Network: "js", Pubsub: ps})
			start := time.Now()
			for i := range many {
				if err := far.Broadcast().Emit(t.Context(), "count", i); err != nil {
					t.Fatal(err)
				}
			}
			counted(t, near, leaf, many)
			t.Logf("%d events to the leaf: %v", many, time.Since(start).Round(time.Millisecond))
			start = time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if _, err := near.Peer(leaf.id).Call(ctx, "burst", many); err != nil {
				t.Fatal(err)
			}
			for _, c := range counts {
				select {
				case <-c.done:
				case <-ctx.Done():
				}
				c.want(t)
			}
			t.Logf("%d events from the leaf: %v", many, time.Since(start).Round(time.Millisecond))
		})
	}
}
