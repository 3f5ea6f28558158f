package main

import (
	"fmt"
	"strings"
	"sync"
	"unicode/utf8"
)

// vt is as much of a terminal as the screen uses: it shows what a person would
// see. Like most terminals it wraps the text anew when its width changes.
type vt struct {
	mu    sync.Mutex
	width int
	rows  []vtRow
	y, x  int
	rest  []byte
	bells int
	paste bool // whether bracketed paste is on
}

type vtRow struct {
	cells   []string // one per column; "" is the second half of a wide character
	wrapped bool     // the next row continues this one
}

func newVT(width int) *vt { return &vt{width: width, rows: make([]vtRow, 1)} }

func (t *vt) size() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.width
}

func (t *vt) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	in := append(t.rest, b...)
	t.rest = nil
	for len(in) > 0 {
		n := 1
		switch c := in[0]; {
		case c == '\r':
			t.x = 0
		case c == '\n':
			t.down()
		case c == '\a':
			t.bells++
		case c == esc:
			if n = t.sequence(in); n == 0 {
				t.rest = in
				return len(b), nil
			}
		case c < ' ':
			panic(fmt.Sprintf("the terminal got %q", in))
		default:
			var r rune
			r, n = utf8.DecodeRune(in)
			t.put(r)
		}
		in = in[n:]
	}
	return len(b), nil
}

func (t *vt) sequence(in []byte) int {
	end := 2
	for end < len(in) && (in[end] < 0x40 || in[end] > 0x7e) {
		end++
	}
	if end >= len(in) {
		return 0
	}
	seq := string(in[1 : end+1])
	n := 1
	fmt.Sscanf(seq[1:], "%d", &n)
	switch seq[len(seq)-1] {
	case 'A':
		t.y = max(0, t.y-n)
	case 'C':
		t.x = min(t.width-1, t.x+n)
	case 'H':
		t.y, t.x = 0, 0
	case 'J':
		if n == 2 {
			t.rows = make([]vtRow, t.y+1)
		} else {
			t.rows = t.rows[:t.y+1]
			t.rows[t.y].cells = t.rows[t.y].cells[:min(t.x, len(t.rows[t.y].cells))]
			t.rows[t.y].wrapped = false
		}
	case 'm':
	case 'h', 'l':
		if strings.HasPrefix(seq, "[?2004") {
			t.paste = seq == "[?2004h"
		}
	default:
		panic("the terminal does not know ESC" + seq)
	}
	return end + 1
}

func (t *vt) down() {
	if t.y++; t.y == len(t.rows) {
		t.rows = append(t.rows, vtRow{})
	}
}

func (t *vt) put(r rune) {
	w := columns(r)
	if t.x+w > t.width {
		t.rows[t.y].wrapped = true
		t.down()
		t.x = 0
	}
	row := &t.rows[t.y]
	if w == 0 {
		row.cells[t.x-1] += string(r)
		return
	}
	for len(row.cells) < t.x+w {
		row.cells = append(row.cells, " ")
	}
	row.cells[t.x] = string(r)
	if w == 2 {
		row.cells[t.x+1] = ""
	}
	t.x += w
}

func (t *vt) resize(width int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var rows []vtRow
	y, x := 0, 0
	for i := 0; i < len(t.rows); i++ {
		var cells []string
		at := -1 // the cursor's place in cells
		for {
			if i == t.y {
				at = len(cells) + t.x
			}
			cells = append(cells, t.rows[i].cells...)
			if !t.rows[i].wrapped {
				break
			}
			i++
		}
		if at >= 0 {
			y, x = len(rows)+at/width, at%width
		}
		for len(cells) > width {
			rows = append(rows, vtRow{cells[:width], true})
			cells = cells[width:]
		}
		rows = append(rows, vtRow{cells, false})
	}
	t.rows, t.y, t.x, t.width = rows, y, x, width
	for len(t.rows) <= t.y {
		t.rows = append(t.rows, vtRow{})
	}
}

// String shows the terminal inside a frame, with the cursor as █.
func (t *vt) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var b strings.Builder
	for y, row := range t.rows {
		cells := append([]string(nil), row.cells...)
		if y == t.y {
			for len(cells) <= t.x {
				cells = append(cells, " ")
			}
			if cells[t.x] == " " {
				cells[t.x] = "█"
			} else {
				cells[t.x] = "█" + cells[t.x] // it is on that character
			}
		}
		fmt.Fprintf(&b, "|%s\n", strings.TrimRight(strings.Join(cells, ""), " "))
	}
	return b.String()
}
