// What the page does when several things happen at once, with elements and a leaf that do
// nothing.

import assert from 'node:assert/strict'
import { registerHooks } from 'node:module'
import { test } from 'node:test'

class Element {
  value = 'me'
  className = ''
  hidden = false
  disabled = false
  style = { setProperty () {} }
  /** @type {string[]} */
  texts = [] // every text so far
  /** @type {Record<string, (evt: any) => unknown>} */
  on = {}

  get textContent () { return this.texts.at(-1) ?? '' }
  set textContent (text) { this.texts.push(text) }
  /** @param {string} name @param {(evt: any) => unknown} f */
  addEventListener (name, f) { this.on[name] = f }
  append () {}
  replaceChildren () {}
  focus () {}
}

/** @type {Map<string, Element>} */
const elements = new Map()

/** @param {string} id */
function $ (id) {
  const e = elements.get(id) ?? new Element()
  elements.set(id, e)
  return e
}

/** @type {any[]} */
const joins = []
/** @type {any[]} */
const leaves = []
let closing = Promise.resolve()
let nodes = 0
let making = Promise.resolve()
let noNode = false
/** @type {object | undefined} */
let answer

Object.assign(globalThis, {
  document: { getElementById: $, createElement: () => new Element(), addEventListener () {}, hidden: false },
  location: { hash: '', protocol: 'http:', hostname: '127.0.0.1', port: '8080' },
  matchMedia: () => ({ matches: true }),
  addEventListener () {},
  requestAnimationFrame: setImmediate,
  fetch: async () => {
    if (answer === undefined) throw new Error('it is not running')
    return { ok: true, json: async () => answer }
  },
  bundle: {
    encodeQR () {},
    async newNode () {
      nodes++
      await making
      if (noNode) throw new Error('no luck')
    },
    async join (/** @type {any} */ options) {
      joins.push(options)
      const on = () => () => {}
      const leaf = {
        id: 'id-myself', network: 'default', connected: false, on, onDirect: on, onGap: on, onDisconnect: on, onConnect: on, async emit () {}, close: () => closing
      }
      leaves.push(leaf)
      return leaf
    }
  }
})
registerHooks({
  resolve: (name, context, next) => name === './bundle.js'
    ? { url: 'data:text/javascript,export const { newNode, encodeQR, join } = bundle', shortCircuit: true }
    : next(name, context)
})
// @ts-ignore: the bundle is replaced
await import('../page/app.js')

const settle = async () => { for (let i = 0; i < 5; i++) await new Promise((resolve) => setImmediate(resolve)) }

async function enter () {
  $('join').on.submit({ preventDefault () {} })
  await settle()
}

test('a user who has left does not see a failure of joining', async () => {
  const { promise, resolve } = /** @type {PromiseWithResolvers<void>} */ (Promise.withResolvers())
  making = promise
  noNode = true
  await enter()
  await $('leave').on.click({})
  resolve()
  await settle()
  noNode = false
  making = Promise.resolve()
  assert.equal($('status').textContent, 'Not joined')
})

test('making a node is tried again when the user joins again', async () => {
  const before = nodes
  noNode = true
  await enter()
  assert.equal($('status').textContent, 'Cannot join: no luck')
  await $('leave').on.click({})
  noNode = false
  answer = { id: 'one', network: 'default', command: '' }
  await enter()
  assert.equal(nodes - before, 2)
  assert.equal(joins.splice(0).length, 1)
  await $('leave').on.click({})
})

test('the room can be left only once', async () => {
  await enter()
  joins.length = 0
  const { promise, resolve } = /** @type {PromiseWithResolvers<void>} */ (Promise.withResolvers())
  closing = promise
  const left = $('leave').on.click({})
  assert.equal($('leave').disabled, true)
  resolve()
  await left
  assert.equal($('leave').disabled, false)
  assert.equal($('room').hidden, true)
})

test('a user who leaves while the page joins another node stays out', async (t) => {
  t.mock.timers.enable({ apis: ['setTimeout'] })
  await enter()
  assert.equal(joins.splice(0).length, 1)
  const { promise, resolve } = /** @type {PromiseWithResolvers<void>} */ (Promise.withResolvers())
  closing = promise
  answer = { id: 'two', network: 'default', command: '' }
  t.mock.timers.tick(2000)
  await settle() // the page leaves the first
  const left = $('leave').on.click({})
  resolve()
  await left
  await settle()
  assert.equal(joins.length, 0)
  assert.equal($('status').textContent, 'Not joined')
})

test('a status that has not changed is not set again', async (t) => {
  t.mock.timers.enable({ apis: ['setTimeout'] })
  answer = undefined
  const { texts } = $('status')
  texts.length = 0
  await enter()
  for (let i = 0; i < 5; i++) {
    t.mock.timers.tick(2000)
    await settle()
  }
  assert.deepEqual(texts, ['Connecting…', 'The server does not answer, trying again…'])
  await $('leave').on.click({})
  t.mock.timers.tick(2000)
})
