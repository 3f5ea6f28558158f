package main

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"
)

func TestEmbed(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	var out bytes.Buffer
	if err := run(ctx, &out); err != nil {
		t.Fatal(err)
	}
	want := `the application's topic: the price is 42
a call of smokesignal: it is yours
a broadcast of smokesignal: sold at 42
smokesignal is closed, the application goes on
the application's topic: the price is 43
`
	if got := out.String(); got != want {
		t.Errorf("it printed\n%swant\n%s", got, want)
	}
}

// TestEmbedEnds: when its context ends, it returns at once, whatever it waits for, and prints so.
func TestEmbedEnds(t *testing.T) {
	for _, after := range []time.Duration{0, 50 * time.Millisecond} {
		ctx, cancel := context.WithTimeout(t.Context(), after)
		err := run(ctx, &bytes.Buffer{})
		cancel()
		if err == nil && after == 0 {
			t.Error("it runs without time")
		}
		if err != nil && !strings.Contains(err.Error(), "context") {
			t.Errorf("after %v: %v", after, err)
		}
	}
}
