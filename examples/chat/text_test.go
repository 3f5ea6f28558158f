package main

import (
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// TestCleanNeutralises: nothing that a peer sends moves the cursor, changes
// colors, begins a new line, or turns around what follows.
func TestCleanNeutralises(t *testing.T) {
	for in, want := range map[string]string{
		"hello, wörld 你好 👋":           "hello, wörld 你好 👋",
		"\x1b[2J\x1b[31mred":          "␛[2J␛[31mred",
		"\x1b]0;title\a":              "␛]0;title␇",
		"a\r\nmallory: b":             "a␍␊mallory: b",
		"c1 \u009b31m":                "c1 \ufffd31m",
		"over\u202eevil\u2066":        "overevil",
		"zero\u200bwidth\ufeff":       "zerowidth",
		"line\u2028sep\u2029":         "line\ufffdsep\ufffd",
		"tab\there\u00a0":             "tab here ",
		"del\x7f":                     "del␡",
		"bad \xff utf8":               "bad \ufffd utf8",
		"z" + strings.Repeat("̀", 50): "z" + strings.Repeat("̀", maxMarks),
		"👩\u200d🚀":                    "👩\u200d🚀",
	} {
		if got := clean(in, 100); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
	if got := clean(strings.Repeat("x", 50), 10); got != "xxxxxxxxxx…" {
		t.Errorf("too long: %q", got)
	}
	if got := clean("exactly   ", 7); got != "exactly" {
		t.Errorf("just long enough: %q", got)
	}
}

// A cleaned name is one word without control characters.
func TestCleanName(t *testing.T) {
	for in, want := range map[string]string{
		" Bob ":                             "Bob",
		"Mary Ann":                          "Mary_Ann",
		"* connected":                       "connected",
		"me: hi":                            "me__hi",
		"\x1b[31mred":                       "␛[31mred",
		"a\u200db":                          "ab",
		"":                                  "",
		"***":                               "",
		"/quit":                             "quit",
		"josé":                              "josé",
		"very " + strings.Repeat("long", 9): "very_" + strings.Repeat("long", 4) + "lon…",
	} {
		if got := cleanName(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

// A cleaned text is valid, short enough and without control characters.
func FuzzClean(f *testing.F) {
	f.Add("\x1b[31m\u202e👩\u200d🚀\xff\n", 3)
	f.Fuzz(func(t *testing.T, s string, limit int) {
		limit = max(0, min(limit, 1000))
		got := clean(s, limit)
		if !utf8.ValidString(got) || utf8.RuneCountInString(got) > limit+1 {
			t.Fatalf("%q became %q", s, got)
		}
		if strings.ContainsFunc(got, func(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 || r == 0x202e }) {
			t.Fatalf("%q became %q", s, got)
		}
		if again := clean(got, limit+1); again != got {
			t.Fatalf("%q became %q, then %q", s, got, again)
		}
		if name := cleanName(s); strings.ContainsAny(name, " :*\n") || strings.HasPrefix(name, "/") {
			t.Fatalf("%q became the name %q", s, name)
		}
	})
}

// A long text is cut into pieces between characters.
func TestPieces(t *testing.T) {
	long := strings.Repeat("ä", 2*maxText+1)
	got := pieces(long)
	if len(got) != 3 || strings.Join(got, "") != long || got[2] != "ä" {
		t.Errorf("%d pieces", len(got))
	}
	if got := pieces("short"); !slices.Equal(got, []string{"short"}) {
		t.Errorf("got %q", got)
	}
}

// A text is cut to the columns that it may use.
func TestFit(t *testing.T) {
	for _, tc := range []struct {
		in   string
		room int
		want string
	}{
		{"hello", 5, "hello"}, {"hello!", 5, "hell…"}, {"你好", 4, "你好"}, {"你好吗", 4, "你…"},
		{"你好", 2, "…"}, {"x", 0, ""}, {"", 0, ""}, {"e\u0301a", 2, "e\u0301a"},
	} {
		if got := fit(tc.in, tc.room); got != tc.want {
			t.Errorf("%q in %d: got %q, want %q", tc.in, tc.room, got, tc.want)
		}
	}
}

// The cells of a table are aligned by their width on the screen.
func TestAligned(t *testing.T) {
	got := aligned([][]string{{"NAME", "AT"}, {"你好", "x", "y"}, {"a"}})
	want := []string{"NAME  AT", "你好  x   y", "a"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// A long line is wrapped between words.
func TestWrap(t *testing.T) {
	for _, tc := range []struct {
		in       string
		at, room int
		want     string
	}{
		{"one two three", 0, 20, "one two three"},
		{"one two three", 0, 8, "one two\r\nthree"},
		{"one two three", 0, 7, "one two\r\nthree"},
		{"one two three", 0, 6, "one\r\ntwo\r\nthree"},
		{" one two", 6, 10, " one\r\ntwo"}, // after a name
		{" one two", 6, 9, "\r\none two"},
		{"a loooooooong b", 0, 6, "a loooooooong\r\nb"},
		{"你好 你好", 0, 8, "你好\r\n你好"},
		{"", 0, 8, ""},
	} {
		if got := wrap(tc.in, tc.at, tc.room); got != tc.want {
			t.Errorf("%q at %d in %d: got %q, want %q", tc.in, tc.at, tc.room, got, tc.want)
		}
	}
}
