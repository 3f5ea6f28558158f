package sim

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
)

// A drawing is well-formed, the same each time, and shows every node in every picture.
func TestDrawShowsEveryNode(t *testing.T) {
	draw := func(n int) string {
		var pictures []Picture
		Crash(50).Play(Options{
			Rules: Smokesignal, Nodes: n, Seed: 1,
			Frame: func(name string, w *World) { pictures = append(pictures, w.Picture(name)) },
		})
		var b bytes.Buffer
		if err := Draw(&b, pictures); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	text := draw(20)
	if text != draw(20) {
		t.Error("two drawings of one run differ")
	}
	d := xml.NewDecoder(strings.NewReader(text))
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if got := strings.Count(text, "<circle"); got != 3*20 {
		t.Errorf("%d nodes drawn, want 20 in each of three pictures", got)
	}
	if got := strings.Count(text, `fill="#d8d8d8"`); got != 2*10 {
		t.Errorf("%d dead nodes drawn, want ten in two pictures", got)
	}
	for _, want := range []string{"before: 20 nodes", "crashed: 10 nodes", "after: 10 nodes", "1 part<"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in the drawing", want)
		}
	}
}
