package smokesignal_test

import (
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal"
)

// TestNodeAloneIsAPart: of its own, as long as it runs.
func TestNodeAloneIsAPart(t *testing.T) {
	node, err := smokesignal.New(smokesignal.Listen("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer node.Close()
	if p := node.Network(); p != (smokesignal.Part{}) {
		t.Errorf("before Start: %+v", p)
	}
	began := time.Now()
	if err := node.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	p := node.Network()
	if p.Since.Before(began) || p.Since.After(time.Now()) {
		t.Errorf("alone since %v, started at %v", p.Since, began)
	}
	if want := (smokesignal.Part{Tag: node.ID(), Since: p.Since}); p != want {
		t.Errorf("alone: %+v, want %+v", p, want)
	}
	if err := node.Close(); err != nil {
		t.Fatal(err)
	}
	if p := node.Network(); p != (smokesignal.Part{}) {
		t.Errorf("after Close: %+v", p)
	}
}
