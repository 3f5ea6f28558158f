//go:build !unix

package main

import (
	"context"
	"time"
)

// onResize calls f twice a second until ctx ends, since nothing tells that a
// terminal changed its size here.
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
