package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// module holds the packages of the module, type-checked without their tests.
type module struct {
	path     string
	fset     *token.FileSet
	packages []*pkg
}

type pkg struct {
	path  string
	dir   string
	types *types.Package
	files []*ast.File
}

// listed is the output of "go list -json" for a package.
type listed struct {
	ImportPath, Dir, Name, Export string
	GoFiles, CgoFiles             []string
	Module                        *struct {
		Path string
		Main bool
	}
}

// load type-checks the module in dir. It takes the types of dependencies from the
// compiler's export data, so only the Go tool is needed.
func load(dir string) (*module, error) {
	cmd := exec.Command("go", "list", "-export", "-deps", "-json=ImportPath,Dir,Name,Export,GoFiles,CgoFiles,Module", "./...")
	cmd.Dir, cmd.Stderr = dir, os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", cmd, err)
	}
	exports := map[string]string{}
	var own []listed
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var l listed
		if err := d.Decode(&l); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("%s: %w", cmd, err)
		}
		exports[l.ImportPath] = l.Export
		if l.Module != nil && l.Module.Main {
			own = append(own, l)
		}
	}
	if len(own) == 0 {
		return nil, fmt.Errorf("no packages in %s; give the top folder of the module with -dir", dir)
	}
	m := &module{path: own[0].Module.Path, fset: token.NewFileSet()}
	imports := importer.ForCompiler(m.fset, "gc", func(path string) (io.ReadCloser, error) {
		if exports[path] == "" {
			return nil, fmt.Errorf("no export data of %s", path)
		}
		return os.Open(exports[path])
	})
	for _, l := range own {
		p := &pkg{path: l.ImportPath, dir: l.Dir}
		for _, name := range append(l.GoFiles, l.CgoFiles...) {
			f, err := parser.ParseFile(m.fset, filepath.Join(l.Dir, name), nil, parser.ParseComments|parser.SkipObjectResolution)
			if err != nil {
				return nil, err
			}
			p.files = append(p.files, f)
		}
		config := types.Config{Importer: imports}
		if p.types, err = config.Check(l.ImportPath, m.fset, p.files, nil); err != nil {
			return nil, err
		}
		m.packages = append(m.packages, p)
	}
	slices.SortFunc(m.packages, func(a, b *pkg) int { return strings.Compare(a.path, b.path) })
	return m, nil
}

// short returns the path of a package within the module, "." for the root.
func (m *module) short(path string) string {
	if path == m.path {
		return "."
	}
	return strings.TrimPrefix(path, m.path+"/")
}

// public reports whether programs outside of the module can import p.
func (m *module) public(p *pkg) bool {
	parts := strings.Split(m.short(p.path), "/")
	return p.types.Name() != "main" && !slices.Contains(parts, "internal")
}

// library reports whether p belongs to the library rather than to its examples,
// tests and tools.
func (m *module) library(p *pkg) bool {
	first, _, _ := strings.Cut(m.short(p.path), "/")
	return p.types.Name() != "main" && first != "examples" && first != "integration_test"
}
