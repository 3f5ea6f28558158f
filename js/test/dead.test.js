// A leaf and nodes that speak what a leaf needs of them, over TCP. The pings of libp2p are
// off, so the leaf has to notice by itself that a node is dead.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { tcp } from '@libp2p/tcp'
import { join } from '../src/index.js'
import { createNode } from '../src/libp2p.js'
import * as wire from './wire.js'

/** @import { Stream } from '@libp2p/interface' */
/** @import { TestContext } from 'node:test' */
/** @import { Mark } from '../src/marks.js' */

const [leafFrame, session] = [wire.limits.marksBytes + wire.limits.envelope, { session: '0102030405060708', start: 1n }]

/**
 * Starts a node that greets its leaf. If it is alive, it answers marks with `ask`.
 * @param {TestContext} t @param {{ alive: boolean }} options
 */
async function startNode (t, { alive }) {
  const libp2p = await createNode({ transports: [tcp()], listen: ['/ip4/127.0.0.1/tcp/0'] })
  t.after(() => libp2p.stop())
  let greetings = 0
  let asks = 0
  await libp2p.handle(wire.protocols.overlay, () => {})
  await libp2p.handle(wire.protocols.repair, async (stream, connection) => {
    greetings++
    const frames = new wire.FrameReader(leafFrame)
    const out = await connection.newStream(wire.protocols.repair)
    /** @param {Mark[]} marks */
    const send = (marks) => out.send(wire.encodeFrame(wire.encodeRepair({ told: marks })))
    const id = libp2p.peerId.toString()
    send([{ sender: id, ...session, next: 1n, above: 1n, begin: 1n, floor: 0n, withheld: 0n, ask: false }])
    stream.addEventListener('message', (evt) => {
      frames.push(evt.data.subarray())
      for (let f; (f = frames.next()) !== undefined;) {
        for (const m of wire.decodeRepair(f).told ?? []) {
          if (!m.ask) continue
          asks++
          if (alive) send([{ ...m, ask: false }])
        }
      }
    })
  })
  ;/** @type {any} */ (libp2p.services).pubsub.subscribe('smokesignal/default')
  return { addrs: libp2p.getMultiaddrs().map(String), greetings: () => greetings, asks: () => asks }
}

/** @param {TestContext} t @param {string[]} addrs */
async function startLeaf (t, addrs) {
  const libp2p = await createNode({ transports: [tcp()] })
  ;/** @type {any} */ (libp2p).components.connectionMonitor.stop()
  const leaf = await join({ libp2p, addrs })
  t.after(async () => {
    await leaf.close()
    await libp2p.stop()
  })
  return leaf
}

test('of nodes that say nothing, one that answers is kept and one that does not is given up', { timeout: 60_000 }, async (t) => {
  const [living, dead] = [await startNode(t, { alive: true }), await startNode(t, { alive: false })]
  const [a, b] = [await startLeaf(t, living.addrs), await startLeaf(t, dead.addrs)]
  const losses = { a: 0, b: 0 }
  a.onDisconnect(() => { losses.a++ })
  const lost = new Promise((resolve) => b.onDisconnect(() => resolve(performance.now())))
  await Promise.all([a.ready(), b.ready()])
  const began = performance.now()
  const took = Number(await lost) - began
  assert.ok(took > 9000 && took < 12_000, `given up after ${took} ms`)
  await b.ready() // it has dialed again
  assert.equal(dead.greetings(), 2)
  assert.deepEqual(losses, { a: 0, b: 0 })
  assert.ok(a.connected && living.asks() >= 2, `${living.asks()} asks`)
})
