//go:build !unix

package main

import (
	"context"
	"time"
)

// onResize calls f twice a second until ctx ends, because this system does not report
// changes of the terminal's size.
func onResize(ctx context.Context, f func()) {
	t := time.NewTicker(500 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			f()
		case <-ctx.Done():
			return
		}
	}
}
