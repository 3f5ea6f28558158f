// Protobuf messages, field by field. Numbers of 64 bits are BigInts.

import { malformed } from './errors.js'

export const utf8 = new TextEncoder()
const strictUTF8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

/** Decodes UTF-8. @param {Uint8Array} b */
export function textOf (b) {
  try {
    return strictUTF8.decode(b)
  } catch {
    return malformed('text that is not UTF-8')
  }
}

/**
 * Returns the varint at b[at], and the index after it.
 * @param {Uint8Array} b @param {number} at @returns {[bigint, number]}
 */
function varint (b, at) {
  let low = 0
  for (let i = 0; i < 4; i++) { // 28 bits fit into a number, which is faster than a BigInt
    if (at + i >= b.length) malformed('a varint is cut off')
    low += (b[at + i] & 0x7f) << (7 * i)
    if (b[at + i] < 0x80) return [BigInt(low), at + i + 1]
  }
  let value = BigInt(low)
  for (let i = 4; i < 10; i++) {
    if (at + i >= b.length) malformed('a varint is cut off')
    const c = b[at + i]
    if (i === 9 && c > 1) break
    value |= BigInt(c & 0x7f) << BigInt(7 * i)
    if (c < 0x80) return [value, at + i + 1]
  }
  return malformed('a varint of more than 64 bits')
}

/**
 * @typedef {object} Field
 * @property {number} num
 * @property {0 | 1 | 2 | 5} type
 * @property {bigint} uint the value of a varint
 * @property {Uint8Array} bytes the value of a length-delimited field, a part of the message
 */

/** @type {Uint8Array} */
export const noBytes = new Uint8Array(0)

/**
 * Yields the fields of a message in order. Groups are malformed.
 * @param {Uint8Array} b @returns {Generator<Field>}
 */
export function * fields (b) {
  for (let at = 0; at < b.length;) {
    let tag, uint = 0n, bytes = noBytes
    ;[tag, at] = varint(b, at)
    const num = Number(tag >> 3n)
    const type = Number(tag & 7n)
    if (num < 1 || num >= 1 << 29) malformed('a bad field tag')
    switch (type) {
      case 0:
        [uint, at] = varint(b, at)
        break
      case 1:
      case 5:
        at += type === 1 ? 8 : 4
        break
      case 2: {
        let n
        ;[n, at] = varint(b, at)
        if (n > BigInt(b.length - at)) malformed(`field ${num} is cut off`)
        bytes = b.subarray(at, at + Number(n))
        at += Number(n)
        break
      }
      default:
        malformed(`field ${num} has an unknown wire type`)
    }
    if (at > b.length) malformed(`field ${num} is cut off`)
    yield { num, type: /** @type {0} */ (type), uint, bytes }
  }
}

/** Builds a message. Fields that are zero or empty, the defaults, are left out. */
export class Writer {
  /** @type {Array<Uint8Array | number[]>} */
  parts = []
  length = 0

  /** @param {Uint8Array | number[]} b */
  raw (b) {
    this.parts.push(b)
    this.length += b.length
    return this
  }

  /** @param {bigint | number} v */
  varint (v) {
    /** @type {number[]} */
    const b = []
    let rest = BigInt(v)
    for (; rest > 0x7fn; rest >>= 7n) b.push(Number(rest & 0x7fn) | 0x80)
    b.push(Number(rest))
    return this.raw(b)
  }

  /** @param {number} num @param {bigint | number | boolean} v */
  uint (num, v) { return v ? this.varint(num << 3).varint(BigInt(v)) : this }

  /** @param {number} num @param {Uint8Array} v */
  bytes (num, v) { return v.length > 0 ? this.message(num, v) : this }

  /** @param {number} num @param {string} v */
  text (num, v) { return this.bytes(num, utf8.encode(v)) }

  /**
   * Adds a length-delimited field, even if it is empty.
   * @param {number} num @param {Uint8Array} v
   */
  message (num, v) { return this.varint(num << 3 | 2).varint(v.length).raw(v) }

  finish () {
    const b = new Uint8Array(this.length)
    let at = 0
    for (const part of this.parts) {
      b.set(part, at)
      at += part.length
    }
    return b
  }
}

/** @param {Uint8Array[]} list */
export const concat = (list) => list.reduce((w, b) => w.raw(b), new Writer()).finish()

/** @param {Uint8Array} b */
export const hexOf = (b) => Array.from(b, (c) => c.toString(16).padStart(2, '0')).join('')

/** @param {string} text */
export const unhex = (text) => Uint8Array.from(text.match(/../g) ?? [], (c) => parseInt(c, 16))

/** @param {Uint8Array} a @param {Uint8Array} b */
export const equal = (a, b) => a.length === b.length && a.every((c, i) => c === b[i])
