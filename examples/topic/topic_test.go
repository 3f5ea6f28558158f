package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	corehost "github.com/libp2p/go-libp2p/core/host"

	"github.com/go-smokesignal/smokesignal/internal/outputtest"
)

// app is an application that knows nothing of smokesignal: a host, gossipsub, a topic.
type app struct {
	t    *testing.T
	host corehost.Host
	ps   *pubsub.PubSub
	room *pubsub.Topic
	sub  *pubsub.Subscription
}

func newApp(t *testing.T) *app {
	t.Helper()
	h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	a := &app{t: t, host: h}
	if a.ps, err = pubsub.NewGossipSub(t.Context(), h, pubsub.WithValidateWorkers(1)); err != nil { // more reorder
		t.Fatal(err)
	}
	if a.room, err = a.ps.Join("room"); err != nil {
		t.Fatal(err)
	}
	if a.sub, err = a.room.Subscribe(pubsub.WithBufferSize(1 << 12)); err != nil {
		t.Fatal(err)
	}
	return a
}

// addr is where the app listens, without its id.
func (a *app) addr() string {
	text := a.host.Addrs()[0].String() // /ip4/127.0.0.1/tcp/PORT
	return "127.0.0.1:" + text[strings.LastIndex(text, "/")+1:]
}

// hears waits for these messages.
func (a *app) hears(want ...string) {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(a.t.Context(), 30*time.Second)
	defer cancel()
	for _, w := range want {
		m, err := a.sub.Next(ctx)
		if err != nil {
			a.t.Fatalf("no %q came: %v", w, err)
		}
		if string(m.Data) != w {
			a.t.Fatalf("the app got %d bytes %.40q, want %.40q", len(m.Data), m.Data, w)
		}
	}
}

// The app gets exactly the typed bytes, and the other way round, byte for byte; who comes
// and goes is told; an interrupt ends it.
func TestNodeAndGossipsubAppExchangeMessages(t *testing.T) {
	a := newApp(t)
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	stdin, typing := io.Pipe()
	out, errs, done := new(outputtest.Printed), new(outputtest.Printed), make(chan error, 1)
	go func() {
		done <- run(ctx, []string{"-dial", a.addr(), "-listen", "127.0.0.1:0", "-who", "room"}, stdin, out, errs)
	}()
	errs.WaitText(t, fmt.Sprintf("* connected to %s at %s\n", a.host.ID(), a.addr()))
	errs.WaitText(t, fmt.Sprintf("* %s joins\n", a.host.ID()))
	sent := []string{"hello", "", "\x00\xff\r", strings.Repeat("long", 200_000)}
	go io.WriteString(typing, strings.Join(sent, "\n")+"\n")
	a.hears(sent...)
	for _, m := range []string{"hi\r", "\x00\xff", strings.Repeat("wide", 200_000)} {
		for len(a.room.ListPeers()) == 0 {
			time.Sleep(time.Millisecond)
		}
		if err := a.room.Publish(t.Context(), []byte(m)); err != nil {
			t.Fatal(err)
		}
		out.WaitText(t, m+"\n")
	}
	if text := out.String(); !strings.HasPrefix(text, "hi\r\n\x00\xff\nwide") || len(text) != 7+800_001 {
		t.Errorf("printed %d bytes, beginning with %.40q", len(text), text)
	}
	a.host.Close()
	errs.WaitText(t, fmt.Sprintf("* %s leaves\n", a.host.ID()))
	interrupt()
	if err := <-done; err != nil {
		t.Errorf("interrupted: %v", err)
	}
}

// A pipe into it ends it, after what it said was heard.
func TestPipe(t *testing.T) {
	a := newApp(t)
	var out, errs outputtest.Printed
	multiaddr := a.host.Addrs()[0].String()
	args := []string{"-dial", multiaddr, "-listen", "127.0.0.1:0", "-wait", "100ms"}
	input := "two\nlines"
	if err := run(t.Context(), append(args, "-whole", "room"), strings.NewReader(input), &out, &errs); err != nil {
		t.Fatal(err)
	}
	a.hears(input)
	if err := run(t.Context(), append(args, "room"), strings.NewReader(input), &out, &errs); err != nil {
		t.Fatal(err)
	}
	a.hears("two", "lines")
}

// The error of bad arguments names the mistake.
func TestSaysWhatIsWrong(t *testing.T) {
	a := newApp(t)
	at := []string{"-listen", "127.0.0.1:0", "-dial", a.addr()}
	for _, c := range []struct {
		args  []string
		input string
		want  string
	}{
		{nil, "", "give one topic name"},
		{[]string{"a", "b"}, "", "give one topic name"},
		{[]string{"-x", "a"}, "", "flag provided but not defined"},
		{[]string{"-listen", "127.0.0.1:0", "-dial", "127.0.0.1:1", "room"}, "", "127.0.0.1:1"},
		{[]string{"-listen", "127.0.0.1:0", "-dial", "nonsense", "room"}, "", "nonsense"},
		{[]string{"smokesignal/default"}, "", "is the network's own"},
		{slices.Concat(at, []string{"room"}), strings.Repeat("x", 1<<20), "bytes that fit into a message"},
		{slices.Concat(at, []string{"-whole", "room"}), strings.Repeat("x", 1<<20), "too large"},
	} {
		err := run(t.Context(), c.args, strings.NewReader(c.input), io.Discard, io.Discard)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("topic %q: %v, want %q", c.args, err, c.want)
		}
	}
	var help bytes.Buffer
	if err := run(t.Context(), []string{"-help"}, nil, &help, io.Discard); err != nil || !strings.Contains(help.String(), "-whole") {
		t.Errorf("help: %v\n%s", err, &help)
	}
}
