// The messages of the overlay, for the vectors only, because a leaf does not speak it. A table
// of the fields in docs/wire.md is enough to decode and encode them.

import { fields, hexOf, malformed, textOf, unhex, Writer } from './wire.js'

const maxRecord = 4 << 10
/** @typedef {[num: number, name: string, kind: string, max?: number]} Row */

/** @type {Row[]} */
const tag = [[1, 'id', 'bytes', 64], [2, 'seq', 'uint']]
/** @type {Record<string, Row[]>} */
const messages = {
  request: [[1, 'session', 'session'], [2, 'network', 'text', 128], [3, 'record', 'bytes', maxRecord], [4, 'degree', 'uint', 65536], [5, 'urgent', 'flag'],
    [6, 'manual', 'flag'], [7, 'tag', 'tag'], [8, 'leaving', 'bytes', maxRecord]],
  accept: [[1, 'session', 'session'], [2, 'record', 'bytes', maxRecord], [3, 'degree', 'uint', 65536], [4, 'contacts', 'list', 16], [5, 'exchange', 'flag']],
  reject: [[1, 'reason', 'reason'], [2, 'network', 'text', 128], [3, 'contacts', 'list', 16], [4, 'tag', 'tag']],
  ready: [[1, 'degree', 'uint', 65536], [2, 'greeting', 'bytes', 128 << 10]],
  keepalive: [[1, 'degree', 'uint', 65536], [2, 'stamp', 'uint'], [3, 'echo', 'uint'], [4, 'hold', 'uint']],
  leave: [[1, 'reason', 'reason'], [2, 'contacts', 'list', 16]],
  walk: [[1, 'origin', 'bytes', maxRecord], [2, 'ttl', 'uint', 8], [3, 'urgent', 'flag']],
  handover: [[1, 'to', 'bytes', maxRecord]],
  signal: [],
  shuffle: [[1, 'path', 'path', 17], [2, 'ttl', 'uint', 16], [3, 'tag', 'tag'], [4, 'origin', 'bytes', maxRecord], [5, 'contacts', 'list', 16]],
  shuffleReply: [[1, 'path', 'path', 17], [2, 'tag', 'tag'], [3, 'contacts', 'list', 16]],
  beacon: [[1, 'owner', 'bytes', maxRecord]],
  lookup: [[1, 'path', 'path', 17], [2, 'ttl', 'uint', 16], [3, 'token', 'uint'], [4, 'target', 'bytes', 64], [5, 'origin', 'bytes', maxRecord]],
  found: [[1, 'path', 'path', 17], [2, 'token', 'uint'], [3, 'target', 'bytes', maxRecord]]
}
const names = Object.keys(messages)
const lastReason = 18

/** @param {Uint8Array} b */
export function decodeOverlay (b) {
  /** @type {Record<string, unknown>} */
  const message = {}
  for (const f of fields(b)) {
    const name = names[f.num - 1]
    if (name === undefined || f.type !== 2) continue
    if (Object.keys(message).length > 0) malformed('two messages')
    message[name] = name === 'signal' ? hexOf(f.bytes) : decode(messages[name], f.bytes)
  }
  return message
}

/** @param {Row[]} rows @param {Uint8Array} b */
function decode (rows, b) {
  /** @type {Record<string, any>} */
  const v = {}
  for (const f of fields(b)) {
    const row = rows.find(([num]) => num === f.num)
    if (row === undefined) continue
    const [, name, kind, max = Infinity] = row
    switch (kind) {
      case 'uint':
        v[name] = f.uint > max ? max : f.uint
        break
      case 'reason':
        v[name] = f.uint > lastReason ? 0 : f.uint
        break
      case 'flag':
        v[name] = f.uint !== 0n
        break
      case 'tag':
        v[name] = decode(tag, f.bytes)
        break
      case 'list':
      case 'path':
        v[name] ??= []
        if (f.bytes.length > (kind === 'path' ? 64 : maxRecord)) malformed(`an element of ${f.bytes.length} bytes`)
        if (v[name].length < max) v[name].push(hexOf(f.bytes))
        else if (kind === 'path') malformed('a path that is too long')
        break
      case 'text':
        if (f.bytes.length > max) malformed(`${name} of ${f.bytes.length} bytes`)
        v[name] = textOf(f.bytes)
        break
      default:
        if (f.bytes.length > max || (kind === 'session' && f.bytes.length !== 8)) malformed(`${name} of ${f.bytes.length} bytes`)
        v[name] = hexOf(f.bytes)
    }
  }
  return v
}

/** @param {Record<string, any>} message */
export function encodeOverlay (message) {
  const [[name, v]] = Object.entries(message)
  return new Writer().message(names.indexOf(name) + 1, name === 'signal' ? unhex(v) : encode(messages[name], v)).finish()
}

/** @param {Row[]} rows @param {Record<string, any>} v */
function encode (rows, v) {
  const w = new Writer()
  for (const [num, name, kind] of rows) {
    const x = v[name]
    if (x === undefined) continue
    if (kind === 'uint' || kind === 'reason' || kind === 'flag') w.uint(num, x)
    else if (kind === 'tag') w.message(num, encode(tag, x))
    else if (kind === 'text') w.text(num, x)
    else if (kind === 'list' || kind === 'path') for (const e of x) w.message(num, unhex(e))
    else w.bytes(num, unhex(x))
  }
  return w.finish()
}
