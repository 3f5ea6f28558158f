package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"unicode/utf8"
)

// plain is a view of lines: "name: text", and "* " before everything the chat
// itself has to say.
type plain struct {
	mu     sync.Mutex
	out    io.Writer
	person bool
	typed  chan string
	end    chan struct{}
}

// newPlain's channel lets a small input be read to its end before anybody is
// connected, since how long to wait depends on that end.
func newPlain(out io.Writer, person bool) *plain {
	return &plain{out: out, person: person, typed: make(chan string, 1024), end: make(chan struct{})}
}

func (p *plain) lines() <-chan string   { return p.typed }
func (p *plain) ended() <-chan struct{} { return p.end }
func (p *plain) typing() bool           { return p.person }
func (p *plain) close()                 {}

func (p *plain) said(name, text string)              { p.print(name + ": " + text) }
func (p *plain) sent(name, text string)              {}
func (p *plain) status(format string, args ...any)   { p.print("* " + fmt.Sprintf(format, args...)) }
func (p *plain) command(label, line string)          { p.print("* " + label + " " + line) }
func (p *plain) here(summary string, names []string) {}

func (p *plain) table(rows [][]string) {
	for _, row := range aligned(rows) {
		p.print("* " + row)
	}
}

func (p *plain) print(line string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	io.WriteString(p.out, line+"\n")
}

// run reads in to its end, or until done is closed, and closes lines() then.
// Blank lines are left out; one too long for the buffer comes in parts.
func (p *plain) run(in io.Reader, done <-chan struct{}) {
	defer close(p.typed)
	defer close(p.end)
	r := bufio.NewReaderSize(in, 64<<10)
	var rest string // of a character cut in two
	for {
		b, err := r.ReadSlice('\n')
		text := rest + string(b)
		rest = ""
		if errors.Is(err, bufio.ErrBufferFull) {
			text, rest = wholeRunes(text)
			err = nil
		}
		if text = strings.TrimRight(text, "\r\n"); strings.TrimSpace(text) != "" {
			select {
			case p.typed <- text:
			case <-done:
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// wholeRunes splits off the beginning of a character at the end of s.
func wholeRunes(s string) (whole, rest string) {
	for i := 1; i < utf8.UTFMax && i <= len(s); i++ {
		if at := len(s) - i; utf8.RuneStart(s[at]) {
			if !utf8.FullRuneInString(s[at:]) {
				return s[:at], s[at:]
			}
			break
		}
	}
	return s, ""
}
