// Leaves without a node: two that are connected, or one with a libp2p that the test controls.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { generateKeyPair } from '@libp2p/crypto/keys'
import { peerIdFromPrivateKey } from '@libp2p/peer-id'
import { tcp } from '@libp2p/tcp'
import { createNode } from '../src/libp2p.js'
import { join } from '../src/index.js'
import * as wire from './wire.js'

/** @import { TestContext } from 'node:test' */

/** @param {TestContext} t @param {Partial<import('../src/index.js').JoinOptions>} [options] */
async function newLeaf (t, options) {
  const libp2p = await createNode({ transports: [tcp()], listen: ['/ip4/127.0.0.1/tcp/0'] })
  const leaf = await join({ libp2p, onError: (err) => assert.fail(/** @type {Error} */ (err)), ...options })
  t.after(async () => {
    await leaf.close()
    await libp2p.stop()
  })
  return leaf
}

/** @param {TestContext} t @param {Partial<import('../src/index.js').JoinOptions>} [options] */
async function newPair (t, options) {
  const a = await newLeaf(t)
  const b = await newLeaf(t, options)
  const here = new Promise((resolve) => a.libp2p.addEventListener('peer:identify', resolve, { once: true }))
  await b.libp2p.dial(a.libp2p.getMultiaddrs())
  await here
  return [a, b]
}

test('direct events and calls, both ways, over one connection', async (t) => {
  const [a, b] = await newPair(t)
  for (const [from, to] of [[a, b], [b, a]]) {
    const got = /** @type {PromiseWithResolvers<unknown[]>} */ (Promise.withResolvers())
    to.peer(from.id).on('move', (...args) => got.resolve(args))
    await from.peer(to.id).emit('move', 10, { y: [null, 'ä'] }, Uint8Array.of(0, 255))
    assert.deepEqual(await got.promise, [from.id, 10, { y: [null, 'ä'] }, Uint8Array.of(0, 255)])
    const off = to.handle('double', (_, n) => 2 * n)
    assert.equal(await from.peer(to.id).call('double', 21), 42)
    off()
    await assert.rejects(from.peer(to.id).call('double', 21), wire.NoHandlerError)
    to.handle('fail', () => { throw new Error('ü'.repeat(1000)) })
    await assert.rejects(from.peer(to.id).call('fail'), (/** @type {Error} */ err) => err instanceof wire.RemoteError && err.message === 'ü'.repeat(512))
    to.handle('nothing', () => {})
    assert.equal(await from.peer(to.id).call('nothing'), undefined)
  }
})

test('events and calls of one peer are handled in turn', async (t) => {
  const [a, b] = await newPair(t)
  /** @type {number[]} */
  const got = []
  a.onDirect('n', async (_, n) => {
    await new Promise((resolve) => setTimeout(resolve, n % 3))
    got.push(n)
  })
  a.handle('got', () => got.length)
  const peer = b.peer(a.id)
  for (let n = 0; n < 100; n++) peer.emit('n', n)
  assert.equal(await peer.call('got'), 100)
  assert.deepEqual(got, Array.from({ length: 100 }, (_, n) => n))
})

test('a slow handler holds back its sender, and nothing is lost', async (t) => {
  const [a, b] = await newPair(t)
  let bytes = 0
  const go = /** @type {PromiseWithResolvers<void>} */ (Promise.withResolvers())
  a.onDirect('data', async (_, data) => {
    await go.promise
    bytes += data.length
  })
  a.handle('bytes', () => bytes)
  const data = new Uint8Array(400_000)
  const all = 120 // more than the windows and buffers on the way
  let sent = 0
  const done = (async () => {
    for (; sent < all; sent++) await b.peer(a.id).emit('data', data)
  })()
  await new Promise((resolve) => setTimeout(resolve, 300))
  assert.ok(sent < all, 'nothing held it back')
  go.resolve()
  await done
  assert.equal(await b.peer(a.id).call('bytes'), all * data.length)
})

test('an event that cannot be sent is an error', async (t) => {
  const [a, b] = await newPair(t)
  const peer = b.peer(a.id)
  await assert.rejects(peer.emit('*'), TypeError)
  await assert.rejects(peer.emit('x'.repeat(129)), TypeError)
  await assert.rejects(peer.emit('x', undefined), TypeError)
  await assert.rejects(peer.emit('x', new Uint8Array(512 << 10)), wire.TooLargeError)
  await assert.rejects(peer.emit('x', ...Array(65).fill(1)), wire.TooLargeError)
  await assert.rejects(b.emit('x'), wire.NotConnectedError)
  const nobody = peerIdFromPrivateKey(await generateKeyPair('Ed25519')).toString()
  await assert.rejects(b.peer(nobody).emit('x'), wire.NotConnectedError)
  await assert.rejects(b.peer(nobody).call('x'), wire.NotConnectedError)
  await b.close()
  await assert.rejects(peer.emit('x'), wire.ClosedError)
})

