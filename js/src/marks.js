// The messages on streams of repair (docs/wire.md, Marks and repair).

import { base58btc } from 'multiformats/bases/base58'
import * as Digest from 'multiformats/hashes/digest'
import { sessionOf } from './batches.js'
import { malformed } from './errors.js'
import { limits } from './limits.js'
import { Writer, fields, noBytes, unhex } from './protobuf.js'

/** @import { Session } from './batches.js' */
/** @import { Field } from './protobuf.js' */

/** Returns the text of a peer id. @param {Uint8Array} b */
export function idOf (b) {
  // Base58 takes quadratic time, so the length is checked first.
  if (b.length > limits.id) malformed(`an id of ${b.length} bytes`)
  try {
    Digest.decode(b)
  } catch {
    malformed('bytes that are not a peer id')
  }
  return base58btc.baseEncode(b)
}

/** Returns the bytes of a peer id. @param {string} id */
export const idBytes = (id) => base58btc.baseDecode(id)

/**
 * How far a peer has received the session of a sender: everything from begin to below next
 * is there. docs/wire.md describes each field.
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

/** Encodes as many of the marks as fit. @param {Mark[]} marks */
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
 * One frame of a repair stream. It has one of these fields, or none that is known here.
 * @typedef {{ told?: Mark[], want?: Want, original?: Uint8Array, end?: Mark[] }} RepairFrame
 */

/** Returns the payload of a frame. @param {RepairFrame} f */
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
