// The bytes of a smokesignal network, as docs/wire.md has them: what is read is checked
// against its limits, what is written keeps them. Numbers of 64 bits are BigInts.

import { publicKeyFromProtobuf, publicKeyToProtobuf } from '@libp2p/crypto/keys'
import { peerIdFromMultihash, peerIdFromPublicKey } from '@libp2p/peer-id'
import { multiaddr } from '@multiformats/multiaddr'
import { base32 } from 'multiformats/bases/base32'
import { base58btc } from 'multiformats/bases/base58'
import * as Digest from 'multiformats/hashes/digest'

export const protocols = Object.freeze({
  overlay: '/smokesignal/overlay/1.0.0', // which a leaf never lists
  repair: '/smokesignal/repair/1.0.0',
  events: '/smokesignal/events/1.0.0'
})

// The limits of docs/wire.md, in bytes, ms and pieces.
export const limits = Object.freeze({
  event: 512 << 10, // an encoded event
  name: 128,
  args: 64,
  batch: 768 << 10,
  batchEvents: 16384,
  hello: 1 << 10,
  envelope: 64, // a frame beside its event
  errorText: 1 << 10,
  marks: 1024,
  marksBytes: 64 << 10,
  answerBytes: 1 << 20, // originals in the answer to a want
  network: 128,
  id: 64, // a peer id
  key: 4 << 10, // a public key, and a signature
  seqno: 64, // of pubsub
  ticket: 4096,
  places: 8,
  number: 1n << 62n
})

// ---------------------------------------------------------------------------
// Errors

/** Bytes that break a rule of docs/wire.md. */
export class MalformedError extends Error { name = 'MalformedError' }
/** There is no node that could take it. It was not sent. */
export class NotConnectedError extends Error { name = 'NotConnectedError' }
/** More than fits into an event, or into a queue. It was not sent. */
export class TooLargeError extends Error { name = 'TooLargeError' }
/** The leaf was closed. */
export class ClosedError extends Error { name = 'ClosedError' }
/** The other side took nothing for ten seconds. */
export class StalledError extends Error { name = 'StalledError' }
/** The other node has no handler for the call: nothing has run. */
export class NoHandlerError extends Error { name = 'NoHandlerError' }
/** The other node's handler cannot read the arguments: nothing has run. */
export class BadArgumentError extends Error { name = 'BadArgumentError' }
/** The other node's handler ran and failed; the message is its. */
export class RemoteError extends Error { name = 'RemoteError' }
/** No answer came: the handler may have run, may still run, or never will. */
export class UnknownOutcomeError extends Error { name = 'UnknownOutcomeError' }

/** An argument that cannot be read here. It stands in the place of the argument. */
export class Undecodable {
  /** @param {number} codec @param {Uint8Array} data @param {string} reason */
  constructor (codec, data, reason) {
    this.codec = codec
    this.data = data
    this.reason = reason
  }
}

/** @param {string} text @returns {never} */
export function malformed (text) { throw new MalformedError(text) }

// ---------------------------------------------------------------------------
// Protobuf, field by field

const utf8 = new TextEncoder()
const strictUTF8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

/** @param {Uint8Array} b */
export function textOf (b) {
  try {
    return strictUTF8.decode(b)
  } catch {
    return malformed('text that is not UTF-8')
  }
}

/**
 * Returns the varint at b[at] and the index behind it.
 * @param {Uint8Array} b @param {number} at @returns {[bigint, number]}
 */
function varint (b, at) {
  let low = 0
  for (let i = 0; i < 4; i++) { // 28 bits fit into a number that is fast
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
 * @property {bigint} uint of a varint
 * @property {Uint8Array} bytes of a length-delimited field, inside the message
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
        malformed(`field ${num} is of a bad kind`)
    }
    if (at > b.length) malformed(`field ${num} is cut off`)
    yield { num, type: /** @type {0} */ (type), uint, bytes }
  }
}

/** Builds a message. Zero and empty, the defaults, are left out. */
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
   * A length-delimited field, also when it is empty.
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
const equal = (a, b) => a.length === b.length && a.every((c, i) => c === b[i])

// ---------------------------------------------------------------------------
// Frames

