// Events and their arguments (docs/wire.md, Direct events).

import { decodeCBOR } from './cbor.js'
import { TooLargeError, Undecodable, malformed } from './errors.js'
import { limits } from './limits.js'
import { Writer, fields, noBytes, textOf, utf8 } from './protobuf.js'

/** The codec numbers. */
export const codecs = Object.freeze({ raw: 0, json: 1, protobuf: 2, cbor: 3 })

/** @typedef {{ codec: number, data: Uint8Array }} Arg */
/** @typedef {{ name: string, args: Arg[] }} Event */

/** @param {string} name */
export function checkName (name) {
  if (typeof name !== 'string' || name === '' || name === '*' || !name.isWellFormed() || utf8.encode(name).length > limits.name) {
    throw new TypeError(`smokesignal: an event name needs 1 to ${limits.name} bytes and must not be "*", got ${JSON.stringify(name)}`)
  }
  return name
}

/**
 * Encodes a Uint8Array or an ArrayBuffer as raw bytes, everything else as JSON.
 * @param {unknown} value @returns {Arg}
 */
export function encodeArg (value) {
  if (value instanceof Uint8Array) return { codec: codecs.raw, data: value }
  if (value instanceof ArrayBuffer) return { codec: codecs.raw, data: new Uint8Array(value) }
  const text = JSON.stringify(value)
  if (text === undefined) throw new TypeError(`smokesignal: an argument of type ${typeof value} cannot be encoded as JSON`)
  return { codec: codecs.json, data: utf8.encode(text) }
}

/**
 * Returns the value of an argument: bytes, or the value that JSON or CBOR encode. For data
 * that cannot be decoded it returns an Undecodable. Protobuf messages are returned as an
 * Undecodable too, because their type is not known here; a caller that knows it decodes the
 * data.
 * @param {Arg} arg @returns {unknown}
 */
export function decodeArg ({ codec, data }) {
  try {
    switch (codec) {
      case codecs.raw: return new Uint8Array(data) // a copy, because data is a part of a larger buffer
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
    if (f.type !== 2) continue // every known field is length-delimited
    if (f.num === 1) {
      if (f.bytes.length > limits.name) malformed(`a name of ${f.bytes.length} bytes`)
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
 * Checks and encodes an event that the application emits.
 * @param {string} name @param {unknown[]} args
 */
export function newEvent (name, args) {
  checkName(name)
  if (args.length > limits.args) throw new TooLargeError(`smokesignal: ${name}: ${args.length} arguments, at most ${limits.args}`)
  const b = encodeEvent({ name, args: args.map(encodeArg) })
  if (b.length > limits.event) throw new TooLargeError(`smokesignal: ${name}: ${b.length} bytes, at most ${limits.event}`)
  return b
}
