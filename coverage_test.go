package smokesignal_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestCoverageNamesRealTests: every test that docs/coverage.md and docs/promises.md
// name exists, so that a promise cannot lose its proof unnoticed.
func TestCoverageNamesRealTests(t *testing.T) {
	text, err := os.ReadFile("docs/coverage.md")
	if err != nil {
		t.Fatal(err)
	}
	promises, err := os.ReadFile("docs/promises.md")
	if err != nil {
		t.Fatal(err)
	}
	text = append(text, promises...)
	declared := map[string]string{} // test function to the text of its file
	funcs := regexp.MustCompile(`(?m)^func ((?:Test|Example|Fuzz|Benchmark)\w*)\(`)
	err = filepath.WalkDir(".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := os.ReadFile(path)
		for _, m := range funcs.FindAllSubmatch(file, -1) {
			declared[string(m[1])] = string(file)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`((?:Test|Example|Fuzz)\\w*)(?:/([^`]+))?`").FindAllSubmatch(text, -1)
	if len(named) < 50 {
		t.Errorf("docs/coverage.md names %d tests only", len(named))
	}
	for _, m := range named {
		file, ok := declared[string(m[1])]
		if !ok {
			t.Errorf("the documents name %s, which does not exist", m[1])
		} else if sub := string(m[2]); sub != "" && !strings.Contains(file, `"`+sub+`"`) {
			t.Errorf("the documents name %s/%s; its file has no %q", m[1], sub, sub)
		}
	}
	rows := regexp.MustCompile(`(?m)^\|.*\|$`).FindAll(text, -1)
	for _, row := range rows {
		cells := strings.Split(strings.Trim(string(row), "|"), "|")
		last := strings.TrimSpace(cells[len(cells)-1])
		if last == "" {
			t.Errorf("docs/coverage.md: a row without proof or reason: %s", row)
		}
	}
}
