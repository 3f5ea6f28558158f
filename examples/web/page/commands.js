// What a typed line means, by the rules of examples/chat: a line that begins with a slash is
// a command, and with two slashes it says what follows the first.

/** @typedef {{ kind: 'say', text: string } | { kind: 'msg', name: string, text: string } | { kind: 'help' }} Line */

export const help = '/msg NAME TEXT sends a line to one person only, //TEXT says a line that begins with a slash.'

/**
 * Parses a typed line. It throws an error that says what to type if it is not understood, so
 * that nothing is said that was meant as a command.
 * @param {string} text @returns {Line}
 */
export function parseLine (text) {
  if (!text.startsWith('/')) return { kind: 'say', text }
  if (text.startsWith('//')) return { kind: 'say', text: text.slice(1) }
  const [, word, rest] = /** @type {RegExpMatchArray} */ (/^(\S+)\s*(.*)$/s.exec(text))
  switch (word) {
    case '/help':
      return { kind: 'help' }
    case '/msg': {
      const [, name, line] = /^(\S+)\s+(\S.*)$/s.exec(rest) ?? []
      if (name === undefined) throw new Error('Not sent: say to whom and what, /msg NAME TEXT.')
      return { kind: 'msg', name: name.replace(/:$/, ''), text: line.trimEnd() }
    }
  }
  throw new Error(`Not sent: unknown command ${word}. To say it, begin the line with //; /help lists the commands.`)
}
