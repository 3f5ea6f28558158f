package main

import (
	"bytes"
	"context"
	"errors"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal"
)

// TestDemo: the demo succeeds and prints a dozen lines, in the order of their times.
func TestDemo(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	var out bytes.Buffer
	if err := demo(ctx, &out); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if len(lines) != 12 {
		t.Errorf("%d lines, want a dozen:\n%s", len(lines), &out)
	}
	var times []int
	for _, line := range lines {
		m := regexp.MustCompile(`^ *(\d+) ms  \S`).FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("%q has no time", line)
		}
		n, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		times = append(times, n)
	}
	if !slices.IsSorted(times) {
		t.Errorf("the times are not in order:\n%s", &out)
	}
}

// TestDemoFailsIfItStops: at whatever line it is held up, the demo fails and says
// what has not come true; it never says more than has happened.
func TestDemoFailsIfItStops(t *testing.T) {
	t.Parallel()
	for after, want := range map[string]string{
		"bob, carol":              "everybody is connected",
		"is killed":               "everybody has noticed",
		"she knows only":          "the network is whole again",
		"is whole without its se": "broadcast",
	} {
		t.Run(after, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(t.Context())
			out := &stopAt{text: after, stop: cancel}
			err := demo(ctx, out)
			if err == nil || !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), want) {
				t.Errorf("stopped after %q: %v, want an error with %s in it", after, err, want)
			}
			if lines := strings.Split(out.String(), "\n"); !strings.Contains(lines[len(lines)-2], after) {
				t.Errorf("went on after %q:\n%s", after, out)
			}
			cancel()
		})
	}
}

// stopAt is an output that calls stop when a text has come.
type stopAt struct {
	bytes.Buffer
	text string
	stop func()
}

func (s *stopAt) Write(b []byte) (int, error) {
	if strings.Contains(string(b), s.text) {
		s.stop()
	}
	return s.Buffer.Write(b)
}

// TestWholeNetwork: two networks, in each of which everybody has enough links, are whole
// when they are one.
func TestWholeNetwork(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	d := &story{ctx: ctx, out: &bytes.Buffer{}, began: time.Now(), nodes: map[string]*smokesignal.Node{}, changed: make(chan struct{}, 1)}
	defer d.closeAll()
	for _, name := range []string{"a", "b", "c", "x", "y", "z"} {
		d.start(name, smokesignal.Listen("127.0.0.1:0"))
	}
	link := func(from, to string) {
		t.Helper()
		if _, err := d.nodes[from].Connect(ctx, d.ticket(to)); err != nil {
			t.Fatal(err)
		}
		d.waitUntil(from+" and "+to+" have each other", func() bool {
			return d.nodes[from].Peer(d.nodes[to].ID()).Linked() && d.nodes[to].Peer(d.nodes[from].ID()).Linked()
		})
	}
	for _, names := range [][]string{{"a", "b"}, {"x", "y"}} {
		if link(names[0], names[1]); d.isWhole() {
			t.Fatal("whole although somebody is alone")
		}
	}
	link("b", "c")
	link("y", "z")
	// The third side of each triangle they find by themselves.
	d.waitUntil("all have two links", func() bool {
		return d.each(func(n *smokesignal.Node) bool { return n.Peers().Len() == 2 })
	})
	if d.err != nil {
		t.Fatal(d.err)
	}
	if d.isWhole() {
		t.Error("two networks are reported as a whole one")
	}
	link("a", "x")
	if d.waitUntil("the network is whole", d.isWhole); d.err != nil {
		t.Error(d.err)
	}
}
