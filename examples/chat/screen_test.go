package main

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/go-smokesignal/smokesignal/internal/bubble"
)

var rewrite = flag.Bool("rewrite", false, "write the screens of testdata as they are now")

// TestScreen plays the scenarios of testdata and compares what a person sees.
// A scenario is a list of steps, each a line; after "----" follows the screen.
func TestScreen(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no scenarios", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			was, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			is := playScenario(t, string(was))
			if *rewrite {
				if err := os.WriteFile(file, []byte(is), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if is != string(was) {
				t.Errorf("the screen differs; it is now\n%s", is)
			}
		})
	}
}

func playScenario(t *testing.T, script string) string {
	var b strings.Builder
	var tty *vt
	var s *screen
	steps := true
	for line := range strings.Lines(script) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case line == "----":
			steps = false
			fmt.Fprintf(&b, "----\n%s", tty)
			if tty.bells > 0 {
				fmt.Fprintf(&b, "(%d bells)\n", tty.bells)
				tty.bells = 0
			}
			continue
		case line == "":
			if !steps {
				b.WriteString("\n")
				steps = true
			}
			continue
		case !steps || strings.HasPrefix(line, "> "):
			continue // the old outcome
		}
		b.WriteString(line + "\n")
		word, rest, _ := strings.Cut(line, " ")
		switch word {
		case "#":
		case "width":
			w, err := strconv.Atoi(rest)
			if err != nil {
				t.Fatal(err)
			}
			if s == nil {
				tty = newVT(w)
				s = newScreen(tty, tty.size, false)
			} else {
				tty.resize(w)
				s.resized()
			}
		case "said":
			name, text, _ := strings.Cut(rest, " ")
			s.showReceived(name, text)
		case "status":
			s.showStatus("%s", rest)
		case "command":
			s.showCommand("to join:", rest)
		case "here":
			s.showMembers(rest, strings.Fields(rest))
		case "keys":
			keys, err := strconv.Unquote(`"` + rest + `"`)
			if err != nil {
				t.Fatalf("%q: %v", rest, err)
			}
			ended, last := s.press([]byte(keys))
			for _, text := range ended {
				fmt.Fprintf(&b, "> %q\n", text)
			}
			if last != keyNone {
				fmt.Fprintf(&b, "> the end\n")
			}
		case "close":
			s.close()
		default:
			t.Fatalf("no such step: %q", line)
		}
	}
	return b.String()
}

// TestScreenRunEnds covers the ways out: the lines entered before come first.
func TestScreenRunEnds(t *testing.T) {
	for _, tc := range []struct {
		keys string
		quit bool
		want []string
	}{
		{"one\rtwo\r\x04three\r", false, []string{"one", "two"}},
		{"one\r\x03two\r", true, []string{"one"}},
		{"one\rtwo", false, []string{"one"}}, // the terminal is gone
	} {
		tty := newVT(40)
		s := newScreen(tty, tty.size, false)
		quit := false
		go s.run(strings.NewReader(tc.keys), nil, func() { quit = true })
		var got []string
		for text := range s.lines() {
			got = append(got, text)
		}
		<-s.ended()
		if quit != tc.quit || fmt.Sprint(got) != fmt.Sprint(tc.want) {
			t.Errorf("%q: got %q, quit %v", tc.keys, got, quit)
		}
	}
}

// TestScreenRestores checks that a closed screen leaves the terminal as it was,
// whatever is printed afterwards.
func TestScreenRestores(t *testing.T) {
	tty := newVT(40)
	s := newScreen(tty, tty.size, true)
	restored := 0
	s.restore = func() { restored++ }
	if !tty.paste {
		t.Error("bracketed paste is off")
	}
	s.showMembers("2 here", nil)
	s.close()
	s.close()
	s.showStatus("late")
	s.resized()
	if restored != 1 || tty.paste {
		t.Errorf("restored %d times, bracketed paste %v", restored, tty.paste)
	}
	if got, want := tty.String(), "|* late\n|█\n"; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

// TestScreenRestoresOnPanic: a stack trace in raw mode is a staircase.
func TestScreenRestoresOnPanic(t *testing.T) {
	tty := newVT(40)
	s := newScreen(tty, tty.size, true)
	restored := false
	s.restore = func() { restored = true }
	defer func() {
		if r := recover(); r != "oops" || !restored || tty.paste {
			t.Errorf("recovered %v, restored %v, bracketed paste %v", r, restored, tty.paste)
		}
	}()
	s.guard(func() { panic("oops") })
}

// TestScreenLetsGoWhenDone: a full queue of lines must not keep the reader.
func TestScreenLetsGoWhenDone(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := newScreen(io.Discard, func() int { return 40 }, false)
		done := make(chan struct{})
		go s.run(bytes.NewReader(bytes.Repeat([]byte("x\r"), 1000)), done, func() {})
		synctest.Wait() // the queue is full now
		close(done)
		<-s.ended()
	})
}

// TestScreenColors: a name has the same color wherever it stands.
func TestScreenColors(t *testing.T) {
	var b bytes.Buffer
	s := newScreen(&b, func() int { return 40 }, true)
	b.Reset()
	s.showReceived("alice", "hi")
	s.showReceived("alice → you", "psst")
	if c := colorOf("alice"); strings.Count(b.String(), c) != 2 {
		t.Errorf("want %q twice in %q", c, b.String())
	}
}
