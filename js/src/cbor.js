// A reader of CBOR (RFC 8949).

import { malformed } from './errors.js'
import { concat, hexOf, textOf } from './protobuf.js'

const maxCBORDepth = 64
const maxCBORElements = 128 << 10

/**
 * Decodes one CBOR value. An integer that a number cannot hold becomes a BigInt, a byte
 * string a Uint8Array, a tagged value the value itself, and a map an object, or a Map if a
 * key is not a string.
 * @param {Uint8Array} b
 */
export function decodeCBOR (b) {
  const view = new DataView(b.buffer, b.byteOffset, b.byteLength)
  let at = 0
  const need = (/** @type {number} */ n) => {
    if (n > b.length - at) malformed('CBOR is cut off')
    at += n
    return at - n
  }
  const number = (/** @type {bigint} */ n) => Number.isSafeInteger(Number(n)) ? Number(n) : n
  /** @param {number} info @returns {bigint} */
  const argument = (info) => {
    if (info < 24) return BigInt(info)
    switch (info) {
      case 24: return BigInt(view.getUint8(need(1)))
      case 25: return BigInt(view.getUint16(need(2)))
      case 26: return BigInt(view.getUint32(need(4)))
      case 27: return view.getBigUint64(need(8))
    }
    return malformed('CBOR is not well-formed')
  }
  const atBreak = () => {
    if (b[at] !== 0xff) return false
    at++
    return true
  }
  /** @param {number} major @param {number} info */
  const string = (major, info) => {
    /** @type {Uint8Array[]} */
    const parts = []
    const part = (/** @type {number} */ info) => {
      const n = argument(info)
      if (n > BigInt(b.length - at)) malformed('CBOR is cut off')
      const from = need(Number(n))
      const bytes = b.subarray(from, at)
      if (major === 3) textOf(bytes) // each part must be valid UTF-8 by itself
      parts.push(bytes)
    }
    if (info !== 31) {
      part(info)
    } else {
      while (!atBreak()) {
        const head = b[need(1)]
        if (head >> 5 !== major || (head & 31) === 31) malformed('CBOR is not well-formed')
        part(head & 31)
      }
    }
    const whole = parts.length === 1 ? parts[0] : concat(parts)
    return major === 3 ? textOf(whole) : whole
  }
  /**
   * Calls f once for each element of an array or a map, which reads the element.
   * @param {number} info @param {() => void} f
   */
  const each = (info, f) => {
    if (info !== 31) {
      const n = argument(info)
      if (n > BigInt(Math.min(maxCBORElements, b.length - at))) malformed('CBOR has too many elements')
      for (let i = 0n; i < n; i++) f()
      return
    }
    for (let i = 0; !atBreak(); i++) {
      if (i === maxCBORElements) malformed('CBOR has too many elements')
      f()
    }
  }
  /** @param {number} depth @returns {unknown} */
  const value = (depth) => {
    const head = b[need(1)]
    const major = head >> 5
    const info = head & 31
    if (major >= 4 && major <= 6 && depth === maxCBORDepth) malformed('CBOR is nested too deep')
    switch (major) {
      case 0: return number(argument(info))
      case 1: return number(-1n - argument(info))
      case 2:
      case 3: return string(major, info)
      case 4: {
        /** @type {unknown[]} */
        const list = []
        each(info, () => list.push(value(depth + 1)))
        return list
      }
      case 5: return map(info, depth)
      case 6: {
        const tag = argument(info)
        const v = value(depth + 1)
        if ((tag === 2n || tag === 3n) && v instanceof Uint8Array) {
          const n = BigInt('0x0' + hexOf(v))
          return tag === 2n ? n : -1n - n
        }
        return v
      }
    }
    switch (info) {
      case 20: return false
      case 21: return true
      case 22: return null
      case 23: return undefined
      case 25: return half(view.getUint16(need(2)))
      case 26: return view.getFloat32(need(4))
      case 27: return view.getFloat64(need(8))
    }
    return malformed('CBOR has an unknown simple value')
  }
  /** @param {number} info @param {number} depth */
  const map = (info, depth) => {
    /** @type {Map<unknown, unknown>} */
    const m = new Map()
    let named = true
    each(info, () => {
      const key = value(depth + 1)
      if (key !== null && typeof key === 'object') malformed('CBOR has a map with a key that JavaScript cannot hold')
      if (m.has(key)) malformed('CBOR has a map with the same key twice')
      named &&= typeof key === 'string'
      m.set(key, value(depth + 1))
    })
    return named ? Object.fromEntries(m) : m
  }
  const v = value(0)
  if (at !== b.length) malformed('there are bytes after the CBOR value')
  return v
}

/** Decodes a 16-bit float. @param {number} h */
function half (h) {
  const exponent = h >> 10 & 31
  const fraction = h & 1023
  const sign = h >> 15 ? -1 : 1
  if (exponent === 31) return fraction ? NaN : sign * Infinity
  return exponent ? sign * 2 ** (exponent - 25) * (1024 + fraction) : sign * 2 ** -24 * fraction
}
