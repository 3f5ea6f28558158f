// What others send is made fit to be shown, by the rules of examples/chat.

/** What others send is shown up to so many characters, and what is typed is sent in pieces of at most so many. */
export const maxText = 2000
const maxName = 24
const maxMarks = 4 // accents on one letter; more of them climb over the lines above

const zwnj = '\u200c'
const zwj = '\u200d'

/**
 * Makes a stranger's text fit for one line: no control characters, nothing that
 * reverses or hides what follows, and at most limit characters.
 * @param {unknown} s @param {number} limit @returns {string} which is empty for what is no text
 */
export function clean (s, limit = maxText) {
  if (typeof s !== 'string') return ''
  let out = ''
  let n = 0
  let marks = 0
  let at = 0
  for (const c of s) {
    if (n === limit) {
      return s.slice(at).trim() === '' ? out : out + '…'
    }
    at += c.length
    const shown = printable(c)
    if (shown === '') continue
    if (!/[\p{Mn}\p{Me}]/u.test(shown)) marks = 0
    else if (++marks > maxMarks) continue
    out += shown
    n++
  }
  return out
}

/** Returns what to show for a character, perhaps nothing. @param {string} c */
function printable (c) {
  const code = /** @type {number} */ (c.codePointAt(0))
  if (c === '\t' || /\p{Zs}/u.test(c)) return ' '
  if (code < 0x20) return String.fromCodePoint(0x2400 + code) // the control pictures stand in the same order
  if (code === 0x7f) return '␡'
  if (c === zwnj || c === zwj) return c // scripts and emoji need them
  if (/\p{Cf}/u.test(c)) return ''
  return /[\p{C}\p{Zl}\p{Zp}]/u.test(c) ? '\ufffd' : c
}

/**
 * Makes one word of a name that somebody gave themselves, so that it cannot pose as
 * anything else. It may be empty.
 * @param {unknown} s
 */
export function cleanName (s) {
  if (typeof s !== 'string') return ''
  return clean(s.trim(), maxName)
    .replace(/[\u200c\u200d]/g, '') // nobody should be able to copy a name invisibly
    .replace(/[ :*,]/g, '_')
    .replace(/^[_/]+/, '')
}

/** Enough of an id to tell a few people apart: its end, since the beginning is the same for all. @param {string} id */
export const shortID = (id) => id.slice(-6)

/** Cuts text into parts of at most maxText characters. @param {string} s */
export function pieces (s) {
  const all = [...s]
  const parts = []
  for (let i = 0; i < all.length; i += maxText) parts.push(all.slice(i, i + maxText).join(''))
  return parts
}
