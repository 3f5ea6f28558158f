package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/term"
)

// newView returns a view for in and out and starts to read lines from in. The view is a
// screen if both are terminals, and plain otherwise. Ctrl-c in a screen calls quit.
func newView(ctx context.Context, in io.Reader, out io.Writer, quit func()) (view, error) {
	keys, typed := terminal(in)
	tty, shown := terminal(out)
	if !typed || !shown || os.Getenv("TERM") == "dumb" {
		p := newPlain(out, typed)
		go p.run(in, ctx.Done())
		return p, nil
	}
	state, err := term.MakeRaw(int(keys.Fd()))
	if err != nil {
		return nil, fmt.Errorf("read single keys from the terminal: %w; `chat | cat` needs plain lines only", err)
	}
	restore := sync.OnceFunc(func() { term.Restore(int(keys.Fd()), state) })
	s := newScreen(tty, func() int {
		w, _, _ := term.GetSize(int(tty.Fd()))
		return w
	}, os.Getenv("NO_COLOR") == "")
	s.restore = restore
	// A panic in one of the two goroutines that start below would leave the terminal in raw
	// mode, so guard restores it. A panic in the main goroutine runs the deferred close in run.
	go s.guard(func() { s.run(in, ctx.Done(), quit) })
	go s.guard(func() { onResize(ctx, s.resized) })
	return s, nil
}

// guard calls f. If f panics, guard restores the terminal before the panic is printed.
func (s *screen) guard(f func()) {
	defer func() {
		if r := recover(); r != nil {
			s.close()
			panic(r)
		}
	}()
	f()
}

// terminal returns x as a file and reports whether it is a terminal.
func terminal(x any) (*os.File, bool) {
	f, ok := x.(*os.File)
	return f, ok && term.IsTerminal(int(f.Fd()))
}