test('a call without an answer has an unknown outcome', async (t) => {
  const [a, b] = await newPair(t, { callTimeout: 200 })
  a.handle('never', () => new Promise(() => {}))
  await assert.rejects(b.peer(a.id).call('never'), wire.UnknownOutcomeError)
})

test('a peer of another network is not heard', async (t) => {
  const [a, b] = await newPair(t, { network: 'other' })
  a.onDirect('*', () => assert.fail('it was'))
  a.handle('x', () => assert.fail('it was'))
  await assert.rejects(b.peer(a.id).call('x'), wire.UnknownOutcomeError)
})

test('bad bytes end a stream, and nothing else', async (t) => {
  const [a, b] = await newPair(t)
  const hello = wire.encodeFrame(wire.encodeHello({ session: new Uint8Array(8), network: 'default', serial: 0n }))
  const bad = {
    nothing: [],
    'no frame': [Uint8Array.of(0x81, 0)],
    'no hello': [wire.encodeFrame(Uint8Array.of(255))],
    'a frame that is too large': [hello, Uint8Array.of(255, 255, 255, 127)],
    'an event without a name': [hello, wire.encodeFrame(wire.encodeDirect(new Uint8Array(0)))],
    'an answer': [hello, wire.encodeFrame(wire.encodeAnswer({ id: 1n }))]
  }
  for (const protocol of [wire.protocols.events, wire.protocols.repair]) {
    for (const [name, parts] of Object.entries(bad)) {
      const stream = await b.libp2p.dialProtocol(/** @type {any} */ (a.libp2p.peerId), protocol)
      const ended = new Promise((resolve) => stream.addEventListener('close', resolve))
      for (const p of parts) stream.send(p)
      if (name === 'nothing') await stream.close()
      if (protocol === wire.protocols.events) await ended // a stream of repair waits, because the peer may yet turn out to be a node
    }
  }
  a.handle('well', () => 'yes')
  assert.equal(await b.peer(a.id).call('well'), 'yes')
})

/** A libp2p in which the test makes up messages of pubsub, and a node. */
class FakeLibp2p extends EventTarget {
  services = { pubsub: Object.assign(new EventTarget(), { subscribe () {}, unsubscribe () {}, getSubscribers: () => this.peers }) }
  peerStore = { get: async () => ({ protocols: [wire.protocols.overlay] }) }
  /** @type {any[]} */
  peers = [] // on the topic
  /** @type {any[]} */
  connections = []
  /** @type {any[]} */
  hungUp = []

  /** @param {import('@libp2p/interface').PeerId} peerId */
  constructor (peerId) {
    super()
    this.peerId = peerId
  }

  async handle () {}
  async unhandle () {}
  getPeers () { return this.connections.map((c) => c.remotePeer) }
  getConnections () { return this.connections }
  /** @param {any} peer */
  async hangUp (peer) {
    this.hungUp.push(peer)
    this.connections = []
  }

  /** Adds a node that has announced the topic. @param {any} peer */
  addNode (peer) {
    const streams = [{ direction: 'outbound', status: 'open', writeStatus: 'writable', protocol: '/floodsub/1.0.0' }]
    this.peers = [peer]
    this.connections = [{ remotePeer: peer, status: 'open', streams, newStream: async () => { throw new Error('none') } }]
    this.services.pubsub.dispatchEvent(new CustomEvent('subscription-change', { detail: { peerId: peer } }))
  }

  /** Lets a message of pubsub arrive. @param {object} detail */
  message (detail) {
    this.services.pubsub.dispatchEvent(new CustomEvent('message', { detail: { type: 'signed', topic: 'smokesignal/default', sequenceNumber: 1n, ...detail } }))
  }
}

const newKey = async () => {
  const key = await generateKeyPair('Ed25519')
  return { key, id: peerIdFromPrivateKey(key) }
}

