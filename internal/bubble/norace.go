//go:build !race

package bubble

func confine() (free func()) { return func() {} }
