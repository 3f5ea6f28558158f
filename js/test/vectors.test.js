// The files of docs/vectors, both ways: malformed bytes are refused, all others decode to the
// fields of the vector, and encode to the same bytes unless the vector is readOnly.

import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import * as wire from './wire.js'
import { decodeOverlay, encodeOverlay } from './overlay.js'

const { hexOf, unhex } = wire

/** Parses JSON. Integers above 2^53 become BigInts. */
const parse = (/** @type {string} */ text) => JSON.parse(text, /** @type {any} */ ((/** @type {string} */ _, /** @type {unknown} */ v, /** @type {{ source: string }} */ { source }) =>
  typeof v === 'number' && Number.isInteger(v) && !Number.isSafeInteger(v) ? BigInt(source) : v))

/** Drops fields that are zero or empty, and turns small BigInts into numbers. @param {any} v @returns {any} */
function tidy (v) {
  if (v instanceof Uint8Array) return hexOf(v)
  if (typeof v === 'bigint') return v <= 2n ** 53n - 1n ? Number(v) : v
  if (Array.isArray(v)) return v.map(tidy)
  if (v === null || typeof v !== 'object') return v
  return Object.fromEntries(Object.entries(v).map(([k, x]) => [k, tidy(x)]).filter(([, x]) => !(x === 0 || x === '' || x === false || x === undefined)))
}

/**
 * @param {string} file
 * @param {(b: Uint8Array) => unknown} decode
 * @param {(fields: any) => Uint8Array} encode
 */
function vectors (file, decode, encode) {
  test(file, async (t) => {
    const list = parse(readFileSync(new URL('../../docs/vectors/' + file, import.meta.url), 'utf8'))
    assert.ok(list.some((/** @type {any} */ v) => v.error) && list.some((/** @type {any} */ v) => v.fields))
    for (const v of list) {
      await t.test(v.name, async () => {
        const b = unhex(v.hex)
        if (v.error) {
          await assert.rejects(async () => await decode(b), wire.MalformedError)
          return
        }
        assert.deepEqual(tidy(await decode(b)), tidy(v.fields))
        if (!v.readOnly) assert.equal(hexOf(encode(v.fields)), v.hex)
      })
    }
  })
}

/** @param {Uint8Array} b @param {number} max */
function framesOf (b, max) {
  const r = new wire.FrameReader(max)
  r.push(b)
  const list = []
  for (let f; (f = r.next()) !== undefined;) list.push(f)
  if (r.begun) throw new wire.MalformedError('the end is inside a frame')
  return list
}

vectors('frame.json', (b) => {
  const payloads = framesOf(b, 1 << 20)
  return payloads.length > 0 ? { payloads: payloads.map(hexOf) } : {}
}, ({ payloads = [] }) => wire.concat(payloads.map((/** @type {string} */ p) => wire.encodeFrame(unhex(p)))))

/** Returns the fields of an event as they are in the files. @param {wire.Event} event */
function eventFields (event) {
  const args = event.args.map(({ codec, data }) => {
    /** @type {any} */
    let value = codec === wire.codecs.protobuf ? protobufValue(event.name, data) : wire.decodeArg({ codec, data })
    if (value instanceof wire.Undecodable) return { codec, data, undecodable: true }
    if (codec === wire.codecs.raw || value === null) return { codec, data }
    if (value instanceof Uint8Array) value = Buffer.from(value).toString('base64')
    return { codec, data, value }
  })
  return args.length > 0 ? { name: event.name, args } : { name: event.name }
}

/** @param {string} type @param {Uint8Array} data */
function protobufValue (type, data) {
  try {
    if (type === 'google.protobuf.Empty') return {}
    let text = ''
    for (const f of wire.fields(data)) if (f.num === 1) text = wire.textOf(f.bytes)
    return text
  } catch {
    return new wire.Undecodable(2, data, '')
  }
}

const eventOf = (/** @type {any} */ { name, args = [] }) =>
  wire.encodeEvent({ name, args: args.map((/** @type {any} */ { codec, data = '' }) => ({ codec, data: unhex(data) })) })

vectors('event.json', (b) => eventFields(wire.decodeEvent(b)), eventOf)