/** @param {Uint8Array} payload */
export const encodeFrame = (payload) => new Writer().varint(payload.length).raw(payload).finish()

/** Cuts a stream of bytes into frames. It keeps one frame and what came with it. */
export class FrameReader {
  /** @type {Uint8Array[]} */
  #chunks = []
  #at = 0 // in the first chunk
  #length = 0

  /** @param {number} max bytes of a frame */
  constructor (max) { this.max = max }

  /** @param {Uint8Array} chunk */
  push (chunk) {
    if (chunk.length === 0) return
    this.#chunks.push(chunk)
    this.#length += chunk.length
  }

  /** How many bytes wait. */
  get length () { return this.#length }

  /** Whether a frame has begun. */
  get begun () { return this.#length > 0 }

  /** Returns the next frame, undefined if it is not here as a whole. */
  next () {
    let size = 0
    let header = 0
    for (let i = 0, at = this.#at, c = 0; ; at++) {
      if (header === this.#length) return undefined
      while (at === this.#chunks[c].length) {
        at = 0
        c++
      }
      const b = this.#chunks[c][at]
      if (i === 5) malformed('a length of more than five bytes')
      size += (b & 0x7f) * 2 ** (7 * i++)
      header++
      if (b < 0x80) {
        if (b === 0 && i > 1) malformed('a length is not as short as it can be')
        break
      }
      if (i === 5) malformed('a length of more than five bytes')
    }
    if (size > this.max) malformed(`a frame of ${size} bytes, at most ${this.max}`)
    if (this.#length < header + size) return undefined
    this.#take(header)
    return this.#take(size)
  }

  /** @param {number} n */
  #take (n) {
    this.#length -= n
    const first = this.#chunks[0]
    if (n > 0 && this.#at + n <= first.length) {
      const b = first.subarray(this.#at, this.#at + n)
      this.#at += n
      if (this.#at === first.length) {
        this.#chunks.shift()
        this.#at = 0
      }
      return b
    }
    const b = new Uint8Array(n)
    for (let got = 0; got < n;) {
      const part = this.#chunks[0].subarray(this.#at, this.#at + n - got)
      b.set(part, got)
      got += part.length
      this.#at += part.length
      if (this.#at === this.#chunks[0].length) {
        this.#chunks.shift()
        this.#at = 0
      }
    }
    return b
  }
}

// ---------------------------------------------------------------------------
// Events and their arguments (docs/wire.md, Direct events)

/** The numbers of the codecs. */
export const codecs = Object.freeze({ raw: 0, json: 1, protobuf: 2, cbor: 3 })

/** @typedef {{ codec: number, data: Uint8Array }} Arg */
/** @typedef {{ name: string, args: Arg[] }} Event */

/** @param {string} name */
export function checkName (name) {
  if (typeof name !== 'string' || name === '' || name === '*' || !name.isWellFormed() || utf8.encode(name).length > limits.name) {
    throw new TypeError(`smokesignal: the name of an event has 1 to ${limits.name} bytes and is not "*": ${JSON.stringify(name)}`)
  }
  return name
}

/**
 * A Uint8Array or an ArrayBuffer goes raw, everything else as JSON.
 * @param {unknown} value @returns {Arg}
 */
export function encodeArg (value) {
  if (value instanceof Uint8Array) return { codec: codecs.raw, data: value }
  if (value instanceof ArrayBuffer) return { codec: codecs.raw, data: new Uint8Array(value) }
  const text = JSON.stringify(value)
  if (text === undefined) throw new TypeError(`smokesignal: an argument that JSON does not have: ${typeof value}`)
  return { codec: codecs.json, data: utf8.encode(text) }
}

/**
 * The value of an argument: bytes, what JSON or CBOR says; an Undecodable for what
 * cannot be read. A protobuf message comes as one, too: who knows its type reads its
 * data.
 * @param {Arg} arg @returns {unknown}
 */
export function decodeArg ({ codec, data }) {
  try {
    switch (codec) {
      case codecs.raw: return new Uint8Array(data) // not a part of what was read
      case codecs.json: return JSON.parse(textOf(data))
      case codecs.cbor: return decodeCBOR(data)
      case codecs.protobuf: return new Undecodable(codec, data, 'a protobuf message')
    }
    return new Undecodable(codec, data, 'a codec of a later version')
  } catch (err) {
    return new Undecodable(codec, data, String(err))
  }
}

/** @param {Event} event */
export function encodeEvent ({ name, args }) {
  const w = new Writer().text(1, name)
  for (const { codec, data } of args) w.message(2, new Writer().uint(1, codec).bytes(2, data).finish())
  return w.finish()
}

/** @param {Uint8Array} b @returns {Event} */
export function decodeEvent (b) {
  /** @type {Event} */
  const event = { name: '', args: [] }
  for (const f of fields(b)) {
    if (f.type !== 2) continue
    if (f.num === 1) {
      if (f.bytes.length > limits.name) malformed('a name that is too long')
      event.name = textOf(f.bytes)
    } else if (f.num === 2) {
      if (event.args.length === limits.args) malformed(`more than ${limits.args} arguments`)
      event.args.push(decodeArgMessage(f.bytes))
    }
  }
  if (event.name === '' || event.name === '*') malformed(`an event with the name "${event.name}"`)
  return event
}

/** @param {Uint8Array} b @returns {Arg} */
function decodeArgMessage (b) {
  const arg = { codec: 0, data: noBytes }
  for (const f of fields(b)) {
    if (f.num === 1 && f.type === 0) {
      if (f.uint > 0xffffffffn) malformed(`codec ${f.uint}`)
      arg.codec = Number(f.uint)
    } else if (f.num === 2 && f.type === 2) {
      arg.data = f.bytes
    }
  }
  return arg
}

/**
 * Encodes an event as it is emitted.
 * @param {string} name @param {unknown[]} args
 */
export function newEvent (name, args) {
  checkName(name)
  if (args.length > limits.args) throw new TooLargeError(`smokesignal: ${name}: ${args.length} arguments, at most ${limits.args}`)
  const b = encodeEvent({ name, args: args.map(encodeArg) })
  if (b.length > limits.event) throw new TooLargeError(`smokesignal: ${name}: ${b.length} bytes, at most ${limits.event}`)
  return b
}

const maxCBORDepth = 64
const maxCBORElements = 128 << 10

/**
 * Reads one CBOR value (RFC 8949). Integers that a number cannot hold are BigInts,
 * bytes a Uint8Array, tags what they stand before, maps an object, or a Map if a key
 * is no string.
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
      if (major === 3) textOf(bytes) // each part has to be good
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
   * Calls f for each element.
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
    return malformed('CBOR has a simple value that is not known')
  }
  /** @param {number} info @param {number} depth */
  const map = (info, depth) => {
    /** @type {Map<unknown, unknown>} */
    const m = new Map()
    let named = true
    each(info, () => {
      const key = value(depth + 1)
      if (key !== null && typeof key === 'object') malformed('CBOR has a map with a key that is none here')
      if (m.has(key)) malformed('CBOR has a map with a key that comes twice')
      named &&= typeof key === 'string'
      m.set(key, value(depth + 1))
    })
    return named ? Object.fromEntries(m) : m
  }
  const v = value(0)
  if (at !== b.length) malformed('there is something behind the CBOR')
  return v
}

/** @param {number} h a float of 16 bits */
function half (h) {
  const exponent = h >> 10 & 31
  const fraction = h & 1023
  const sign = h >> 15 ? -1 : 1
  if (exponent === 31) return fraction ? NaN : sign * Infinity
  return exponent ? sign * 2 ** (exponent - 25) * (1024 + fraction) : sign * 2 ** -24 * fraction
}

// ---------------------------------------------------------------------------
// Direct events and calls (docs/wire.md, Direct events)

/** @typedef {{ session: Uint8Array, network: string, serial: bigint }} Hello */

/** @param {Hello} hello the payload of the first frame */
export const encodeHello = ({ session, network, serial }) =>
  new Writer().message(1, new Writer().bytes(1, session).text(2, network).uint(3, serial).finish()).finish()

/** @param {Uint8Array} b @returns {Hello} */
export function decodeHello (b) {
  /** @type {Hello | undefined} */
  let hello
  for (const f of fields(b)) {
    if (f.num !== 1 || f.type !== 2) continue
    hello ??= { session: noBytes, network: '', serial: 0n }
    for (const g of fields(f.bytes)) {
      if (g.num === 1 && g.type === 2) hello.session = g.bytes
      else if (g.num === 2 && g.type === 2) hello.network = textOf(g.bytes)
      else if (g.num === 3 && g.type === 0) hello.serial = g.uint
    }
  }
  if (hello === undefined) return malformed('the first frame is no hello')
  if (hello.session.length !== 8) malformed(`a session of ${hello.session.length} bytes`)
  return hello
}

/**
 * The payload of a frame with an event, or with a call if there is an id.
 * @param {Uint8Array} event @param {bigint} [call]
 */
export const encodeDirect = (event, call) => call === undefined
  ? new Writer().message(2, event).finish()
  : new Writer().message(3, new Writer().uint(1, call).message(2, event).finish()).finish()

/**
 * Reads a frame behind the hello; undefined if it says nothing.
 * @param {Uint8Array} b @returns {{ event: Event, call: bigint } | undefined} call is 0 for an event
 */
export function decodeDirect (b) {
  /** @type {{ event: Event, call: bigint } | undefined} */
  let found
  for (const f of fields(b)) {
    if (f.num === 1) malformed('a second hello')
    if (f.num === 4) malformed('an answer where calls come from')
    if ((f.num !== 2 && f.num !== 3) || f.type !== 2) continue
    if (found !== undefined) malformed('two events in a frame')
    if (f.num === 2) {
      found = { event: decodeEvent(f.bytes), call: 0n }
      continue
    }
    let call = 0n
    let event
    for (const g of fields(f.bytes)) {
      if (g.num === 1 && g.type === 0) call = g.uint
      else if (g.num === 2 && g.type === 2) event = g.bytes
    }
    if (call === 0n || event === undefined) malformed('a call without an id or an event')
    found = { event: decodeEvent(/** @type {Uint8Array} */ (event)), call }
  }
  return found
}

/** The statuses of an answer. */
export const statuses = Object.freeze({ done: 0, failed: 1, noHandler: 2, badArgument: 3, repeated: 4 })

/** @typedef {{ id: bigint, status: bigint, event: Uint8Array, error: string }} Answer */

/**
 * The payload of a frame with an answer: the event is that of status 0, the error of
 * the others.
 * @param {{ id: bigint, status?: bigint | number, event?: Uint8Array, error?: string }} answer
 */
export function encodeAnswer ({ id, status = 0, event = noBytes, error = '' }) {
  const w = new Writer().uint(1, id)
  if (BigInt(status) === 0n) w.message(2, event)
  else w.uint(3, status).bytes(4, cutText(error, limits.errorText))
  return new Writer().message(4, w.finish()).finish()
}

/**
 * @param {string} text @param {number} most bytes
 * @returns {Uint8Array}
 */
function cutText (text, most) {
  const b = new Uint8Array(most)
  return b.subarray(0, utf8.encodeInto(text.toWellFormed(), b).written) // whole characters only
}

/** @param {Uint8Array} b @returns {Answer | undefined} undefined if the frame says nothing */
export function decodeAnswer (b) {
  /** @type {Answer | undefined} */
  let answer
  for (const f of fields(b)) {
    if (f.num < 4) malformed(`field ${f.num} where answers come from`)
    if (f.num !== 4 || f.type !== 2) continue
    if (answer !== undefined) malformed('two answers in a frame')
    answer = { id: 0n, status: 0n, event: noBytes, error: '' }
    for (const g of fields(f.bytes)) {
      if (g.num === 1 && g.type === 0) answer.id = g.uint
      else if (g.num === 2 && g.type === 2) answer.event = g.bytes
      else if (g.num === 3 && g.type === 0) answer.status = g.uint
      else if (g.num === 4 && g.type === 2) {
        if (g.bytes.length > limits.errorText) malformed('an error that is too long')
        answer.error = textOf(g.bytes)
      }
    }
    if (answer.id === 0n) malformed('an answer without an id')
  }
  return answer
}

// ---------------------------------------------------------------------------
// Batches, marks and originals (docs/wire.md, Broadcasts, Marks and repair)

/**
 * A session is one life of a sender. The id is 16 hexadecimal digits.
 * @typedef {{ session: string, start: bigint }} Session
 */

/** Which of two sessions is the later one: > 0 if a is. @param {Session} a @param {Session} b */
export function compareSessions (a, b) {
  if (a.start !== b.start) return a.start > b.start ? 1 : -1
  return a.session === b.session ? 0 : a.session > b.session ? 1 : -1
}

/** @param {Uint8Array} id @param {bigint} start @returns {Session} */
function sessionOf (id, start) {
  if (id.length !== 8) malformed(`a session of ${id.length} bytes`)
  if (start === 0n) malformed('a session without a start')
  return { session: hexOf(id), start }
}

/** @typedef {Session & { first: bigint, events: Uint8Array[] }} Batch */

/** @param {Batch} batch */
export function encodeBatch ({ session, start, first, events }) {
  const w = new Writer().bytes(1, unhex(session)).uint(2, start).uint(3, first)
  for (const e of events) w.message(4, e)
  return w.finish()
}

/** @param {Uint8Array} b @returns {Batch} */
export function decodeBatch (b) {
  if (b.length > limits.batch) malformed(`a batch of ${b.length} bytes`)
  let id = noBytes
  let start = 0n
  let first = 0n
  /** @type {Uint8Array[]} */
  const events = []
  for (const f of fields(b)) {
    if (f.num === 4 && f.type === 2) {
      if (events.length === limits.batchEvents) malformed('too many events in a batch')
      if (f.bytes.length === 0) malformed('an empty event')
      events.push(f.bytes)
    } else if (f.num === 1 && f.type === 2) id = f.bytes
    else if (f.num === 2 && f.type === 0) start = f.uint
    else if (f.num === 3 && f.type === 0) first = f.uint
  }
  if (first === 0n || events.length === 0 || first + BigInt(events.length) > limits.number) {
    malformed(`${events.length} events from ${first}`)
  }
  return { ...sessionOf(id, start), first, events }
}

/** The text of a peer id, which takes the square of its length. @param {Uint8Array} b */
export function idOf (b) {
  if (b.length > limits.id) malformed(`an id of ${b.length} bytes`)
  try {
    Digest.decode(b)
  } catch {
    malformed('an id that is not one')
  }
  return base58btc.baseEncode(b)
}

/** @param {string} id */
export const idBytes = (id) => base58btc.baseDecode(id)

/**
 * @typedef {object} MarkFields
 * @property {string} sender
 * @property {bigint} next
 * @property {bigint} above
 * @property {bigint} begin
 * @property {bigint} floor
 * @property {bigint} withheld
 * @property {boolean} ask
 */
/** @typedef {Session & MarkFields} Mark */

/** @param {Mark[]} marks */
export function encodeMarks (marks) {
  const w = new Writer()
  for (const m of marks.slice(0, limits.marks)) {
    const b = new Writer().bytes(1, idBytes(m.sender)).bytes(2, unhex(m.session)).uint(3, m.start).uint(4, m.next)
      .uint(5, m.above > m.next ? m.above : 0n).uint(6, m.begin < m.next ? m.begin : 0n)
      .uint(7, m.floor).uint(8, m.withheld).uint(9, m.ask).finish()
    if (w.length + b.length + 4 > limits.marksBytes) break
    w.message(1, b)
  }
  return w.finish()
}

/** @param {Uint8Array} b @returns {Mark[]} */
export function decodeMarks (b) {
  if (b.length > limits.marksBytes) malformed(`marks of ${b.length} bytes`)
  const marks = []
  for (const f of fields(b)) {
    if (f.num !== 1 || f.type !== 2) continue
    if (marks.length === limits.marks) malformed(`more than ${limits.marks} marks`)
    marks.push(decodeMark(f.bytes))
  }
  return marks
}

/** @param {Uint8Array} b @returns {Mark} */
function decodeMark (b) {
  let sender = ''
  let id = noBytes
  const u = [0n, 0n, 0n, 0n, 0n, 0n, 0n, 0n, 0n, 0n]
  for (const f of fields(b)) {
    if (f.num === 1 && f.type === 2) sender = idOf(f.bytes)
    else if (f.num === 2 && f.type === 2) id = f.bytes
    else if (f.num >= 3 && f.num <= 9 && f.type === 0) u[f.num] = f.uint
  }
  const next = u[4]
  const above = u[5] > next ? u[5] : next
  const begin = u[6] === 0n ? next : u[6]
  if (sender === '') malformed('a mark without a sender')
  if (next === 0n || above > limits.number || begin > next || u[7] > limits.number) malformed(`a mark from ${begin} to ${above}`)
  return {
    sender, ...sessionOf(id, u[3]), next, above, begin, floor: u[7], withheld: u[8] < next ? u[8] : next, ask: u[9] !== 0n
  }
}

/**
 * @typedef {object} WantFields
 * @property {string} sender
 * @property {bigint} from
 * @property {bigint} to
 * @property {boolean} passOn
 */
/** @typedef {Session & WantFields} Want */

/**
 * One frame of a repair stream, of which one of the fields is there, or none.
 * @typedef {{ told?: Mark[], want?: Want, original?: Uint8Array, end?: Mark[] }} RepairFrame
 */

/** @param {RepairFrame} f the payload of the frame */
export function encodeRepair ({ told, want, original, end }) {
  const w = new Writer()
  if (told !== undefined) w.message(1, encodeMarks(told))
  if (want !== undefined) {
    w.message(2, new Writer().bytes(1, idBytes(want.sender)).bytes(2, unhex(want.session)).uint(3, want.start)
      .uint(4, want.from).uint(5, want.to).uint(6, want.passOn).finish())
  }
  if (original !== undefined) w.message(3, original)
  if (end !== undefined) w.message(4, encodeMarks(end))
  return w.finish()
}

/** @param {Uint8Array} b @returns {RepairFrame} */
export function decodeRepair (b) {
  /** @type {Field | undefined} */
  let last
  for (const f of fields(b)) if (f.num <= 4 && f.type === 2) last = f
  switch (last?.num) {
    case 1: return { told: decodeMarks(last.bytes) }
    case 2: return { want: decodeWant(last.bytes) }
    case 3: return { original: last.bytes }
    case 4: return { end: decodeMarks(last.bytes) }
  }
  return {}
}

/** @param {Uint8Array} b @returns {Want} */
function decodeWant (b) {
  let sender = ''
  let id = noBytes
  const u = [0n, 0n, 0n, 0n, 0n, 0n, 0n]
  for (const f of fields(b)) {
    if (f.num === 1 && f.type === 2) sender = idOf(f.bytes)
    else if (f.num === 2 && f.type === 2) id = f.bytes
    else if (f.num >= 3 && f.num <= 6 && f.type === 0) u[f.num] = f.uint
  }
  if (sender === '' || u[4] < 1n || u[4] >= u[5] || u[5] > limits.number) malformed(`a want of ${u[4]} to ${u[5]}`)
  return { sender, ...sessionOf(id, u[3]), from: u[4], to: u[5], passOn: u[6] !== 0n }
}

/**
 * A message of pubsub as it travels.
 * @typedef {{ from: Uint8Array, data: Uint8Array, seqno: Uint8Array, topic: string, signature: Uint8Array, key: Uint8Array }} PubsubMessage
 */

/** @param {PubsubMessage} m what is signed: all but the signature and the key */
function signedPart (m) {
  return new Writer().raw(utf8.encode('libp2p-pubsub:')).raw(messageBytes(m)).finish()
}

/** @param {PubsubMessage} m */
const messageBytes = (m) => new Writer().message(1, m.from).message(2, m.data).message(3, m.seqno).message(4, utf8.encode(m.topic)).finish()

/**
 * Signs a batch, so that it can be handed out as an original.
 * @param {import('@libp2p/interface').PrivateKey} key @param {string} topic @param {Uint8Array} data
 */
export async function signOriginal (key, topic, data) {
  const seqno = crypto.getRandomValues(new Uint8Array(8))
  seqno[0] ||= 1 // some read it as a number, and would not write the zero again
  const id = peerIdFromPublicKey(key.publicKey)
  const m = { from: id.toMultihash().bytes, data, seqno, topic, signature: noBytes, key: noBytes }
  m.signature = await key.sign(signedPart(m))
  const w = new Writer().raw(messageBytes(m)).bytes(5, m.signature)
  // The key is inside an Ed25519 id, others need it.
  if (id.type === 'RSA') w.bytes(6, publicKeyToProtobuf(key.publicKey))
  return w.finish()
}

/**
 * Proves that an original was signed by its sender, and returns who that is, the topic
 * and the data.
 * @param {Uint8Array} b
 */
export async function openOriginal (b) {
  /** @type {Record<number, Uint8Array>} */
  const f = {}
  for (const { num, type, bytes } of fields(b)) {
    if (num > 6 || type !== 2) malformed('an original with a field that was not signed')
    f[num] = bytes
  }
  const m = { from: f[1] ?? noBytes, data: f[2] ?? noBytes, seqno: f[3] ?? noBytes, topic: textOf(f[4] ?? noBytes), signature: f[5] ?? noBytes, key: f[6] ?? noBytes }
  if (m.from.length > limits.id || m.seqno.length > limits.seqno || m.key.length > limits.key || m.signature.length > limits.key) {
    malformed('an original with a field out of bounds')
  }
  // Fields that are not there were not there when it was signed.
  const w = new Writer().raw(utf8.encode('libp2p-pubsub:'))
  for (const num of [1, 2, 3, 4]) if (f[num] !== undefined) w.message(num, f[num])
  let signed = false
  try {
    signed = await keyOf(m).verify(w.finish(), m.signature)
  } catch {} // a key or a signature that is none
  if (!signed) malformed('an original that its sender has not signed')
  return { sender: idOf(m.from), topic: m.topic, data: m.data }
}

/** @param {PubsubMessage} m @returns {import('@libp2p/interface').PublicKey} */
function keyOf (m) {
  const id = peerIdFromMultihash(Digest.decode(m.from))
  if (m.key.length === 0) return id.publicKey ?? malformed('an original without a key')
  const key = publicKeyFromProtobuf(m.key)
  if (!peerIdFromPublicKey(key).equals(id)) malformed('an original with the key of another')
  return key
}

// ---------------------------------------------------------------------------
// Tickets (docs/wire.md, Tickets)

/** @typedef {{ id: string, network: string, addrs: string[] }} Ticket */

/** @param {Uint8Array} b */
function crc32 (b) {
  let sum = -1
  for (const c of b) {
    sum ^= c
    for (let k = 0; k < 8; k++) sum = sum & 1 ? sum >>> 1 ^ 0xedb88320 : sum >>> 1
  }
  return (sum ^ -1) >>> 0
}

// The codes of multiaddrs that an endpoint of a ticket stands for.
const [codeIP4, codeIP6, codeTCP, codeUDP, codeQUIC] = [4, 41, 6, 273, 461]

/**
 * Reads a ticket; capital letters are read as small ones. It throws a MalformedError
 * if a letter is wrong or missing, or if nothing in it can be dialled.
 * @param {string} text @returns {Ticket}
 */
export function parseTicket (text) {
  const b = ticketBytes(text)
  const message = b.subarray(0, -4)
  if (crc32(message) !== new DataView(b.buffer, b.byteOffset + message.length).getUint32(0)) malformed('a ticket with a letter that is wrong or missing')
  /** @type {Ticket} */
  const ticket = { id: '', network: 'default', addrs: [] }
  let places = 0
  for (const f of fields(message)) {
    switch (f.num) {
      case 1:
        ticket.id = f.bytes.length === 32 ? base58btc.baseEncode(concat([Uint8Array.of(0, 36, 8, 1, 18, 32), f.bytes])) : idOf(f.bytes)
        break
      case 2:
        ticket.network = textOf(f.bytes)
        if (f.bytes.length === 0 || f.bytes.length > limits.network) malformed('a ticket with a bad name of the network')
        break
      case 3:
      case 4:
        if (places++ < limits.places) ticket.addrs.push(...placeOf(f))
    }
  }
  if (ticket.id === '') malformed('a ticket without an id')
  if (ticket.addrs.length === 0) malformed('a ticket without a place')
  return ticket
}

/** What is inside the text of a ticket, checksum included. @param {string} text */
export function ticketBytes (text) {
  const t = text.toLowerCase()
  if (!t.startsWith('smoke')) malformed('a ticket begins with smoke1')
  if (t[5] !== '1') malformed('a ticket of another version')
  if (t.length > limits.ticket) malformed('a ticket that is too long')
  let b
  try {
    b = base32.baseDecode(t.slice(6))
  } catch {
    return malformed('a ticket with a letter that is wrong')
  }
  if (ticketText(b) !== t || b.length < 4) malformed('a ticket with a letter that is wrong or missing')
  return b
}

/** @param {Uint8Array} b */
export const ticketText = (b) => 'smoke1' + base32.baseEncode(b)

/** The addresses of a place; none for what is not known here. @param {Field} f */
function placeOf (f) {
  if (f.num === 3) {
    const ip = f.bytes.subarray(0, -2)
    const port = f.bytes.subarray(-2)
    if ((ip.length !== 4 && ip.length !== 16) || !isDialable(ip) || (port[0] === 0 && port[1] === 0)) return []
    const at = new Writer().varint(ip.length === 4 ? codeIP4 : codeIP6).raw(ip).finish()
    return [
      concat([at, new Writer().varint(codeTCP).raw(port).finish()]),
      concat([at, new Writer().varint(codeUDP).raw(port).varint(codeQUIC).finish()])
    ].map((b) => multiaddr(b).toString())
  }
  try {
    const a = multiaddr(f.bytes)
    const [first, second] = a.getComponents()
    if (first === undefined || second?.value === '0') return []
    if (first.code === codeIP4 && !isDialable(f.bytes.subarray(1, 5))) return []
    if (first.code === codeIP6 && !isDialable(f.bytes.subarray(1, 17))) return []
    return [a.toString()]
  } catch {
    return []
  }
}

/** @param {Uint8Array} ip */
function isDialable (ip) {
  if (ip.every((c) => c === 0)) return false
  if (ip.length === 4) return ip[0] < 224
  return ip[0] !== 0xff && !(ip[0] === 0xfe && (ip[1] & 0xc0) === 0x80)
}

/**
 * Writes a ticket: TCP and QUIC on one port as one place, eight places at most.
 * @param {Ticket} ticket
 */
export function formatTicket ({ id, network, addrs }) {
  const key = idBytes(id)
  const w = new Writer()
  const ed25519 = key.length === 38 && equal(key.subarray(0, 6), Uint8Array.of(0, 36, 8, 1, 18, 32))
  w.bytes(1, ed25519 ? key.subarray(6) : key)
  if (network !== 'default') w.text(2, network)
  const plain = addrs.map((a) => a.replace(/\/p2p\/[^/]+$/, ''))
  /** @type {Map<string, Uint8Array>} */
  const endpoints = new Map()
  const others = new Set()
  for (const a of plain) {
    const [, at, port] = a.match(/^(\/ip[46]\/[^/]+)\/(?:tcp\/(\d+)|udp\/\d+\/quic-v1)$/) ?? a.match(/^(\/ip[46]\/[^/]+)\/udp\/(\d+)\/quic-v1$/) ?? []
    const number = port ?? a.match(/\/udp\/(\d+)/)?.[1]
    const tcp = `${at}/tcp/${number}`
    if (at !== undefined && plain.includes(tcp) && plain.includes(`${at}/udp/${number}/quic-v1`)) {
      const b = multiaddr(tcp).bytes // the code of the address, the address, the code of TCP, the port
      endpoints.set(tcp, concat([b.subarray(1, -3), b.subarray(-2)]))
    } else {
      others.add(a)
    }
  }
  const places = [...endpoints.values()].slice(0, limits.places)
  for (const b of places) w.message(3, b)
  for (const a of [...others].slice(0, limits.places - places.length)) w.message(4, multiaddr(a).bytes)
  const message = w.finish()
  const sum = new Uint8Array(4)
  new DataView(sum.buffer).setUint32(0, crc32(message))
  return ticketText(concat([message, sum]))
}
