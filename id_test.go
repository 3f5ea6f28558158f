package smokesignal_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal"
)

// A peer that is given as text is an error at once, which says what to do, and not one
// that waits for the end of ctx.
func TestTextInPlaceOfAnID(t *testing.T) {
	node, err := smokesignal.New(smokesignal.Listen("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer node.Close()
	if err := node.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for text, advice := range map[string]string{
		node.ID().String():     "is the text of an id; give Peer what ParseID returns for it",
		"12D3KooWBogus":        "ParseID reads the text of one",
		"":                     "ParseID reads the text of one",
		"/ip4/127.0.0.1/tcp/1": "ParseID reads the text of one",
	} {
		p, began := node.Peer(smokesignal.ID(text)), time.Now()
		_, called := p.Call(t.Context(), "x")
		_, asked := smokesignal.Call[int, int]("x").Do(t.Context(), p, 1)
		for what, err := range map[string]error{
			"Emit": p.Emit(t.Context(), "x"), "TryEmit": p.TryEmit("x"), "Call": called, "Do": asked,
			"FindPeer": find(node, p.ID()), "Name.Emit": smokesignal.Name[[]byte]("x").Emit(t.Context(), p, nil),
		} {
			if !errors.Is(err, smokesignal.ErrBadID) || !strings.Contains(err.Error(), advice) {
				t.Errorf("%s to %q returned %v", what, text, err)
			}
		}
		if d := time.Since(began); d > time.Second {
			t.Errorf("the errors for %q came after %v", text, d)
		}
	}
	if id, err := smokesignal.ParseID(node.ID().String()); err != nil || id != node.ID() {
		t.Errorf("ParseID returned %s, %v", id, err)
	}
	if _, err := smokesignal.ParseID("bogus"); !errors.Is(err, smokesignal.ErrBadID) {
		t.Errorf("ParseID of rubbish returned %v", err)
	}
}

func find(node *smokesignal.Node, id smokesignal.ID) error {
	_, err := node.Routing().FindPeer(context.Background(), id)
	return err
}
