// The order and the repair of broadcasts, step by step, without a network: time is a number.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Order } from '../src/order.js'

const older = { session: '0000000000000001', start: 1000n }
const newer = { session: '0000000000000002', start: 2000n }

/** @param {number} first @param {number} end @param {{ session: string, start: bigint }} [session] @param {number} [size] */
const batch = (first, end, session = older, size = 1) =>
  ({ ...session, first: BigInt(first), events: Array.from({ length: end - first }, () => new Uint8Array(size)) })

/** @param {number} begin @param {number} next @param {{ sender?: string, session?: typeof older, above?: number, floor?: number }} [more] */
const mark = (begin, next, { sender = 's', session = older, above = next, floor = begin } = {}) => ({
  sender, ...session, begin: BigInt(begin), next: BigInt(next), above: BigInt(above), floor: BigInt(floor), withheld: 0n, ask: false
})

class Script {
  /** @type {import('../src/order.js').Ask[]} */
  asks = []

  /** @param {ConstructorParameters<typeof Order>[0]} [config] */
  constructor (config) {
    this.order = new Order(config)
    this.now = 1000
  }

  /** @param {string} node @param {ReturnType<typeof mark>[]} marks */
  greet (node, ...marks) {
    this.order.addNode(node)
    this.order.receiveMarks(this.now, node, marks, true)
  }

  /** @param {string} node @param {ReturnType<typeof mark>[]} marks */
  marks (node, ...marks) { this.order.receiveMarks(this.now, node, marks, false) }

  /** @param {ReturnType<typeof batch>} b @param {string} [sender] */
  receive (b, sender = 's') { return this.order.receiveBatch(this.now, sender, b) }

  /**
   * Lets time pass, and compares the events that are delivered or lost, and the asks.
   * @param {number} ms @param {string} want
   */
  want (ms, want) {
    const got = []
    for (let end = this.now + ms, i = 0; ; i++) {
      assert.ok(i < 10_000, 'advance always has something to do')
      const out = this.order.advance(this.now)
      for (const s of out.steps) got.push(`${s.events === undefined ? 'lost ' : ''}${s.from}-${s.to}${s.session === older.session ? '' : ' later'}`)
      for (const a of out.asks) {
        got.push(`${a.node}? ${a.from}-${a.to}`)
        this.asks.push(a)
      }
      if (out.next > end) {
        this.now = end
        break
      }
      this.now = Math.max(out.next, this.now + 1)
    }
    assert.equal(got.join(', '), want)
  }

  /** Finishes the oldest ask, with a batch or without. @param {ReturnType<typeof batch>} [b] */
  answer (b) {
    const a = /** @type {import('../src/order.js').Ask} */ (this.asks.shift())
    if (b !== undefined) this.receive(b)
    this.order.finishAsk(this.now, a, b === undefined ? 'nothing' : 'got')
  }
}

test('batches in order are delivered at once, and only once', () => {
  const s = new Script()
  s.greet('a')
  assert.equal(s.receive(batch(1, 4)), 'new')
  assert.equal(s.receive(batch(1, 4)), 'duplicate')
  assert.equal(s.receive(batch(3, 6)), 'new')
  s.want(0, '1-4, 4-6')
  s.want(100_000, '')
})

test('a batch that overtakes others waits for them', () => {
  const s = new Script()
  s.greet('a')
  s.receive(batch(1, 2))
  s.receive(batch(5, 9))
  s.receive(batch(3, 5))
  s.want(0, '1-2')
  s.receive(batch(2, 3))
  s.want(0, '2-3, 3-5, 5-9')
})

test('a new leaf begins where the greeting of the node ends', () => {
  const s = new Script()
  s.greet('a', mark(1, 100))
  s.want(60_000, '')
  s.receive(batch(98, 102)) // it was under way when the node greeted
  s.want(0, '98-102')
})

test('missing events are asked for, and delivered in their place', () => {
  const s = new Script()
  s.greet('a', mark(1, 100))
  s.marks('a', mark(1, 110))
  s.want(149, '')
  s.want(1, 'a? 100-110')
  s.answer(batch(100, 105))
  s.want(0, '100-105, a? 105-110')
  s.answer(batch(105, 110))
  s.want(60_000, '105-110')
})

