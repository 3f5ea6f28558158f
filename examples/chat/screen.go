package main

import (
	"bytes"
	"fmt"
	"hash/fnv"
	"io"
	"strings"
	"sync"
)

// What the screen says to a terminal. All of it is understood by anything that
// has called itself xterm or vt100 in the last thirty years.
const (
	clearBelow  = "\x1b[J"
	hideCursor  = "\x1b[?25l"
	showCursor  = "\x1b[?25h"
	pasteMode   = "\x1b[?2004h"
	noPasteMode = "\x1b[?2004l"
	reset       = "\x1b[m"
	bold        = "\x1b[1m"
	dim         = "\x1b[2m"
	bell        = "\a"
	newline     = "\r\n" // a raw terminal does not return the carriage itself
)

const prompt = "> "

// screen is a view for a terminal in raw mode. Lines run upwards into the
// terminal's own scrollback; below them stay two rows, who is here and the line
// being written. Its methods may be called from several goroutines.
type screen struct {
	out    io.Writer
	size   func() int // columns; 0 if unknown
	colour bool
	typed  chan string
	end    chan struct{}
	// restore gives the terminal back its own mode.
	restore func()

	mu     sync.Mutex
	kb     keyboard
	line   line
	width  int    // columns when last drawn
	who    string // the row above the line
	names  []string
	drawn  bool
	rowLen int // columns of the who row as drawn
	cursor int // column of the cursor as drawn
	buf    bytes.Buffer
	closed bool
}

// newScreen shows itself on out, whose width size returns.
func newScreen(out io.Writer, size func() int, colour bool) *screen {
	s := &screen{out: out, size: size, colour: colour, typed: make(chan string, 16), end: make(chan struct{}), restore: func() {}}
	s.buf.WriteString(pasteMode)
	s.redraw()
	return s
}

func (s *screen) lines() <-chan string   { return s.typed }
func (s *screen) ended() <-chan struct{} { return s.end }
func (s *screen) typing() bool           { return true }

func (s *screen) said(name, text string) {
	who, _, _ := strings.Cut(name, " ")
	name += ":"
	s.print(s.paint(colourOf(who), name) + wrap(" "+text, width([]rune(name)), s.columns()))
}

func (s *screen) sent(name, text string) { s.said(name, text) }

func (s *screen) status(format string, args ...any) {
	s.print(s.paint(dim, wrap("* "+fmt.Sprintf(format, args...), 0, s.columns())))
}

// command has a line of its own, so that a triple click takes it and no more.
func (s *screen) command(label, line string) {
	s.print(s.paint(dim, "* "+label) + newline + newline + s.paint(bold, line) + newline)
}

func (s *screen) table(rows [][]string) {
	for _, row := range aligned(rows) {
		s.print("    " + row)
	}
}

func (s *screen) here(summary string, names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.who, s.names = summary, names
	s.redraw()
}

// resized draws anew for the terminal's present width.
func (s *screen) resized() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.redraw()
}

// print puts a line, which may fill several rows, above the two of ours.
func (s *screen) print(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.erase()
	s.buf.WriteString(text + newline)
	s.redraw()
}

// run reads keys from in until ctrl-c, ctrl-d on an empty line or the end of in,
// and closes lines() then. Ctrl-C also calls quit at once, whatever lines are
// still waiting to be taken.
func (s *screen) run(in io.Reader, done <-chan struct{}, quit func()) {
	defer close(s.typed)
	defer close(s.end)
	b := make([]byte, 4096)
	for {
		n, err := in.Read(b)
		ended, last := s.press(b[:n])
		if last == keyQuit {
			quit()
		}
		for _, text := range ended {
			select {
			case s.typed <- text:
			case <-done:
				return
			}
		}
		if err != nil || last != keyNone {
			return
		}
	}
}