vectors('direct.json', (b) => {
  const [first, ...rest] = framesOf(b, wire.limits.event + wire.limits.envelope)
  if (first === undefined || first.length > wire.limits.hello) throw new wire.MalformedError('no hello')
  const hello = wire.decodeHello(first)
  const events = rest.map(wire.decodeDirect).filter((x) => x !== undefined).map(({ event, call }) => ({ call, ...eventFields(event) }))
  return events.length > 0 ? { hello, events } : { hello }
}, ({ hello, events = [] }) => wire.concat([
  wire.encodeFrame(wire.encodeHello({ session: unhex(hello.session), network: hello.network ?? '', serial: BigInt(hello.serial ?? 0) })),
  ...events.map((/** @type {any} */ e) => wire.encodeFrame(wire.encodeDirect(eventOf(e), e.call === undefined ? undefined : BigInt(e.call))))
]))

vectors('answer.json', (b) => {
  const [frame] = framesOf(b, wire.limits.event + wire.limits.envelope)
  return wire.decodeAnswer(frame)
}, ({ id, status, event = '', error }) => wire.encodeFrame(wire.encodeAnswer({ id: BigInt(id), status, event: unhex(event), error })))

vectors('batch.json', (b) => {
  const { session, start, first, events } = wire.decodeBatch(b)
  return { session, start_ms: start, first, events }
}, (f) => wire.encodeBatch({ session: f.session, start: BigInt(f.start_ms), first: BigInt(f.first), events: f.events.map(unhex) }))

/** @param {wire.Mark} m */
const markFields = (m) => ({
  sender: wire.idBytes(m.sender), session: m.session, start_ms: m.start, next: m.next, above: m.above > m.next ? m.above : 0n,
  begin: m.begin < m.next ? m.begin : 0n, floor: m.floor, withheld: m.withheld, ask: m.ask
})

/** @param {any} f @returns {wire.Mark} */
const markOf = (f) => ({
  sender: wire.idOf(unhex(f.sender)), session: f.session, start: BigInt(f.start_ms), next: BigInt(f.next), above: BigInt(f.above ?? 0),
  begin: BigInt(f.begin ?? f.next), floor: BigInt(f.floor ?? 0), withheld: BigInt(f.withheld ?? 0), ask: f.ask ?? false
})

vectors('repair.json', (b) => {
  const { told, want, original, end } = wire.decodeRepair(b)
  return {
    told: told?.map(markFields),
    want: want && { sender: wire.idBytes(want.sender), session: want.session, start_ms: want.start, from: want.from, to: want.to, pass_on: want.passOn },
    original,
    end: end?.map(markFields)
  }
}, ({ told, want, original, end }) => wire.encodeRepair({
  told: told?.map(markOf),
  want: want && { sender: wire.idOf(unhex(want.sender)), session: want.session, start: BigInt(want.start_ms), from: BigInt(want.from), to: BigInt(want.to), passOn: want.pass_on ?? false },
  original: original === undefined ? undefined : unhex(original),
  end: end?.map(markOf)
}))

vectors('original.json', async (b) => {
  const { sender, topic, data } = await wire.openOriginal(b)
  return { sender, topic, data }
}, () => { throw new Error('the key is not in the file, so all of them are readOnly') })

vectors('ticket.json', (b) => {
  const text = wire.ticketText(b)
  return { text, ...wire.parseTicket(text) }
}, (f) => {
  const text = wire.formatTicket(f)
  assert.equal(text, f.text)
  return wire.ticketBytes(text)
})

vectors('overlay.json', decodeOverlay, encodeOverlay)

test('an id of more than 64 bytes is malformed', () => {
  const id = (/** @type {number} */ n) => wire.concat([new wire.Writer().varint(0).varint(n).finish(), new Uint8Array(n)]) // an identity hash
  assert.equal(wire.idBytes(wire.idOf(id(62))).length, 64)
  const head = new wire.Writer().bytes(2, new Uint8Array(8)).uint(3, 1)
  for (const n of [63, 60_000]) {
    const mark = new wire.Writer().bytes(1, id(n)).raw(head.finish()).uint(4, 1).finish()
    const want = new wire.Writer().bytes(1, id(n)).raw(head.finish()).uint(4, 1).uint(5, 2).finish()
    const begin = performance.now()
    for (const frame of [[1, new wire.Writer().message(1, mark).finish()], [4, new wire.Writer().message(1, mark).finish()], [2, want]]) {
      const b = new wire.Writer().message(/** @type {number} */ (frame[0]), /** @type {Uint8Array} */ (frame[1])).finish()
      assert.throws(() => wire.decodeRepair(b), wire.MalformedError)
    }
    assert.ok(performance.now() - begin < 1000)
  }
})
