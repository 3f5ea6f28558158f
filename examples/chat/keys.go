package main

import (
	"bytes"
	"unicode"
	"unicode/utf8"
)

// key is a key of the keyboard, or what it does in the line editor.
type key int

const (
	keyNone key = iota
	keyText     // a typed character or a pasted text; press.text holds it
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
	keyEOF // ctrl-d: deletes a character, or ends the input if the line is empty
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

// sequences maps the bytes that a terminal sends after ESC to a key. They are those of
// xterm, the Linux console, tmux and the Windows terminal.
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
	rest    []byte // bytes already read that begin an escape sequence, a character or the mark for the end of a paste, and are not complete
	pasting bool
	paste   []byte
}

// read returns the key presses that are complete with b, the bytes of one read from the
// terminal. Bytes of an incomplete key are kept for the next call.
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
			break // incomplete: the missing bytes come with the next read
		}
		if b = b[n:]; p.key != keyNone {
			done = append(done, p)
		}
	}
	k.rest = bytes.Clone(b)
	return done
}

// readSequence decodes an escape sequence at the beginning of b. It returns the key press and
// the length n of the sequence, which is 0 while the sequence is incomplete.
func (k *keyboard) readSequence(b []byte) (p press, n int) {
	if len(b) == 1 {
		return p, 0
	}
	if len(k.rest) == 1 && b[1] != '[' && b[1] != 'O' {
		return p, 1 // the ESC came alone in an earlier read, so it was the Escape key itself
	}
	switch b[1] {
	case '[':
		n = 2
		for n < len(b) && (b[n] < 0x40 || b[n] > 0x7e) {
			if b[n] < ' ' {
				return p, n // a control character inside a sequence ends it
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

// readPaste collects pasted text up to the terminal's mark for the end of a paste, and returns
// it as one key press once the mark has come. n is the number of bytes of b that it has used.
// Bytes that may be the beginning of the mark stay unused until more bytes have come.
func (k *keyboard) readPaste(b []byte) (p press, n int) {
	if i := bytes.Index(b, []byte(pasteEnd)); i >= 0 {
		k.appendPaste(b[:i])
		p = press{keyText, pasted(k.paste)}
		k.pasting, k.paste = false, nil
		return p, i + len(pasteEnd)
	}
	n = len(b)
	if i := bytes.LastIndexByte(b, esc); i >= 0 && bytes.HasPrefix([]byte(pasteEnd), b[i:]) {
		n = i
	}
	k.appendPaste(b[:n])
	return p, n
}

func (k *keyboard) appendPaste(b []byte) {
	k.paste = append(k.paste, b[:min(len(b), maxPaste-len(k.paste))]...)
}

// pasted returns the text of a paste with "\n" at line ends and without other control characters.
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
		text = text[:len(text)-1] // a pasted line is not sent until the user presses Enter
	}
	return string(text)
}