test('a sender that the node did not know when it greeted is delivered from its first event', () => {
  const s = new Script()
  s.greet('a')
  s.receive(batch(5, 9))
  s.want(1000, '')
  s.marks('a', mark(1, 9))
  s.want(200, 'a? 1-5')
  s.answer(batch(1, 5))
  s.want(0, '1-5, 5-9')
})

test('events that the only node never had are not waited for', () => {
  const s = new Script()
  s.greet('a')
  s.receive(batch(5, 9))
  s.marks('a', mark(5, 9))
  s.want(60_000, '5-9')
})

test('the first batch of an unknown sender waits for lower ones, for a while', () => {
  const s = new Script()
  s.receive(batch(5, 9))
  s.want(4999, '')
  s.want(1, '5-9')
})

test('nodes whose marks cover a gap are asked first, the others once', () => {
  const s = new Script()
  s.greet('a', mark(1, 10))
  s.greet('b', mark(1, 10))
  s.receive(batch(10, 12))
  s.marks('b', mark(1, 20))
  s.receive(batch(20, 21))
  s.want(150, '10-12, b? 12-20')
  s.answer()
  s.want(0, 'a? 12-20')
  s.answer()
  s.want(2500, 'b? 12-20') // after a pause
  s.answer()
  s.want(0, 'a? 12-20')
  s.answer()
  s.want(0, 'lost 12-20, 20-21')
})

test('events that no node has are reported in their place', () => {
  const s = new Script()
  s.greet('a', mark(1, 3))
  s.receive(batch(3, 5))
  s.receive(batch(9, 12))
  s.marks('a', mark(1, 12))
  s.want(150, '3-5, a? 5-9')
  s.now += 2000
  s.answer()
  s.want(1, 'lost 5-9, 9-12')
  assert.equal(s.receive(batch(5, 9)), 'duplicate') // too late
})

test('events that were given up because of a claim are delivered if their sender has signed them', () => {
  const s = new Script()
  s.greet('a', mark(1, 3))
  s.receive(batch(3, 5))
  s.marks('a', mark(1, 2 ** 40))
  s.want(150, `3-5, a? 5-${2 ** 40}`)
  s.now += 2000
  s.answer()
  s.want(1, `lost 5-${2 ** 40}`)
  assert.equal(s.order.mark('s')?.next, 5n) // the lie does not spread
  s.receive(batch(5, 7))
  s.want(0, '5-7')
})

test('a later session waits two seconds at most for the missing events of the older one', () => {
  const s = new Script()
  s.greet('a', mark(1, 1))
  s.receive(batch(1, 3))
  s.receive(batch(5, 6))
  s.receive(batch(1, 4, newer))
  s.want(1000, '1-3, a? 3-5')
  s.want(1000, 'lost 3-5, 5-6, 1-4 later')
  assert.equal(s.receive(batch(6, 7)), 'old')
})

test('without a node, missing events are given up after 70 s', () => {
  const s = new Script()
  s.receive(batch(1, 3))
  s.receive(batch(5, 6))
  s.want(69_000, '1-3')
  s.want(2000, 'lost 3-5, 5-6')
})

test('an ask that fails is repeated, and nothing is given up', () => {
  const s = new Script()
  s.greet('a', mark(1, 1))
  s.receive(batch(1, 3))
  s.marks('a', mark(1, 5))
  s.want(150, '1-3, a? 3-5')
  for (let i = 0; i < 5; i++) {
    s.order.finishAsk(s.now, /** @type {any} */ (s.asks.shift()), 'failed')
    s.want(1000, 'a? 3-5')
  }
  s.answer(batch(3, 5))
  s.want(0, '3-5')
})

test('a node that has not greeted is not asked, and delays nothing', () => {
  const s = new Script()
  s.greet('a', mark(1, 1))
  s.order.addNode('b')
  s.order.muteNode('b')
  s.receive(batch(1, 3))
  s.receive(batch(5, 6))
  s.marks('a', mark(1, 6))
  s.want(150, '1-3, a? 3-5')
  s.answer()
  s.want(600, 'a? 3-5')
  s.now += 1500
  s.answer()
  s.want(1, 'lost 3-5, 5-6')

  s.receive(batch(8, 9))
  s.greet('b', mark(8, 9)) // it was late
  s.want(150, 'b? 6-8')
})

