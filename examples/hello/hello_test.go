package main

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal/internal/hosttest"
)

// The program prints its greeting.
func TestHello(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var out bytes.Buffer // read after run has returned, and all handlers with it
	if err := run(ctx, hosttest.FreeAddress(t), &out); err != nil {
		t.Fatal(err)
	}
	if got, want := out.String(), "Hello, Alice!\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// The error of a bad address names the address.
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
