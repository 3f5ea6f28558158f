package main

import (
	"slices"
	"strings"
	"unicode"
)

const (
	maxLine    = 16 << 10 // characters
	maxHistory = 200
)

// line is an editor for one line of input, with a history of earlier lines. The cursor is
// before text[at]. A line break inside a pasted text is one character, shown as ⏎.
type line struct {
	text []rune
	at   int

	history []string
	back    int    // which line is shown: 0 for the new one, 1 for the last one of history, and so on
	draft   string // keeps the new line while an older line is shown
}

func (l *line) String() string { return string(l.text) }

func (l *line) set(s string) {
	l.text = []rune(s)
	l.at = len(l.text)
}

// insert inserts s before the cursor and reports whether all of it fitted into maxLine.
func (l *line) insert(s string) bool {
	r := []rune(s)
	room := maxLine - len(l.text)
	fits := len(r) <= room
	r = r[:min(len(r), room)]
	l.text = slices.Insert(l.text, l.at, r...)
	l.at += len(r)
	return fits
}

// left returns the position in text of the character before the cursor. Accents and joined
// emoji count as a part of the character that they follow; the same is true in right.
func (l *line) left() int {
	i := l.at
	for i > 0 {
		i--
		if columns(l.text[i]) > 0 && (i == 0 || l.text[i-1] != zwj) {
			break
		}
	}
	return i
}

func (l *line) right() int {
	i := l.at
	for i < len(l.text) {
		i++
		if i == len(l.text) || columns(l.text[i]) > 0 && l.text[i-1] != zwj {
			break
		}
	}
	return i
}

func (l *line) wordLeft() int {
	i := l.at
	for i > 0 && !wordy(l.text[i-1]) {
		i--
	}
	for i > 0 && wordy(l.text[i-1]) {
		i--
	}
	return i
}

func (l *line) wordRight() int {
	i := l.at
	for i < len(l.text) && !wordy(l.text[i]) {
		i++
	}
	for i < len(l.text) && wordy(l.text[i]) {
		i++
	}
	return i
}

func wordy(r rune) bool { return !unicode.IsSpace(r) }

// cut removes the text between the cursor and position i.
func (l *line) cut(i int) {
	from, to := min(l.at, i), max(l.at, i)
	l.text = slices.Delete(l.text, from, to)
	l.at = from
}

// browse shows the line n steps earlier in history, or later if n is negative. It reports
// whether there is such a line.
func (l *line) browse(n int) bool {
	to := l.back + n
	if to < 0 || to > len(l.history) {
		return false
	}
	if l.back == 0 {
		l.draft = l.String()
	}
	if l.back = to; to == 0 {
		l.set(l.draft)
	} else {
		l.set(l.history[len(l.history)-to])
	}
	return true
}

// finish returns the written line, adds it to history and empties the editor.
func (l *line) finish() string {
	s := l.String()
	if strings.TrimSpace(s) != "" && (len(l.history) == 0 || l.history[len(l.history)-1] != s) {
		l.history = append(l.history, s)
		l.history = l.history[max(0, len(l.history)-maxHistory):]
	}
	l.set("")
	l.back, l.draft = 0, ""
	return s
}

// edit applies a key press to the line and reports whether it changed the text or the
// cursor. It ignores keys that do not edit, such as Enter.
func (l *line) edit(p press) bool {
	was := l.at
	switch p.key {
	case keyText:
		return l.insert(p.text)
	case keyLeft:
		l.at = l.left()
	case keyRight:
		l.at = l.right()
	case keyWordLeft:
		l.at = l.wordLeft()
	case keyWordRight:
		l.at = l.wordRight()
	case keyHome:
		l.at = 0
	case keyEnd:
		l.at = len(l.text)
	case keyUp:
		return l.browse(1)
	case keyDown:
		return l.browse(-1)
	case keyBackspace:
		l.cut(l.left())
	case keyDelete, keyEOF:
		n := len(l.text)
		l.cut(l.right())
		return len(l.text) < n
	case keyCutWord:
		l.cut(l.wordLeft())
	case keyCutLeft:
		l.cut(0)
	case keyCutRight:
		n := len(l.text)
		l.cut(n)
		return len(l.text) < n
	}
	return l.at != was
}

// view returns the part of the line that fits into room columns of the screen, and the cursor's
// column in it. An end at which text is cut off is marked with ‹ or ›.
func (l *line) view(room int) (shown string, cursor int) {
	if room < 6 {
		return "", 0
	}
	from := 0
	if width(l.text) >= room {
		// Two thirds of the columns show text before the cursor, the rest show text after it.
		from = l.at
		for n := room * 2 / 3; from > 0 && n >= glyphWidth(l.text[from-1]); from-- {
			n -= glyphWidth(l.text[from-1])
		}
	}
	var b strings.Builder
	used := 0
	if from > 0 {
		b.WriteRune('‹')
		used++
	}
	cursor = used + width(l.text[from:l.at])
	for i, r := range l.text[from:] {
		if used+glyphWidth(r) > room-1 && width(l.text[from+i:]) > room-used {
			b.WriteRune('›')
			break
		}
		b.WriteRune(glyph(r))
		used += glyphWidth(r)
	}
	return b.String(), cursor
}

// glyph returns the character that stands for r on the screen.
func glyph(r rune) rune {
	if r == '\n' {
		return '⏎'
	}
	return r
}

func glyphWidth(r rune) int { return columns(glyph(r)) }

func width(text []rune) int {
	n := 0
	for _, r := range text {
		n += glyphWidth(r)
	}
	return n
}
