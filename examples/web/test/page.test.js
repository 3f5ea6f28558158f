// The parts of the page without a browser: what it shows of received texts, and who is here.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Chat } from '../page/chat.js'
import { parseLine } from '../page/commands.js'
import { Pending } from '../page/pending.js'
import { Roster, absence } from '../page/roster.js'
import { clean, cleanName, maxText, pieces } from '../page/text.js'

// The same table as in examples/chat/text_test.go.
test('no received text hides or moves anything', () => {
  for (const [given, want] of [
    ['hello, wörld 你好 👋', 'hello, wörld 你好 👋'],
    ['\x1b[2J\x1b[31mred', '␛[2J␛[31mred'],
    ['a\r\nmallory: b', 'a␍␊mallory: b'],
    ['c1 \u009b31m', 'c1 \ufffd31m'],
    ['over\u202eevil\u2066', 'overevil'],
    ['zero\u200bwidth\ufeff', 'zerowidth'],
    ['line\u2028sep\u2029', 'line\ufffdsep\ufffd'],
    ['tab\there\u00a0', 'tab here '],
    ['del\x7f', 'del␡'],
    ['half \ud83d', 'half \ufffd'],
    ['z' + '\u0300'.repeat(50), 'z' + '\u0300'.repeat(4)],
    ['👩\u200d🚀', '👩\u200d🚀']
  ]) assert.equal(clean(given, 100), want)
  assert.equal(clean('x'.repeat(50), 10), 'x'.repeat(10) + '…')
  assert.equal(clean('exactly   ', 7), 'exactly')
  for (const no of [undefined, null, 7, {}, ['a'], new Uint8Array(3)]) assert.equal(clean(no), '')
})

test('a name is one word', () => {
  for (const [given, want] of [
    [' Bob ', 'Bob'], ['Mary Ann', 'Mary_Ann'], ['* connected', 'connected'], ['me: hi', 'me__hi'],
    ['a\u200db', 'ab'], ['', ''], ['***', ''], ['/quit', 'quit'], ['josé', 'josé'],
    ['very ' + 'long'.repeat(9), 'very_' + 'long'.repeat(4) + 'lon…']
  ]) assert.equal(cleanName(given), want)
  assert.equal(cleanName({ toString: () => 'me' }), '')
})

test('a long text is cut into pieces between characters', () => {
  const long = '👋'.repeat(2 * maxText + 1)
  const got = pieces(long)
  assert.equal(got.length, 3)
  assert.equal(got.join(''), long)
})

test('equal names are shown differently, and a person who misses a roll call is gone', () => {
  const r = new Roster('me')
  assert.deepEqual(r.heard('id-aaaaaa', 'Bob', 0), { name: 'Bob', news: true })
  assert.deepEqual(r.heard('id-aaaaaa', 'Bob', 0), { name: 'Bob', news: false })
  assert.deepEqual(r.heard('id-bbbbbb', 'bob', 0), { name: 'bob-bbbbbb', news: true })
  assert.deepEqual(r.heard('id-cccccc', 'ME', 0), { name: 'ME-cccccc', news: true })
  assert.deepEqual(r.heard('id-dddddd', { evil: 1 }, 0), { name: 'dddddd', news: true })
  assert.deepEqual(r.heard('id-dddddd', 'dora', 0), { name: 'dora', news: true })
  assert.deepEqual(r.names, ['Bob', 'bob-bbbbbb', 'dora', 'ME-cccccc'])
  r.call(10)
  r.heard('id-aaaaaa', undefined, 20)
  assert.deepEqual(r.settle(10 + absence - 1), [])
  assert.deepEqual(r.settle(10 + absence), ['ME-cccccc', 'bob-bbbbbb', 'dora'])
  assert.deepEqual(r.settle(1e9), [])
  assert.deepEqual(r.names, ['Bob'])
  for (let i = 0; i < 2000; i++) r.heard('id ' + i, 'x', 0)
  assert.equal(r.names.length, 1000)
})

test('lines are shown once per frame, and no more than fit', () => {
  /** @type {Array<() => void>} */
  const frames = []
  /** @type {any[]} */
  const shown = []
  const pending = new Pending((lines, names) => { shown.push([lines, names]) }, 3, (f) => { frames.push(f) })
  for (let i = 0; i < 100; i++) {
    pending.addLine(i)
    pending.setNames([String(i)])
  }
  assert.equal(frames.length, 1)
  assert.deepEqual(shown, [])
  frames.shift()?.()
  assert.deepEqual(shown.splice(0), [[[97, 98, 99], ['99']]])
  pending.addLine(100)
  pending.flush() // before the frame, which then has nothing to show
  assert.deepEqual(shown.splice(0), [[[100], undefined]])
  frames.shift()?.()
  pending.addLine(101)
  pending.clear()
  frames.shift()?.()
  assert.deepEqual(shown, [])
})

/** A leaf whose handlers a test calls, and which records what it sends. */
class FakeLeaf {
  id = 'id-myself'
  connected = false
  /** @type {any[]} */
  sent = []
  /** @type {Record<string, (...args: any[]) => void>} */
  heard = {}

