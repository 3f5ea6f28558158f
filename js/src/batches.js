// Sessions and batches of broadcasts (docs/wire.md, Broadcasts).

import { malformed } from './errors.js'
import { limits } from './limits.js'
import { Writer, fields, hexOf, noBytes, unhex } from './protobuf.js'

/**
 * A session is one run of a sender's process. Its id is written as 16 hexadecimal digits,
 * and its start is the sender's clock in ms.
 * @typedef {{ session: string, start: bigint }} Session
 */

/** Returns a positive number if a is the later session, 0 if both are the same. @param {Session} a @param {Session} b */
export function compareSessions (a, b) {
  if (a.start !== b.start) return a.start > b.start ? 1 : -1
  return a.session === b.session ? 0 : a.session > b.session ? 1 : -1
}

/** @param {Uint8Array} id @param {bigint} start @returns {Session} */
export function sessionOf (id, start) {
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
