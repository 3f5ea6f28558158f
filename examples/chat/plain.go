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

// plain is a view that prints lines: "name: text" for what people write, and "* text" for
// messages of the program itself.
type plain struct {
	mu     sync.Mutex
	out    io.Writer
	person bool
	typed  chan string
	end    chan struct{}
}

// newPlain returns a plain view that prints to out. person is true if a person types the lines.
// The channel of lines holds 1024 of them, so that a small input is read to its end even before
// somebody is connected: from that end on, chat waits only a limited time for a connection.
func newPlain(out io.Writer, person bool) *plain {
	return &plain{out: out, person: person, typed: make(chan string, 1024), end: make(chan struct{})}
}

func (p *plain) lines() <-chan string   { return p.typed }
func (p *plain) ended() <-chan struct{} { return p.end }
func (p *plain) typing() bool           { return p.person }
func (p *plain) close()                 {}

func (p *plain) showReceived(name, text string)             { p.print(name + ": " + text) }
func (p *plain) showSent(name, text string)                 {}
func (p *plain) showStatus(format string, args ...any)      { p.print("* " + fmt.Sprintf(format, args...)) }
func (p *plain) showCommand(label, line string)             { p.print("* " + label + " " + line) }
func (p *plain) showMembers(summary string, names []string) {}

func (p *plain) showTable(rows [][]string) {
	for _, row := range aligned(rows) {
		p.print("* " + row)
	}
}

func (p *plain) print(line string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	io.WriteString(p.out, line+"\n")
}

// run reads lines from in until its end, or until done is closed, and then closes the channel
// that lines returns. It skips blank lines and splits lines that are longer than its buffer.
func (p *plain) run(in io.Reader, done <-chan struct{}) {
	defer close(p.typed)
	defer close(p.end)
	r := bufio.NewReaderSize(in, 64<<10)
	var rest string // the first bytes of a character that the end of the buffer cut in two
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

// wholeRunes splits s into whole characters and rest, which is an incomplete character at the
// end of s or empty.
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
