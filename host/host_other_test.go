//go:build !linux

package host

var linuxChildren map[string]func()