test('only the author speaks in its name', async (t) => {
  const [me, alice, mallory] = [await newKey(), await newKey(), await newKey()]
  const libp2p = new FakeLibp2p(me.id)
  /** @type {unknown[]} */
  const errors = []
  const leaf = await join({ libp2p: /** @type {any} */ (libp2p), onError: (err) => errors.push(err) })
  t.after(() => leaf.close())
  /** @type {unknown[][]} */
  const got = []
  leaf.on('chat', (...args) => {
    got.push(args)
    throw new Error('a handler that fails')
  })
  leaf.onRaw((...args) => { got.push(args) })
  const data = (/** @type {number} */ first, /** @type {string} */ text) => wire.encodeBatch({
    session: '0102030405060708', start: 1n, first: BigInt(first), events: [wire.encodeEvent({ name: 'chat', args: [wire.encodeArg(text)] })]
  })
  libp2p.message({ from: alice.id, key: mallory.key.publicKey, data: data(1, 'forged') }) // floodsub lets it through
  libp2p.message({ from: alice.id, type: 'unsigned', data: data(1, 'unsigned') })
  libp2p.message({ from: alice.id, key: alice.key.publicKey, topic: 'other', data: data(1, 'elsewhere') })
  libp2p.message({ from: me.id, key: me.key.publicKey, data: data(1, 'own') })
  libp2p.message({ from: alice.id, key: alice.key.publicKey, data: Uint8Array.of(1, 2, 3) })
  libp2p.message({ from: alice.id, key: alice.key.publicKey, data: data(1, 'hello') })
  libp2p.message({ from: alice.id, key: alice.key.publicKey, data: data(1, 'hello again') })
  libp2p.message({ from: alice.id, key: alice.key.publicKey, data: wire.encodeBatch({ session: '0102030405060708', start: 1n, first: 2n, events: [Uint8Array.of(255)] }) })
  libp2p.message({ from: alice.id, key: alice.key.publicKey, data: data(3, 'bye') })
  for (const end = performance.now() + 5000; got.length < 3 && performance.now() < end;) await new Promise((resolve) => setTimeout(resolve, 1))
  const id = alice.id.toString()
  assert.deepEqual(got, [[id, Uint8Array.of(1, 2, 3)], [id, 'hello'], [id, 'bye']])
  assert.equal(errors.length, 2)
  const { forged, raw, duplicates, malformed } = leaf.stats
  assert.deepEqual({ forged, raw, duplicates, malformed }, { forged: 2, raw: 1, duplicates: 1, malformed: 1 })
})

test('a message with many events leaves time for everything else', async (t) => {
  const [me, alice] = [await newKey(), await newKey()]
  const libp2p = new FakeLibp2p(me.id)
  const leaf = await join({ libp2p: /** @type {any} */ (libp2p) })
  t.after(() => leaf.close())
  let ticks = 0
  const timer = setInterval(() => { ticks++ }, 1)
  const { promise, resolve } = /** @type {PromiseWithResolvers<void>} */ (Promise.withResolvers())
  let handled = 0
  leaf.on('x', () => {
    for (const end = performance.now() + 2; performance.now() < end;);
    if (++handled === 100) resolve()
  })
  const event = wire.encodeEvent({ name: 'x', args: [] })
  libp2p.message({
    from: alice.id, key: alice.key.publicKey, data: wire.encodeBatch({ session: '0102030405060708', start: 1n, first: 1n, events: Array(100).fill(event) })
  })
  await promise
  clearInterval(timer)
  assert.ok(ticks >= 4, `${ticks} ticks`) // 10 if the timer is never late
})

test('many direct events that come at once leave time for everything else', async (t) => {
  const [a, b] = await newPair(t)
  let ticks = 0
  const timer = setInterval(() => { ticks++ }, 1)
  t.after(() => clearInterval(timer))
  const { promise, resolve } = /** @type {PromiseWithResolvers<number>} */ (Promise.withResolvers())
  let handled = 0
  let before = 0
  a.onDirect('x', () => {
    if (handled === 0) before = ticks
    for (const end = performance.now() + 2; performance.now() < end;);
    if (++handled === 100) resolve(ticks - before)
  })
  const stream = await b.libp2p.dialProtocol(/** @type {any} */ (a.libp2p.peerId), wire.protocols.events)
  const event = wire.encodeFrame(wire.encodeDirect(wire.encodeEvent({ name: 'x', args: [] })))
  const hello = wire.encodeFrame(wire.encodeHello({ session: new Uint8Array(8).fill(1), network: 'default', serial: 1n }))
  stream.send(wire.concat([hello, ...Array(100).fill(event)]))
  const passed = await promise
  assert.ok(passed >= 4, `${passed} ticks`) // 10 if the timer is never late
})

