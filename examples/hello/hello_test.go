package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// freeAddress returns an address nobody listens on, for TCP and UDP alike. Its
// port is none that the system would give away by itself meanwhile.
func freeAddress(t *testing.T) string {
	t.Helper()
	for range 100 {
		at := fmt.Sprintf("127.0.0.1:%d", 20000+rand.IntN(10000))
		l, err := net.Listen("tcp", at)
		if err != nil {
			continue
		}
		c, err := net.ListenPacket("udp", at)
		l.Close()
		if err == nil {
			c.Close()
			return at
		}
	}
	t.Fatal("no port is free for both TCP and UDP")
	return ""
}

func TestHello(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var out bytes.Buffer // read after run has returned, and all handlers with it
	if err := run(ctx, freeAddress(t), &out); err != nil {
		t.Fatal(err)
	}
	if got, want := out.String(), "Hello, Alice!\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestHelloSaysWhatIsWrong(t *testing.T) {
	err := run(t.Context(), "127.0.0.1:port", &bytes.Buffer{})
	if err == nil || !strings.Contains(err.Error(), "127.0.0.1:port") {
		t.Errorf("got %v, want an error that names the address", err)
	}
}

// TestHelloIsShort keeps the promise that two nodes exchange a typed event in at
// most 15 lines.
func TestHelloIsShort(t *testing.T) {
	b, err := os.ReadFile("hello.go")
	if err != nil {
		t.Fatal(err)
	}
	_, program, _ := strings.Cut(string(b), "\n)\n") // the end of the imports
	n := 0
	for line := range strings.Lines(program) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "//") {
			n++
		}
	}
	if n == 0 || n > 15 {
		t.Errorf("hello has %d lines", n)
	}
}