// press applies what was read from the keyboard. It returns the lines that were
// ended, and the key that ended the session if there was one.
func (s *screen) press(b []byte) (ended []string, last key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.kb.read(b) {
		switch {
		case p.key == keyQuit, p.key == keyEOF && len(s.line.text) == 0:
			s.redraw()
			return ended, p.key
		case p.key == keyEnter:
			if text := s.line.take(); strings.TrimSpace(text) != "" {
				ended = append(ended, text)
			}
		case p.key == keyComplete:
			s.complete()
		case p.key == keyRedraw:
			s.buf.WriteString("\x1b[H\x1b[2J")
			s.drawn = false
		case !s.line.edit(p):
			s.buf.WriteString(bell)
		}
	}
	s.redraw()
	return ended, keyNone
}

// complete finishes the name before the cursor.
func (s *screen) complete() {
	start := s.line.wordLeft()
	if start == s.line.at || s.line.at > 0 && !wordy(s.line.text[s.line.at-1]) {
		s.buf.WriteString(bell)
		return
	}
	word := strings.ToLower(string(s.line.text[start:s.line.at]))
	var found []string
	for _, name := range s.names {
		if strings.HasPrefix(strings.ToLower(name), word) {
			found = append(found, name)
		}
	}
	if len(found) != 1 {
		s.buf.WriteString(bell)
		return
	}
	after := " "
	if start == 0 {
		after = ": "
	}
	s.line.cut(start)
	s.line.insert(found[0] + after)
}

// close takes the two rows away and leaves the cursor where a shell can go on.
// What is printed later still appears.
func (s *screen) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.erase()
	s.closed = true
	s.buf.WriteString(reset + showCursor + noPasteMode)
	s.flush()
	s.restore()
}

// erase removes our two rows; the cursor is then where the next line goes. If
// the terminal became narrower they may fill more rows than when drawn.
func (s *screen) erase() {
	if s.closed {
		return
	}
	s.buf.WriteString(hideCursor)
	if !s.drawn {
		return
	}
	up := 1
	if w := s.columns(); w < s.width {
		up = (s.rowLen+w-1)/w + s.cursor/w
	}
	fmt.Fprintf(&s.buf, "\r\x1b[%dA%s", up, clearBelow)
	s.drawn = false
}

// redraw draws our two rows and sends everything to the terminal at once.
func (s *screen) redraw() {
	if s.closed {
		s.flush()
		return
	}
	s.erase()
	s.width = s.columns()
	who := fit(strings.TrimSpace("── "+s.who)+" ──", s.width-1)
	shown, cursor := s.line.view(s.width - 1 - len(prompt))
	s.rowLen, s.cursor, s.drawn = width([]rune(who)), cursor+len(prompt), true
	fmt.Fprintf(&s.buf, "%s%s%s%s\r\x1b[%dC%s", s.paint(dim, who), newline, prompt, shown, s.cursor, showCursor)
	s.flush()
}

func (s *screen) flush() {
	s.out.Write(s.buf.Bytes()) // a terminal that is gone ends the program by its signal
	s.buf.Reset()
}

func (s *screen) columns() int {
	if w := s.size(); w > 0 {
		return max(w, len(prompt)+2)
	}
	return 80
}

func (s *screen) paint(how, text string) string {
	if !s.colour {
		return text
	}
	return how + text + reset
}

// colourOf gives a name its colour, the same everywhere: one of six that can be
// read on light and dark.
func colourOf(name string) string {
	h := fnv.New32a()
	io.WriteString(h, name)
	return fmt.Sprintf("\x1b[1;%dm", 31+h.Sum32()%6)
}

// aligned pads the columns of a table.
func aligned(rows [][]string) []string {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], width([]rune(cell)))
		}
	}
	lines := make([]string, len(rows))
	for n, row := range rows {
		var b strings.Builder
		for i, cell := range row {
			b.WriteString(cell)
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-width([]rune(cell))+2))
			}
		}
		lines[n] = strings.TrimRight(b.String(), " ")
	}
	return lines
}
