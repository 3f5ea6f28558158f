package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// avoided lists phrases that make a sentence hard to read, and the name of each count.
var avoided = []struct {
	name    string
	pattern *regexp.Regexp
}{
	{"phrase:whom", regexp.MustCompile(`(?i)\bwhom\b`)},
	{"phrase:tells-whether", regexp.MustCompile(`(?i)\btells? whether\b`)},
	{"phrase:is-no", regexp.MustCompile(`(?i)\b(?:is|are|was|were) no [a-z]+`)},
	{"phrase:what-is", regexp.MustCompile(`(?i)\bwhat (?:is|was|are|were|comes|came)\b`)},
	{"phrase:british", regexp.MustCompile(`(?i)\b(?:neighbour|dialled|dialling|cancelled|behaviour|synchronis|recognis|colour|favour)\w*`)},
}

// longer matches phrases in which "is no" is good English.
var longer = regexp.MustCompile(`(?i)\b(?:is|are|was|were) no (?:longer|more|less|need|other|room|way|one|such)\b|\bthere (?:is|are|was|were) no\b`)

// phrases counts the avoided phrases in the comments of the module's Go files, except
// tests, and in all .js, .md and .proto files.
func (m *module) phrases(dir string, all *counts) error {
	for _, a := range avoided {
		all.declare(a.name)
	}
	for _, p := range m.packages {
		for _, f := range p.files {
			for _, g := range f.Comments {
				for _, c := range g.List {
					addPhrases(all, m.fset.Position(c.Pos()).String(), c.Text)
				}
			}
		}
	}
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); name == "node_modules" || name != "." && strings.HasPrefix(name, ".") {
				return filepath.SkipDir
			}
			return nil
		}
		ext := filepath.Ext(path)
		if ext != ".md" && ext != ".js" && ext != ".proto" || strings.HasSuffix(path, "bundle.js") || strings.HasSuffix(path, ".min.js") {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for i, line := range strings.Split(string(b), "\n") {
			addPhrases(all, fmt.Sprintf("%s:%d", path, i+1), line)
		}
		return nil
	})
}

func addPhrases(all *counts, place, text string) {
	for _, a := range avoided {
		for _, found := range a.pattern.FindAllStringIndex(text, -1) {
			around := text[max(0, found[0]-20):min(len(text), found[1]+20)]
			if a.name == "phrase:is-no" && longer.MatchString(around) {
				continue
			}
			all.add(a.name, place+": "+strings.ReplaceAll(around, "\n", " "))
		}
	}
}
