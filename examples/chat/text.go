package main

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits, in characters, of the texts and names of other people that are shown. Longer texts
// of this user are sent in pieces of maxText.
const (
	maxText = 2000
	maxName = 24
)

// maxMarks is the largest number of accents shown on one letter. A terminal draws more of
// them over the lines above.
const maxMarks = 4

// clean makes a text from the network safe to show on one line. The result has no control
// characters (and so no escape sequences and no line breaks), no invisible characters that
// reverse or hide the text after them, and at most limit characters.
func clean(s string, limit int) string {
	var b strings.Builder
	n, marks := 0, 0
	for i, r := range s {
		if n == limit {
			if strings.TrimSpace(s[i:]) != "" {
				b.WriteString("…")
			}
			break
		}
		if r = printable(r); r < 0 {
			continue
		}
		if !unicode.In(r, unicode.Mn, unicode.Me) {
			marks = 0
		} else if marks++; marks > maxMarks {
			continue
		}
		b.WriteRune(r)
		n++
	}
	return b.String()
}

// printable returns the character that is shown for r, or -1 if nothing is shown.
func printable(r rune) rune {
	switch {
	case r == '\t' || unicode.Is(unicode.Zs, r):
		return ' '
	case r < ' ':
		return '␀' + r // Unicode has visible symbols for control characters, in the same order
	case r == 0x7f:
		return '␡'
	case r == zwnj || r == zwj: // invisible, but some scripts and emoji need them
		return r
	case unicode.Is(unicode.Cf, r):
		return -1
	case !unicode.IsPrint(r):
		return utf8.RuneError
	}
	return r
}

// cleanName turns a name from the network into one word, so that it can be typed after /msg
// and does not look like a status line. It returns "" if no usable character is left.
func cleanName(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == zwj || r == zwnj:
			return -1 // a name that differs only by an invisible character would look like another's
		case r == ' ' || r == ':' || r == '*' || r == ',':
			return '_'
		}
		return r
	}, clean(strings.TrimSpace(s), maxName))
	return strings.TrimLeft(s, "_/")
}

// pieces cuts text into parts of at most maxText characters.
func pieces(s string) []string {
	var parts []string
	start, n := 0, 0
	for i := range s {
		if n == maxText {
			parts, start, n = append(parts, s[start:i]), i, 0
		}
		n++
	}
	return append(parts, s[start:])
}

const (
	zwnj = '\u200c'
	zwj  = '\u200d'
)

// wide holds the characters that fill two columns of a terminal: East Asian wide and
// full-width characters (Unicode TR 11), and emoji.
var wide = &unicode.RangeTable{
	R16: []unicode.Range16{
		{0x1100, 0x115f, 1}, {0x231a, 0x231b, 1}, {0x2329, 0x232a, 1}, {0x23e9, 0x23ec, 1},
		{0x23f0, 0x23f3, 3}, {0x25fd, 0x25fe, 1}, {0x2614, 0x2615, 1}, {0x2648, 0x2653, 1},
		{0x267f, 0x2693, 20}, {0x26a1, 0x26a1, 1}, {0x26aa, 0x26ab, 1}, {0x26bd, 0x26be, 1},
		{0x26c4, 0x26c5, 1}, {0x26ce, 0x26d4, 6}, {0x26ea, 0x26ea, 1}, {0x26f2, 0x26f3, 1},
		{0x26f5, 0x26fa, 5}, {0x26fd, 0x26fd, 1}, {0x2705, 0x2705, 1}, {0x270a, 0x270b, 1},
		{0x2728, 0x274c, 36}, {0x274e, 0x274e, 1}, {0x2753, 0x2755, 1}, {0x2757, 0x2757, 1},
		{0x2795, 0x2797, 1}, {0x27b0, 0x27bf, 15}, {0x2b1b, 0x2b1c, 1}, {0x2b50, 0x2b55, 5},
		{0x2e80, 0x303e, 1}, {0x3041, 0x33ff, 1}, {0x3400, 0x4dbf, 1}, {0x4e00, 0x9fff, 1},
		{0xa000, 0xa4cf, 1}, {0xa960, 0xa97f, 1}, {0xac00, 0xd7a3, 1}, {0xf900, 0xfaff, 1},
		{0xfe10, 0xfe19, 1}, {0xfe30, 0xfe6f, 1}, {0xff01, 0xff60, 1}, {0xffe0, 0xffe6, 1},
	},
	R32: []unicode.Range32{
		{0x16fe0, 0x18aff, 1}, {0x1b000, 0x1b2ff, 1}, {0x1f004, 0x1f0cf, 203}, {0x1f18e, 0x1f18e, 1},
		{0x1f191, 0x1f19a, 1}, {0x1f200, 0x1f320, 1}, {0x1f32d, 0x1f335, 1}, {0x1f337, 0x1f37c, 1},
		{0x1f37e, 0x1f393, 1}, {0x1f3a0, 0x1f3ca, 1}, {0x1f3cf, 0x1f3d3, 1}, {0x1f3e0, 0x1f3f0, 1},
		{0x1f3f4, 0x1f3f4, 1}, {0x1f3f8, 0x1f43e, 1}, {0x1f440, 0x1f440, 1}, {0x1f442, 0x1f4fc, 1},
		{0x1f4ff, 0x1f53d, 1}, {0x1f54b, 0x1f54e, 1}, {0x1f550, 0x1f567, 1}, {0x1f57a, 0x1f57a, 1},
		{0x1f595, 0x1f596, 1}, {0x1f5a4, 0x1f5a4, 1}, {0x1f5fb, 0x1f64f, 1}, {0x1f680, 0x1f6c5, 1},
		{0x1f6cc, 0x1f6cc, 1}, {0x1f6d0, 0x1f6d2, 1}, {0x1f6d5, 0x1f6d7, 1}, {0x1f6dc, 0x1f6df, 1},
		{0x1f6eb, 0x1f6ec, 1}, {0x1f6f4, 0x1f6fc, 1}, {0x1f7e0, 0x1f7eb, 1}, {0x1f7f0, 0x1f7f0, 1},
		{0x1f90c, 0x1f93a, 1}, {0x1f93c, 0x1f945, 1}, {0x1f947, 0x1f9ff, 1}, {0x1fa70, 0x1faff, 1},
		{0x20000, 0x3fffd, 1},
	},
}

// columns returns the number of terminal columns that r fills.
func columns(r rune) int {
	switch {
	case r < 0x300:
		return 1
	case r == zwnj || r == zwj || unicode.In(r, unicode.Mn, unicode.Me):
		return 0
	case unicode.Is(wide, r):
		return 2
	}
	return 1
}

// fit shortens s to at most room columns. A shortened text ends with "…".
func fit(s string, room int) string {
	used, cut := 0, 0
	for i, r := range s {
		w := columns(r)
		if used+w > room {
			if room < 1 {
				return ""
			}
			return s[:cut] + "…"
		}
		if used += w; used < room {
			cut = i + utf8.RuneLen(r)
		}
	}
	return s
}

// wrap breaks s at spaces into rows of at most room columns. The first row begins at column
// at. wrap does not break a word that is wider than room: the terminal does, and the word can
// still be copied in one piece.
func wrap(s string, at, room int) string {
	var b strings.Builder
	for i, word := range strings.Split(s, " ") {
		w := width([]rune(word))
		switch {
		case i == 0:
		case at+1+w > room && at > 0 && w <= room:
			b.WriteString(newline)
			at = 0
		default:
			b.WriteByte(' ')
			at++
		}
		b.WriteString(word)
		at += w
	}
	return b.String()
}