test('other peers and slow handlers cannot make a leaf grow without bound', async (t) => {
  const [me, alice, bob] = [await newKey(), await newKey(), await newKey()]
  const libp2p = new FakeLibp2p(me.id)
  const leaf = await join({ libp2p: /** @type {any} */ (libp2p) })
  t.after(() => leaf.close())
  const go = /** @type {PromiseWithResolvers<void>} */ (Promise.withResolvers())
  let raw = 0
  leaf.onRaw(() => {
    raw++
    return go.promise
  })
  let gaps = 0
  leaf.onGap(() => {
    gaps++
    return go.promise
  })
  for (let i = 0; i < 20_000; i++) libp2p.message({ from: alice.id, key: alice.key.publicKey, data: new Uint8Array(0) })
  assert.equal(leaf.size.queued, 16 << 20)
  assert.equal(leaf.stats.overrun, BigInt(20_000 - 16 * 1024))
  const events = [wire.encodeEvent({ name: 'x', args: [] })]
  for (let i = 1n; i <= 10_000n; i++) { // each a session, so that no two gaps are one
    libp2p.message({ from: bob.id, key: bob.key.publicKey, data: wire.encodeBatch({ session: '0102030405060708', start: i, first: 1n, events }) })
  }
  assert.ok(leaf.size.queued <= (16 << 20) + 4096 * 64, String(leaf.size.queued))
  go.resolve()
  for (const end = performance.now() + 5000; leaf.size.queued > 0 && performance.now() < end;) await new Promise((resolve) => setTimeout(resolve, 1))
  assert.deepEqual({ queued: leaf.size.queued, raw, gaps }, { queued: 0, raw: 16 * 1024, gaps: 4096 })
})

test('nothing is kept of peers that are gone', async (t) => {
  const a = await newLeaf(t)
  const nobody = (await newKey()).id.toString()
  assert.throws(() => a.peer(nobody).on('', () => {}), TypeError)
  const offs = [a.peer(nobody).on('x', () => {}), a.peer(nobody).on('*', () => {})]
  assert.equal(a.size.peers, 1)
  for (const off of offs) off()
  await assert.rejects(a.peer(nobody).emit('x'), wire.NotConnectedError)
  await assert.rejects(a.peer(nobody).call('x'), wire.NotConnectedError)
  assert.deepEqual(a.size, { peers: 0, lanes: 0, queued: 0 })
})

test('a leaf signs originals that can be opened', async () => {
  for (const type of /** @type {const} */ (['Ed25519', 'secp256k1', 'RSA'])) {
    const key = await generateKeyPair(/** @type {any} */ (type))
    const b = await wire.signOriginal(key, 'topic', Uint8Array.of(1, 2, 3))
    assert.deepEqual(await wire.openOriginal(b), { sender: peerIdFromPrivateKey(key).toString(), topic: 'topic', data: Uint8Array.of(1, 2, 3) })
    b[b.length - 1] ^= 1
    await assert.rejects(wire.openOriginal(b), wire.MalformedError)
  }
})

test('the sequence number of an original does not begin with a zero', async (t) => {
  const { key } = await newKey()
  t.mock.method(crypto, 'getRandomValues', (/** @type {Uint8Array} */ b) => b.fill(0))
  const seqno = [...wire.fields(await wire.signOriginal(key, 'topic', Uint8Array.of(1)))].find((f) => f.num === 3)?.bytes
  assert.deepEqual([...seqno ?? []], [1, 0, 0, 0, 0, 0, 0, 0])
})

test('the name of a network has at most 128 bytes', async () => {
  const libp2p = /** @type {any} */ (new FakeLibp2p((await newKey()).id))
  await assert.rejects(join({ libp2p, network: 'ä'.repeat(65) }), TypeError)
  await (await join({ libp2p, network: 'ä'.repeat(64) })).close()
})

test('a libp2p that is stopped under a leaf does no harm', async (t) => {
  const [a, b] = await newPair(t)
  await a.libp2p.stop()
  await assert.rejects(b.peer(a.id).call('x'))
  await a.close()
  await assert.rejects(a.emit('x'), wire.ClosedError)
})

