package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// sample copies testdata/sample to a directory outside of this module.
func sample(t *testing.T) string {
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join("testdata", "sample"))); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Counts include exactly the names that the documentation shows.
func TestCountsWhatTheDocumentationShows(t *testing.T) {
	var out strings.Builder
	if err := run(&out, []string{"-dir", sample(t)}); err != nil {
		t.Fatal(err)
	}
	got := strings.Join(strings.Fields(out.String()), " ")
	for _, want := range []string{
		"exported 9",   // two packages together
		"exported:. 6", // Node, its promoted Name and Rename; Alias, Size, Grow
		"exported:inner 3",
		"vague-method-names 1", "repeated-type-names 1", "fields-of-Node 1",
		"phrase:whom 1", "phrase:tells-whether 1", "phrase:is-no 1",
	} {
		if !strings.Contains(got+" ", want+" ") {
			t.Errorf("%q is not in %q", want, got)
		}
	}
}

// A count above its limit, or without one, is an error.
func TestACountAboveItsLimitFails(t *testing.T) {
	all := &counts{}
	all.add("exported", "A")
	all.add("exported", "B")
	all.add("phrase:whom", "x.go:1")
	for _, c := range []struct{ limits, want string }{
		{"exported 2\nphrase:whom 1 # with a reason\n", ""},
		{"exported 3\n# a comment\n\nphrase:whom 1\n", ""},
		{"exported 1\nphrase:whom 1\n", "exported is 2, above its limit of 1"},
		{"exported 2\n", "phrase:whom has no limit"},
		{"exported two\n", "invalid syntax"},
		{"exported\n", "not a name and a number"},
	} {
		err := all.check(strings.NewReader(c.limits))
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%q: %v", c.limits, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%q: %v, want %q", c.limits, err, c.want)
		}
	}
}