  /** @param {string} name @param {any} f */
  on (name, f) { return this.#on(name, f) }
  /** @param {string} name @param {any} f */
  onDirect (name, f) { return this.#on(name, f) }
  /** @param {any} f */
  onConnect (f) { return this.#on('connect', f) }
  /** @param {any} f */
  onDisconnect (f) { return this.#on('disconnect', f) }
  /** @param {any} f */
  onGap (f) { return this.#on('gap', f) }
  /** @param {string} name @param {any} f */
  #on (name, f) {
    this.heard[name] = f
    return () => { delete this.heard[name] }
  }

  /** @param {...any} args */
  async emit (...args) { this.sent.push(args) }

  /** @param {string} id */
  peer (id) {
    return {
      emit: async (/** @type {any[]} */ ...args) => {
        if (!this.reachable.has(id)) throw Object.assign(new Error('no address'), { name: 'NotConnectedError' })
        this.sent.push([id, ...args])
      }
    }
  }

  reachable = new Set()
}

// The same table as in examples/chat/commands_test.go.
test('a slash begins a command, two say a line', () => {
  for (const [typed, want] of /** @type {const} */ ([
    ['hello', { kind: 'say', text: 'hello' }],
    [' /help', { kind: 'say', text: ' /help' }],
    ['//etc/hosts is a file', { kind: 'say', text: '/etc/hosts is a file' }],
    ['///', { kind: 'say', text: '//' }],
    ['/help', { kind: 'help' }],
    ['/msg alice  a secret ', { kind: 'msg', name: 'alice', text: 'a secret' }],
    ['/msg alice: x', { kind: 'msg', name: 'alice', text: 'x' }]
  ])) assert.deepEqual(parseLine(typed), want)
  for (const typed of ['/', '/etc/hosts is a file', '/message alice secret', '/MSG alice secret']) {
    assert.throws(() => parseLine(typed), /unknown command.*begin the line with \/\//)
  }
  for (const typed of ['/msg', '/msg alice', '/msg alice ']) assert.throws(() => parseLine(typed), /to whom and what/)
})

test('a line to one person is a direct event, and never a broadcast', async () => {
  const leaf = new FakeLeaf()
  const nothing = () => {}
  const chat = new Chat(/** @type {any} */ (leaf), 'me', { said: nothing, note: nothing, here: nothing, connected: nothing })
  leaf.connected = true
  leaf.reachable.add('id-alices')
  leaf.heard.hello('id-alices', { name: 'Alice' })
  leaf.heard.hello('id-bobbob', { name: 'Bob' })
  assert.equal(await chat.sendTo('alice', 'secret'), 'Alice')
  assert.equal(await chat.sendTo('alices', 'another'), 'Alice') // by the short id
  await assert.rejects(chat.sendTo('bob', 'secret'), /no connection to Bob: .* Say it to everybody, or use examples\/chat/)
  await assert.rejects(chat.sendTo('nobody', 'secret'), /nobody here is called nobody/)
  assert.deepEqual(leaf.sent, [['id-alices', 'tell', 'secret'], ['id-alices', 'tell', 'another']])
  await chat.close()
})

test('a chat keeps its list of people by hellos, byes and roll calls', async (t) => {
  t.mock.timers.enable({ apis: ['setTimeout', 'setInterval'] })
  let now = 0
  const tick = (/** @type {number} */ ms) => {
    now += ms
    t.mock.timers.tick(ms)
  }
  const leaf = new FakeLeaf()
  /** @type {any[]} */
  const seen = []
  const record = (/** @type {string} */ kind) => (/** @type {any[]} */ ...args) => { seen.push([kind, ...args]) }
  const drain = (/** @type {any[]} */ list) => list.splice(0)
  const chat = new Chat(/** @type {any} */ (leaf), 'me', { said: record('said'), note: record('note'), here: record('here'), connected: record('connected') }, () => { now += 0.001; return now })
  leaf.connected = true
  leaf.heard.connect()
  assert.deepEqual(drain(seen), [['here', []], ['connected', true]])
  assert.deepEqual(drain(leaf.sent), [['hello', { name: 'me', ask: true }]])

  leaf.heard.hello('id-alices', { name: 'alice' })
  assert.deepEqual(drain(seen), [['note', 'alice joined'], ['here', ['alice']]])
  leaf.heard.chat('id-alices', 'hi \u202e')
  leaf.heard.tell('id-alices', 'psst')
  assert.deepEqual(drain(seen), [['said', 'alice', 'hi '], ['said', 'alice → you', 'psst']])
  for (const bad of [undefined, null, 7, 'x', { name: 7 }]) leaf.heard.hello('id-alices', bad)
  leaf.heard.chat('id-alices', { no: 'text' })
  assert.deepEqual(drain(seen), [['said', 'alice', '']])

  // Several people who ask at once get one answer.
  for (const id of ['id-bbbbbb', 'id-cccccc', 'id-dddddd']) leaf.heard.hello(id, { ask: true })
  assert.deepEqual(drain(leaf.sent), [])
  tick(400)
  assert.deepEqual(drain(leaf.sent), [['hello', { name: 'me', ask: false }]])
  drain(seen)
  leaf.heard.bye('id-bbbbbb')
  assert.deepEqual(drain(seen), [['note', 'bbbbbb left'], ['here', ['alice', 'cccccc', 'dddddd']]])

  // A person who does not answer a roll call is gone. This page holds one if nobody else does.
  tick(60_000)
  drain(seen)
  assert.deepEqual(drain(leaf.sent).at(-1), ['hello', { name: 'me', ask: true }])
  leaf.heard.hello('id-alices', { name: 'alice', ask: true }) // the one who asks need not answer
  tick(5100)
  assert.deepEqual(drain(seen).at(-1), ['here', ['alice']])
  drain(leaf.sent)

  await chat.say('one line')
  assert.deepEqual(drain(leaf.sent), [['chat', 'one line']])
  leaf.connected = false
  leaf.heard.disconnect()
  assert.deepEqual(drain(seen), [['connected', false], ['here', []]])
  leaf.connected = true
  await chat.close(true)
  assert.deepEqual(drain(leaf.sent), [['bye', 'me']])
  assert.deepEqual(Object.keys(leaf.heard), [])
})