test('if no node has greeted, missing events are given up soon', () => {
  const s = new Script()
  for (const node of ['a', 'b']) {
    s.order.addNode(node)
    s.order.muteNode(node)
  }
  s.receive(batch(1, 3))
  s.receive(batch(5, 6))
  s.want(1900, '1-3')
  s.want(600, 'lost 3-5, 5-6')
})

test('no sender or node can make it grow without bound', () => {
  const s = new Script({ maxSenders: 10, maxHeld: 10_000, maxTotal: 30_000 })
  s.greet('a')
  for (let i = 0; i < 200; i++) {
    s.receive(batch(2 * i + 2, 2 * i + 3, older, 1000), `sender ${i % 30}`)
    s.marks('a', mark(1, 9, { sender: `hint ${i}` }), mark(1, 5, { sender: `sender ${i}`, session: newer }))
    s.order.advance(s.now)
    s.now += 1
  }
  const { held, senders, hints } = s.order.size
  assert.ok(held <= 30_000 && senders <= 10 && hints <= 40, JSON.stringify({ held, senders, hints }))
})

test('of many senders, the one whose mark is oldest is dropped', () => {
  const s = new Script({ maxSenders: 10 })
  s.greet('a')
  s.greet('b')
  s.receive(batch(1, 3))
  s.marks('b', mark(1, 9))
  for (let i = 0; i < 39; i++) s.marks('b', mark(1, 1, { sender: `other ${i}` }))
  s.marks('b', mark(1, 9)) // again, so it is kept
  for (let i = 0; i < 60; i++) s.marks('a', mark(1, 1, { sender: `other ${i}` }))
  s.marks('b', mark(1, 1, { sender: 'one more' }))
  s.want(150, '1-3, b? 3-9')
  s.answer()
  s.marks('a', mark(1, 9)) // the node has the events, although it has sent marks of so many senders
  s.want(0, 'a? 3-9')
})

// Batches are lost, duplicated and reordered at random. With a node that has all of them,
// every event is delivered once and in order.
test('batches that are lost, doubled and reordered are delivered once and in order', () => {
  for (let seed = 1; seed <= 300; seed++) {
    let state = seed * 2654435761 % 2 ** 32
    const random = (/** @type {number} */ n) => (state = (state * 1664525 + 1013904223) % 2 ** 32) >>> 8 & 0xffff ? (state >>> 8) % n : 0
    const order = new Order()
    let now = 0
    order.addNode('a')
    order.receiveMarks(now, 'a', [], true)
    /** @type {ReturnType<typeof batch>[]} */
    const sent = []
    let next = 1
    let expect = 1n
    /** @type {ReturnType<typeof batch>[]} */
    const flying = []
    const step = () => {
      const out = order.advance(now)
      for (const s of out.steps) {
        assert.equal(s.from, expect, `seed ${seed}`)
        assert.notEqual(s.events, undefined, `seed ${seed}: ${s.from} to ${s.to} are lost`)
        assert.equal(BigInt(/** @type {any} */ (s.events).length), s.to - s.from)
        expect = s.to
      }
      for (const a of out.asks) {
        let answer = /** @type {'got' | 'nothing' | 'failed'} */ ('nothing')
        for (const b of sent) {
          if (b.first + BigInt(b.events.length) <= a.from || b.first >= a.to) continue
          if (random(4) === 0) {
            answer = 'failed'
            break
          }
          order.receiveBatch(now, 's', b)
          answer = 'got'
        }
        order.finishAsk(now, a, answer)
      }
      return out.next
    }
    for (let i = 0; i < 60; i++) {
      const n = 1 + random(5)
      const b = batch(next, next + n)
      next += n
      sent.push(b)
      for (let copies = random(3); copies > 0; copies--) flying.splice(random(flying.length + 1), 0, b)
      while (flying.length > 4) order.receiveBatch(now, 's', /** @type {any} */ (flying.shift()))
      if (random(3) === 0) order.receiveMarks(now, 'a', [mark(1, next)], false)
      now += random(100)
      step()
    }
    for (const b of flying) order.receiveBatch(now, 's', b)
    order.receiveMarks(now, 'a', [mark(1, next)], false)
    for (let i = 0; i < 1000 && expect < next; i++) now = Math.max(now + 1, Math.min(step(), now + 1000))
    assert.equal(expect, BigInt(next), `seed ${seed}`)
  }
})
