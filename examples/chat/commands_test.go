package main

import "testing"

// The same table as in examples/web/test/page.test.js.
func TestParseLine(t *testing.T) {
	for text, want := range map[string]struct {
		say     string
		command bool
	}{
		"hello":                         {"hello", false},
		" /help":                        {" /help", false},
		"//etc/hosts is a file":         {"/etc/hosts is a file", false},
		"///":                           {"//", false},
		"/help":                         {"", true},
		"/msg alice a secret":           {"", true},
		"/etc/hosts is a file":          {"", true}, // unknown, so the person is asked
		"/":                             {"", true},
		"//a pasted text\nis as it was": {"//a pasted text\nis as it was", false},
		"/quit\nin a pasted text":       {"/quit\nin a pasted text", false},
	} {
		if say, command := parseLine(text); say != want.say || command != want.command {
			t.Errorf("%q: got %q, %v, want %+v", text, say, command, want)
		}
	}
}
