package main

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"unicode/utf8"

	"github.com/go-smokesignal/smokesignal/internal/bubble"
)

// Lines are read from plain input, however they end.
func TestPlainReads(t *testing.T) {
	long := strings.Repeat("ä", 40<<10) // 80 KiB, more than the buffer
	for _, tc := range []struct {
		name, in string
		want     []string
	}{
		{"lines", "one\ntwo\r\n", []string{"one", "two"}},
		{"no end of line", "one\ntwo", []string{"one", "two"}},
		{"blank lines", "\n \none\n\n", []string{"one"}},
		{"nothing", "", nil},
		{"a slash is text", "/quit\n", []string{"/quit"}},
	} {
		p := newPlain(&bytes.Buffer{}, false)
		go p.run(strings.NewReader(tc.in), nil)
		if got := slices.Collect(chanSeq(p.lines())); !slices.Equal(got, tc.want) {
			t.Errorf("%s: got %q, want %q", tc.name, got, tc.want)
		}
		<-p.ended()
	}
	p := newPlain(&bytes.Buffer{}, false)
	go p.run(strings.NewReader("x"+long+"\nend\n"), nil)
	got := slices.Collect(chanSeq(p.lines()))
	for _, s := range got {
		if !utf8.ValidString(s) {
			t.Error("a character was cut")
		}
	}
	if strings.Join(got, "") != "x"+long+"end" || got[len(got)-1] != "end" {
		t.Errorf("a long line came as %d parts", len(got))
	}
}

func chanSeq[T any](c <-chan T) func(func(T) bool) {
	return func(yield func(T) bool) {
		for v := range c {
			if !yield(v) {
				return
			}
		}
	}
}

// The reader of plain input ends with the chat, also when its queue is full.
func TestPlainLetsGoWhenDone(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		p := newPlain(&bytes.Buffer{}, false)
		done := make(chan struct{})
		go p.run(strings.NewReader(strings.Repeat("x\n", 5000)), done)
		synctest.Wait() // the queue is full now
		close(done)
		<-p.ended()
	})
}

// Plain output has the lines of others and no lines of one's own.
func TestPlainPrints(t *testing.T) {
	var out bytes.Buffer
	p := newPlain(&out, false)
	p.showReceived("alice", "hi")
	p.showSent("me", "not shown: who pipes it in knows it")
	p.showStatus("%d here", 2)
	p.showCommand("to join:", "go run x")
	p.showTable([][]string{{"a", "b"}, {"ccc", "d"}})
	p.showMembers("2 here", nil)
	want := "alice: hi\n* 2 here\n* to join: go run x\n* a    b\n* ccc  d\n"
	if out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}