test('a leaf that closes ends the streams of others', async (t) => {
  const [a, b] = await newPair(t)
  a.handle('x', () => {})
  await b.peer(a.id).call('x')
  b.libp2p.dialProtocol(/** @type {any} */ (a.libp2p.peerId), wire.protocols.repair).then((s) => s.send(Uint8Array.of(1))).catch(() => {}) // it may be ended by then
  const open = () => a.libp2p.getConnections().flatMap((c) => c.streams).filter((s) => s.protocol.startsWith('/smokesignal/')).length
  for (const end = performance.now() + 5000; open() < 2 && performance.now() < end;) await new Promise((resolve) => setTimeout(resolve, 5))
  assert.equal(open(), 2)
  await a.close()
  for (const end = performance.now() + 1000; open() > 0 && performance.now() < end;) await new Promise((resolve) => setTimeout(resolve, 5))
  assert.equal(open(), 0)
})

test('a leaf can be closed in its own callback', async (t) => {
  t.mock.timers.enable({ apis: ['setTimeout'] })
  const [me, node] = [await newKey(), await newKey()]
  const libp2p = new FakeLibp2p(me.id)
  const leaf = await join({ libp2p: /** @type {any} */ (libp2p) })
  let closed = false
  leaf.onConnect(async () => {
    await leaf.close()
    closed = true
  })
  libp2p.addNode(node.id)
  for (let i = 0; i < 100 && !closed; i++) {
    await settle()
    t.mock.timers.tick(100)
  }
  assert.ok(closed)
})

/** Waits until everything has happened that needs no time. */
const settle = () => new Promise((resolve) => setImmediate(resolve))

/** @type {Record<string, (libp2p: FakeLibp2p) => void>} */
const breaks = {
  'its stream': (libp2p) => { libp2p.peers = [] },
  'the stream to it, although it has opened its own again': (libp2p) => { libp2p.connections[0].streams[0].status = 'reset' }
}
for (const [name, fail] of Object.entries(breaks)) {
  test(`a node is given up, and its connection closed, when this breaks: ${name}`, async (t) => {
    t.mock.timers.enable({ apis: ['setTimeout'] })
    const [me, node] = [await newKey(), await newKey()]
    const libp2p = new FakeLibp2p(me.id)
    const leaf = await join({ libp2p: /** @type {any} */ (libp2p) })
    t.after(() => leaf.close())
    const pass = async (/** @type {number} */ ms) => {
      for (; ms > 0; ms -= 100) {
        t.mock.timers.tick(100)
        await settle()
      }
    }
    libp2p.addNode(node.id)
    await settle()
    await pass(20_000)
    assert.deepEqual(leaf.peers, [node.id.toString()])
    fail(libp2p) // which pubsub does not report
    await pass(5000)
    assert.equal(leaf.connected, false)
    assert.equal(libp2p.hungUp.length, 0)
    libp2p.services.pubsub.dispatchEvent(new CustomEvent('subscription-change', { detail: { peerId: node.id } }))
    await pass(10_000)
    assert.equal(leaf.connected, false)
    assert.equal(libp2p.hungUp.length, 1)
  })
}

test('a node that announces the topic before there is a stream to it is found', async (t) => {
  const [me, node] = [await newKey(), await newKey()]
  const libp2p = new FakeLibp2p(me.id)
  const leaf = await join({ libp2p: /** @type {any} */ (libp2p) })
  t.after(() => leaf.close())
  libp2p.addNode(node.id)
  libp2p.connections[0].streams[0].status = 'opening'
  await settle()
  libp2p.connections[0].streams[0].status = 'open'
  let asked = 0
  libp2p.connections[0].newStream = async () => { // for its marks
    asked++
    throw new Error('none')
  }
  for (const end = performance.now() + 2000; asked === 0 && performance.now() < end;) await new Promise((resolve) => setTimeout(resolve, 10))
  assert.ok(asked > 0)
})

test('two addresses of one node make one connection', async (t) => {
  const listen = ['/ip4/127.0.0.1/tcp/0', '/ip4/127.0.0.1/tcp/0']
  const node = await createNode({ transports: [tcp()], listen })
  t.after(() => node.stop())
  await node.handle(wire.protocols.overlay, () => {})
  const { pubsub } = /** @type {any} */ (node.services)
  pubsub.subscribe('smokesignal/default')
  let opened = 0
  node.addEventListener('connection:open', () => { opened++ })
  const addrs = node.getMultiaddrs().map((a) => a.toString().replace(/\/p2p\/.*/, ''))
  assert.equal(addrs.length, 2)
  const leaf = await newLeaf(t, { addrs })
  await leaf.ready()
  assert.equal(leaf.libp2p.getConnections().length, 1)
  assert.equal(opened, 2)
})
