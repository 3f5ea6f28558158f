//go:build unix

package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// onResize calls f whenever the size of the terminal has changed, until ctx ends.
func onResize(ctx context.Context, f func()) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGWINCH)
	defer signal.Stop(c)
	for {
		select {
		case <-c:
			f()
		case <-ctx.Done():
			return
		}
	}
}
