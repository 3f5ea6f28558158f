package smokesignal_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The README does not exceed its length.
func TestTheREADMEIsShort(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	if n := len(strings.Fields(string(readme))); n > 900 {
		t.Errorf("the README has %d words, at most 900: move something to docs", n)
	}
}

// TestLinksInTheDocuments: every file that a document of the repository links to is there.
func TestLinksInTheDocuments(t *testing.T) {
	documents, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```.*?```") // programs, in which the same signs mean something else
	links := regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)
	for _, file := range append(documents, "README.md", "CONTRIBUTING.md", "examples/README.md", "js/README.md") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		text = blocks.ReplaceAll(text, nil)
		for _, m := range links.FindAllSubmatch(text, -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(file), string(m[1]))); err != nil {
				t.Errorf("%s links to %s, which is not there", file, m[1])
			}
		}
	}
}

// TestFilesNamedInTheDocumentsExist: the table of CONTRIBUTING.md and the walks of
// docs/architecture.md name files between backquotes.
func TestFilesNamedInTheDocumentsExist(t *testing.T) {
	named := regexp.MustCompile("`([a-z_0-9/]+/[a-z_0-9]+\\.(?:go|js|md|txt))`")
	for _, document := range []string{"CONTRIBUTING.md", "docs/architecture.md", "docs/testing.md"} {
		text, err := os.ReadFile(document)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range named.FindAllSubmatch(text, -1) {
			if _, err := os.Stat(string(m[1])); err != nil {
				t.Errorf("%s names %s, which is not there", document, m[1])
			}
		}
	}
}
