package main

import (
	"bytes"
	"fmt"
	"hash/fnv"
	"io"
	"strings"
	"sync"
)

// Escape sequences that the screen writes. Every terminal that is compatible with xterm
// or vt100 understands them.
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
	newline     = "\r\n" // in raw mode, "\n" alone does not move the cursor to the first column
)

const prompt = "> "

// screen is a view for a terminal in raw mode. It keeps two rows at the bottom: the list of
// people who are here, and the line that the user is writing. Everything else is printed
// above them and scrolls up into the terminal's own scrollback. The methods of a screen may
// be called from several goroutines.
type screen struct {
	out   io.Writer
	size  func() int // returns the terminal's width in columns; 0 if unknown
	color bool
	typed chan string
	end   chan struct{}
	// restore switches the terminal back from raw mode.
	restore func()

	mu     sync.Mutex
	kb     keyboard
	line   line
	width  int      // the terminal's width when the two rows at the bottom were last drawn
	who    string   // the text of the upper of the two rows: the people in the chat
	names  []string // their names, for completion
	drawn  bool     // the two rows at the bottom are on the terminal now
	rowLen int      // the width of the upper row when it was last drawn
	cursor int      // the column of the cursor when the two rows were last drawn
	buf    bytes.Buffer
	closed bool
}

// newScreen draws a new screen on the terminal out, with colors if color is true. size returns
// the terminal's width in columns, or 0 if it is unknown.
func newScreen(out io.Writer, size func() int, color bool) *screen {
	s := &screen{out: out, size: size, color: color, typed: make(chan string, 16), end: make(chan struct{}), restore: func() {}}
	s.buf.WriteString(pasteMode)
	s.redraw()
	return s
}

func (s *screen) lines() <-chan string   { return s.typed }
func (s *screen) ended() <-chan struct{} { return s.end }
func (s *screen) typing() bool           { return true }

func (s *screen) showReceived(name, text string) {
	who, _, _ := strings.Cut(name, " ")
	name += ":"
	s.print(s.paint(colorOf(who), name) + wrap(" "+text, width([]rune(name)), s.columns()))
}

func (s *screen) showSent(name, text string) { s.showReceived(name, text) }

func (s *screen) showStatus(format string, args ...any) {
	s.print(s.paint(dim, wrap("* "+fmt.Sprintf(format, args...), 0, s.columns())))
}

// showCommand shows label and below it the command line, on a line of its own, so that a triple
// click selects just the command.
func (s *screen) showCommand(label, line string) {
	s.print(s.paint(dim, "* "+label) + newline + newline + s.paint(bold, line) + newline)
}

func (s *screen) showTable(rows [][]string) {
	for _, row := range aligned(rows) {
		s.print("    " + row)
	}
}

func (s *screen) showMembers(summary string, names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.who, s.names = summary, names
	s.redraw()
}

// resized draws the two rows at the bottom again after the terminal's width has changed.
func (s *screen) resized() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.redraw()
}

// print prints a text, which may fill several rows, above the two rows at the bottom.
func (s *screen) print(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.erase()
	s.buf.WriteString(text + newline)
	s.redraw()
}

// run reads keys from in until ctrl-c, ctrl-d on an empty line or the end of in, or until done
// is closed. Then it closes the channel that lines returns. Ctrl-c also calls quit at once, even
// if written lines are not sent yet.
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

// press applies bytes that were read from the keyboard. It returns the lines that the user
// finished with Enter, and the key that ended the chat, or keyNone.
func (s *screen) press(b []byte) (ended []string, last key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.kb.read(b) {
		switch {
		case p.key == keyQuit, p.key == keyEOF && len(s.line.text) == 0:
			s.redraw()
			return ended, p.key
		case p.key == keyEnter:
			if text := s.line.finish(); strings.TrimSpace(text) != "" {
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

// complete completes the name before the cursor, or rings the bell if no name or more than
// one name begins with the written letters.
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

// close erases the two rows at the bottom and leaves the cursor on an empty line for the shell.
// Text that is printed later still appears.
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

// erase erases the two rows at the bottom and puts the cursor where the next line is to be
// printed. If the terminal became narrower, it has broken the two rows into more than two.
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

// redraw draws the two rows at the bottom and writes everything to the terminal in one write.
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
	s.out.Write(s.buf.Bytes()) // an error is ignored: if the terminal is gone, SIGHUP ends the program
	s.buf.Reset()
}

func (s *screen) columns() int {
	if w := s.size(); w > 0 {
		return max(w, len(prompt)+2)
	}
	return 80
}

func (s *screen) paint(how, text string) string {
	if !s.color {
		return text
	}
	return how + text + reset
}

// colorOf returns the color of a name. It depends on the name alone, and is one of six
// colors that can be read on light and dark backgrounds.
func colorOf(name string) string {
	h := fnv.New32a()
	io.WriteString(h, name)
	return fmt.Sprintf("\x1b[1;%dm", 31+h.Sum32()%6)
}

// aligned returns the rows of a table as lines whose columns are aligned.
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
