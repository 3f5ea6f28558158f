package main

import (
	"fmt"
	"go/ast"
	"go/types"
	"slices"
	"strings"
)

// vague lists method names that do not say what the method does, and to what.
var vague = []string{
	"alone", "end", "forget", "hope", "hurry", "judge", "keep", "lone", "lonely", "look",
	"mingle", "open", "own", "part", "put", "rest", "soil", "spare", "take", "tell", "teller", "told",
}

// mayRepeat lists type names that several packages may use, because they are clear together
// with the name of the package, as in health.Config.
var mayRepeat = []string{"Config", "Stats", "config", "stats"}

// count counts identifiers: the exported ones, vague method names, repeated type names
// and the fields of Node.
func (m *module) count() *counts {
	all := &counts{}
	for _, p := range m.packages {
		if m.public(p) {
			m.exported(p, all)
		}
	}
	all.declare("vague-method-names")
	all.declare("repeated-type-names")
	all.declare("fields-of-Node")
	m.methodNames(all)
	m.typeNames(all)
	for _, p := range m.packages {
		if p.path != m.path {
			continue
		}
		if node, ok := p.types.Scope().Lookup("Node").(*types.TypeName); ok {
			if s, ok := node.Type().Underlying().(*types.Struct); ok {
				for f := range s.Fields() {
					all.add("fields-of-Node", f.Name())
				}
			}
		}
	}
	return all
}

// exported counts the exported identifiers of p that its documentation shows. Methods and
// fields count too, also those that come from an alias or an embedded type of this
// module.
func (m *module) exported(p *pkg, all *counts) {
	name := "exported:" + m.short(p.path)
	add := func(id string) {
		all.add("exported", m.short(p.path)+" "+id)
		all.add(name, id)
	}
	scope := p.types.Scope()
	for _, id := range scope.Names() {
		o := scope.Lookup(id)
		if !o.Exported() {
			continue
		}
		add(id)
		t, ok := o.(*types.TypeName)
		if !ok || !m.ours(types.Unalias(t.Type())) {
			continue
		}
		for _, member := range members(types.Unalias(t.Type())) {
			add(id + "." + member)
		}
	}
}

// ours reports whether t is declared in this module.
func (m *module) ours(t types.Type) bool {
	named, ok := t.(*types.Named)
	return ok && named.Obj().Pkg() != nil && strings.HasPrefix(named.Obj().Pkg().Path(), m.path)
}

// members returns the exported fields and methods of t and of the types it embeds.
func members(t types.Type) []string {
	found := map[string]bool{}
	var visit func(t types.Type)
	visit = func(t types.Type) {
		s, ok := t.Underlying().(*types.Struct)
		if !ok {
			return
		}
		for f := range s.Fields() {
			if f.Exported() {
				found[f.Name()] = true
			}
			if f.Embedded() {
				if p, ok := f.Type().(*types.Pointer); ok {
					visit(p.Elem())
				} else {
					visit(f.Type())
				}
			}
		}
	}
	visit(t)
	set := t
	if !types.IsInterface(t) {
		set = types.NewPointer(t)
	}
	methods := types.NewMethodSet(set)
	for i := range methods.Len() {
		if f := methods.At(i).Obj(); f.Exported() {
			found[f.Name()] = true
		}
	}
	list := make([]string, 0, len(found))
	for id := range found {
		list = append(list, id)
	}
	slices.Sort(list)
	return list
}

func (m *module) methodNames(all *counts) {
	for _, p := range m.packages {
		if !m.library(p) {
			continue
		}
		for _, f := range p.files {
			for _, d := range f.Decls {
				fn, ok := d.(*ast.FuncDecl)
				if ok && fn.Recv != nil && slices.Contains(vague, fn.Name.Name) {
					all.add("vague-method-names", fmt.Sprintf("%s: %s", m.fset.Position(fn.Pos()), fn.Name.Name))
				}
			}
		}
	}
}

// typeNames counts type names that are declared more than once in the module, without
// regard to upper and lower case. Aliases do not count. Nor do the exported types of
// the root: the public API may repeat a name of the package that it wraps.
func (m *module) typeNames(all *counts) {
	where := map[string][]string{}
	var order []string
	for _, p := range m.packages {
		if !m.library(p) {
			continue
		}
		scope := p.types.Scope()
		for _, id := range scope.Names() {
			t, ok := scope.Lookup(id).(*types.TypeName)
			if !ok || t.IsAlias() || slices.Contains(mayRepeat, id) || p.path == m.path && t.Exported() {
				continue
			}
			key := strings.ToLower(id)
			if where[key] == nil {
				order = append(order, key)
			}
			where[key] = append(where[key], m.short(p.path)+"."+id)
		}
	}
	slices.Sort(order)
	for _, key := range order {
		if len(where[key]) > 1 {
			all.add("repeated-type-names", strings.Join(where[key], ", "))
		}
	}
}
