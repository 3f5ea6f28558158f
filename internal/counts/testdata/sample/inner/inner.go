// Package inner tells whether it is no package.
package inner

// A Thing has a field and a method.
type Thing struct{ Size int }

// Grow makes it larger.
func (t Thing) Grow() { _ = base{} }

type base struct{}
