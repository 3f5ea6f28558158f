package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/term"
)

// open chooses the view for in and out and starts reading lines: a screen if
// both are a terminal, else plain lines. Ctrl-C in a screen calls quit.
func open(ctx context.Context, in io.Reader, out io.Writer, quit func()) (view, error) {
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
	// Panics elsewhere unwind through the deferred close of run.
	go s.guard(func() { s.run(in, ctx.Done(), quit) })
	go s.guard(func() { onResize(ctx, s.resized) })
	return s, nil
}

// guard calls f and gives the terminal back before a panic of f is printed.
func (s *screen) guard(f func()) {
	defer func() {
		if r := recover(); r != nil {
			s.close()
			panic(r)
		}
	}()
	f()
}

// terminal returns x as the terminal it is.
func terminal(x any) (*os.File, bool) {
	f, ok := x.(*os.File)
	return f, ok && term.IsTerminal(int(f.Fd()))
}
