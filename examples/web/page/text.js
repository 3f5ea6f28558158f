// Makes the texts of other peers safe to show, by the rules of examples/chat.

/** How many characters of a received line are shown, and how many a piece of a sent line may have. */
export const maxText = 2000
const maxName = 24
const maxMarks = 4 // accents on one letter; more of them would cover the lines above

const zwnj = '\u200c'
const zwj = '\u200d'

/**
 * Makes a received text safe to show in one line: without control characters, without
 * characters that reverse or hide text, and with at most limit characters.
 * @param {unknown} s @param {number} limit @returns {string} empty if s is not a text
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

/** Returns the text that is shown for a character; it may be empty. @param {string} c */
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
 * Makes one word of a name that a person claims, so that it cannot look like anything else.
 * The result may be empty.
 * @param {unknown} s
 */
export function cleanName (s) {
  if (typeof s !== 'string') return ''
  return clean(s.trim(), maxName)
    .replace(/[\u200c\u200d]/g, '') // else two names could look the same
    .replace(/[ :*,]/g, '_')
    .replace(/^[_/]+/, '')
}

/** Returns the end of an id, which tells a few people apart; its beginning is the same for all. @param {string} id */
export const shortID = (id) => id.slice(-6)

/** Cuts a text into pieces of at most maxText characters. @param {string} s */
export function pieces (s) {
  const all = [...s]
  const parts = []
  for (let i = 0; i < all.length; i += maxText) parts.push(all.slice(i, i + maxText).join(''))
  return parts
}
