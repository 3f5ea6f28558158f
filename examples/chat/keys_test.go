package main

import (
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// Key presses are decoded from the bytes of a terminal, however they are split.
func TestKeyboard(t *testing.T) {
	for _, tc := range []struct {
		name  string
		reads []string
		want  []press
	}{
		{"characters", []string{"aé你"}, []press{{keyText, "a"}, {keyText, "é"}, {keyText, "你"}}},
		{"arrows of both kinds", []string{"\x1b[A\x1bOA\x1b[D"}, []press{{keyUp, ""}, {keyUp, ""}, {keyLeft, ""}}},
		{"an unknown sequence is nothing", []string{"\x1b[1;2Px\x1b[?1;2cy"}, []press{{keyText, "x"}, {keyText, "y"}}},
		{"Escape by itself", []string{"\x1b", "x", "\x1b\x1b", "[A"}, []press{{keyText, "x"}, {keyUp, ""}}},
		{"a split sequence", []string{"\x1b", "[", "3", "~"}, []press{{keyDelete, ""}}},
		{"a sequence that breaks off", []string{"\x1b[1\rx"}, []press{{keyEnter, ""}, {keyText, "x"}}},
		{"alt-b", []string{"\x1bb"}, []press{{keyWordLeft, ""}}},
		{"not UTF-8", []string{"\xff\xfea"}, []press{{keyText, "a"}}},
		{"a control character of eight bits", []string{"\u009ba"}, []press{{keyText, "a"}}},
		{"paste", []string{"\x1b[200~a\r\nb\x1b[201~c"}, []press{{keyText, "a\nb"}, {keyText, "c"}}},
		{"an empty paste", []string{"\x1b[200~\x1b[201~"}, []press{{keyText, ""}}},
	} {
		var k keyboard
		var got []press
		for _, r := range tc.reads {
			got = append(got, k.read([]byte(r))...)
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s: got %v, want %v", tc.name, got, tc.want)
		}
	}
}

// A pasted text is cut to its limit.
func TestKeyboardBoundsPaste(t *testing.T) {
	var k keyboard
	k.read([]byte("\x1b[200~"))
	for range 100 {
		k.read([]byte(strings.Repeat("x", 4096)))
	}
	got := k.read([]byte(pasteEnd))
	if len(got) != 1 || len(got[0].text) != maxPaste {
		t.Errorf("got %d presses", len(got))
	}
}

// FuzzKeyboard: whatever comes from the terminal, text is text.
func FuzzKeyboard(f *testing.F) {
	f.Add([]byte("a\x1b[A\x1b[200~x\r\n\x1b[201~\xe4\xbd"), 3)
	f.Fuzz(func(t *testing.T, b []byte, cut int) {
		cut = max(0, min(cut, len(b)))
		var k keyboard
		for _, p := range append(k.read(b[:cut]), k.read(b[cut:])...) {
			if p.key != keyText && p.text != "" || !utf8.ValidString(p.text) {
				t.Fatalf("%q gave %v", b, p)
			}
			if strings.ContainsFunc(p.text, func(r rune) bool { return r < ' ' && r != '\n' || r == 0x7f }) {
				t.Fatalf("%q gave %q", b, p.text)
			}
		}
	})
}

// FuzzLine: however it is edited, the cursor stays inside and the view fits.
func FuzzLine(f *testing.F) {
	f.Add([]byte("hello e\u0301\x1b[D\x7f\x17你\x1b[A\r"), 20)
	f.Fuzz(func(t *testing.T, b []byte, room int) {
		room = max(0, min(room, 300))
		var k keyboard
		var l line
		for _, p := range k.read(b) {
			if p.key == keyEnter {
				l.finish()
			}
			l.edit(p)
			if l.at < 0 || l.at > len(l.text) {
				t.Fatalf("the cursor is at %d of %d", l.at, len(l.text))
			}
			shown, cursor := l.view(room)
			if w := width([]rune(shown)); w > room || cursor > w {
				t.Fatalf("%q in %d columns: %q of %d, cursor %d", l.String(), room, shown, w, cursor)
			}
		}
	})
}
