package main

import (
	"bytes"
	"unicode"
	"unicode/utf8"
)

// key is one thing done on the keyboard.
type key int

const (
	keyNone key = iota
	keyText     // with its text: a character, or a paste of any length
	keyEnter
	keyLeft
	keyRight
	keyWordLeft
	keyWordRight
	keyHome
	keyEnd
	keyUp
	keyDown
	keyBackspace
	keyDelete
	keyCutWord
	keyCutLeft
	keyCutRight
	keyComplete
	keyRedraw
	keyEOF // ctrl-d: delete, or the end on an empty line
	keyQuit
)

type press struct {
	key  key
	text string
}

var controls = map[byte]key{
	'\r': keyEnter, '\n': keyEnter, '\t': keyComplete, 0x7f: keyBackspace, 0x08: keyBackspace,
	ctrl('A'): keyHome, ctrl('B'): keyLeft, ctrl('C'): keyQuit, ctrl('D'): keyEOF, ctrl('E'): keyEnd,
	ctrl('F'): keyRight, ctrl('K'): keyCutRight, ctrl('L'): keyRedraw, ctrl('N'): keyDown,
	ctrl('P'): keyUp, ctrl('U'): keyCutLeft, ctrl('W'): keyCutWord,
}

// sequences are what follows ESC, as xterm, the Linux console, tmux and the
// Windows terminal send it.
var sequences = map[string]key{
	"[A": keyUp, "[B": keyDown, "[C": keyRight, "[D": keyLeft, "[H": keyHome, "[F": keyEnd,
	"OA": keyUp, "OB": keyDown, "OC": keyRight, "OD": keyLeft, "OH": keyHome, "OF": keyEnd, "OM": keyEnter,
	"[1~": keyHome, "[4~": keyEnd, "[7~": keyHome, "[8~": keyEnd, "[3~": keyDelete,
	"[1;5C": keyWordRight, "[1;5D": keyWordLeft, "[1;3C": keyWordRight, "[1;3D": keyWordLeft,
	"f": keyWordRight, "b": keyWordLeft, "\x7f": keyCutWord, "\x08": keyCutWord,
}

func ctrl(letter byte) byte { return letter - '@' }

const (
	esc        = 0x1b
	pasteBegin = "[200~"
	pasteEnd   = "\x1b[201~"

	maxPaste = 64 << 10
)

// keyboard turns the bytes of a terminal into key presses. The zero value works.
type keyboard struct {
	rest    []byte // an unfinished sequence, character or end of paste
	pasting bool
	paste   []byte
}

// read takes the bytes of one read and returns the presses they complete.
func (k *keyboard) read(b []byte) []press {
	var done []press
	b = append(k.rest, b...)
	for len(b) > 0 {
		var p press
		n := 0
		switch {
		case k.pasting:
			p, n = k.readPaste(b)
		case b[0] == esc:
			p, n = k.readSequence(b)
		case b[0] < ' ' || b[0] == 0x7f:
			p, n = press{key: controls[b[0]]}, 1
		case utf8.FullRune(b):
			r, size := utf8.DecodeRune(b)
			n = size
			if r != utf8.RuneError && unicode.IsPrint(r) || r == zwj || r == zwnj {
				p = press{keyText, string(r)}
			}
		}
		if n == 0 {
			break // the rest comes with the next read
		}
		if b = b[n:]; p.key != keyNone {
			done = append(done, p)
		}
	}
	k.rest = bytes.Clone(b)
	return done
}

// readSequence reads what begins with ESC; n is 0 while it is unfinished.
func (k *keyboard) readSequence(b []byte) (p press, n int) {
	if len(b) == 1 {
		return p, 0
	}
	if len(k.rest) == 1 && b[1] != '[' && b[1] != 'O' {
		return p, 1 // the Escape key by itself, some time ago
	}
	switch b[1] {
	case '[':
		n = 2
		for n < len(b) && (b[n] < 0x40 || b[n] > 0x7e) {
			if b[n] < ' ' {
				return p, n // broken off by another control character
			}
			n++
		}
		if n == len(b) {
			return p, 0
		}
		n++
	case 'O':
		if len(b) == 2 {
			return p, 0
		}
		n = 3
	case esc:
		return p, 1
	default:
		n = 2
	}
	if string(b[1:n]) == pasteBegin {
		k.pasting = true
	}
	return press{key: sequences[string(b[1:n])]}, n
}

// readPaste reads up to the end of the paste and keeps back what may be the
// beginning of that end.
func (k *keyboard) readPaste(b []byte) (p press, n int) {
	if i := bytes.Index(b, []byte(pasteEnd)); i >= 0 {
		k.keep(b[:i])
		p = press{keyText, pasted(k.paste)}
		k.pasting, k.paste = false, nil
		return p, i + len(pasteEnd)
	}
	n = len(b)
	if i := bytes.LastIndexByte(b, esc); i >= 0 && bytes.HasPrefix([]byte(pasteEnd), b[i:]) {
		n = i
	}
	k.keep(b[:n])
	return p, n
}

func (k *keyboard) keep(b []byte) {
	k.paste = append(k.paste, b[:min(len(b), maxPaste-len(k.paste))]...)
}

// pasted returns the text of a paste: lines end with "\n", and there are no
// other control characters.
func pasted(b []byte) string {
	var text []rune
	for i, r := range string(b) {
		switch {
		case r == '\n' && i > 0 && b[i-1] == '\r':
		case r == '\n' || r == '\r':
			text = append(text, '\n')
		case r < ' ' && r != '\t':
		default:
			if r = printable(r); r >= 0 {
				text = append(text, r)
			}
		}
	}
	for len(text) > 0 && text[len(text)-1] == '\n' {
		text = text[:len(text)-1] // a copied line; Enter is the writer's to press
	}
	return string(text)
}
