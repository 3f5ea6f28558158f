// Package sample is counted by a test.
package sample

import "example.org/sample/inner"

// Node has one field, whom nobody needs.
type Node struct{ base }

type base struct{ Name string }

// Rename is promoted to Node.
func (b *base) Rename(name string) { b.Name = name }

func (b *base) take() {}

// Alias brings along the members of the type of the other package.
type Alias = inner.Thing
