// The messages on streams of direct events and calls (docs/wire.md, Direct events).

import { malformed } from './errors.js'
import { decodeEvent } from './events.js'
import { limits } from './limits.js'
import { Writer, fields, noBytes, textOf, utf8 } from './protobuf.js'

/** @import { Event } from './events.js' */

/** @typedef {{ session: Uint8Array, network: string, serial: bigint }} Hello */

/** Returns the payload of the first frame. @param {Hello} hello */
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
  if (hello === undefined) return malformed('the first frame is not a hello')
  if (hello.session.length !== 8) malformed(`a session of ${hello.session.length} bytes`)
  return hello
}

/**
 * Returns the payload of a frame with an event, or with a call if an id is given.
 * @param {Uint8Array} event @param {bigint} [call]
 */
export const encodeDirect = (event, call) => call === undefined
  ? new Writer().message(2, event).finish()
  : new Writer().message(3, new Writer().uint(1, call).message(2, event).finish()).finish()

/**
 * Decodes a frame after the hello. It returns undefined for a frame without an event or a
 * call. call is 0 for an event.
 * @param {Uint8Array} b @returns {{ event: Event, call: bigint } | undefined}
 */
export function decodeDirect (b) {
  /** @type {{ event: Event, call: bigint } | undefined} */
  let found
  for (const f of fields(b)) {
    if (f.num === 1) malformed('a second hello')
    if (f.num === 4) malformed('an answer on a stream of calls')
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

/** The status numbers of an answer. */
export const statuses = Object.freeze({ done: 0, failed: 1, noHandler: 2, badArgument: 3, repeated: 4 })

/** @typedef {{ id: bigint, status: bigint, event: Uint8Array, error: string }} Answer */

/**
 * Returns the payload of a frame with an answer. The event goes with status 0, the error
 * with all others.
 * @param {{ id: bigint, status?: bigint | number, event?: Uint8Array, error?: string }} answer
 */
export function encodeAnswer ({ id, status = 0, event = noBytes, error = '' }) {
  const w = new Writer().uint(1, id)
  if (BigInt(status) === 0n) w.message(2, event)
  else w.uint(3, status).bytes(4, cutText(error, limits.errorText))
  return new Writer().message(4, w.finish()).finish()
}

/**
 * Encodes at most max bytes of a text.
 * @param {string} text @param {number} max
 * @returns {Uint8Array}
 */
function cutText (text, max) {
  const b = new Uint8Array(max)
  return b.subarray(0, utf8.encodeInto(text.toWellFormed(), b).written) // which ends with a whole character
}

/** Decodes a frame, and returns undefined if it has no answer. @param {Uint8Array} b @returns {Answer | undefined} */
export function decodeAnswer (b) {
  /** @type {Answer | undefined} */
  let answer
  for (const f of fields(b)) {
    if (f.num < 4) malformed(`field ${f.num} on a stream of answers`)
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
