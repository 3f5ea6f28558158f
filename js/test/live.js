// A leaf for the test in Go (integration_test/js_test.go).
//
//	node test/live.js '{"addrs": ["/ip4/127.0.0.1/tcp/4001/p2p/..."], "network": "default", "pubsub": "floodsub"}'
//
// It prints "ready" and its id, and ends when its standard input ends.

import { gossipsub } from '@libp2p/gossipsub'
import { floodsub } from '@libp2p/floodsub'
import { tcp } from '@libp2p/tcp'
import { webRTCDirect } from '@libp2p/webrtc'
import { createNode } from '../src/libp2p.js'
import { join } from '../src/index.js'

const { addrs, ticket, network, pubsub, noMonitor } = JSON.parse(process.argv[2])
const libp2p = await createNode({ transports: [tcp(), webRTCDirect()], pubsub: pubsub === 'gossipsub' ? gossipsub() : floodsub() })
if (noMonitor) /** @type {any} */ (libp2p).components.connectionMonitor.stop() // libp2p's own pings
const node = await join({
  libp2p, network, addrs, ticket, onError: (err) => { console.error(err); process.exit(1) }
})

// Events are sent back the way they came.
node.on('ping', (from, id, data) => node.emit('pong', id, data))
node.onDirect('ping', (from, id, data) => node.peer(from).emit('pong', id, data))
node.handle('echo', (from, data) => data)
node.handle('fail', () => { throw new Error('as it was told') })
node.handle('ask', (from, data) => node.peer(from).call('echo', data))
node.handle('ask nobody', async (from) => {
  try {
    await node.peer(from).call('nothing')
  } catch (err) {
    return /** @type {Error} */ (err).name
  }
})

// Counts events, and those that came out of order.
let next = 0
let wrong = 0
let lost = 0n
node.on('count', (from, n) => { if (n !== next++) wrong++ })
node.onGap(({ from, to }) => { lost += to - from })
node.handle('counted', () => ({ next, wrong, lost: Number(lost), repaired: node.stats.repaired }))
node.handle('burst', async (from, n) => { for (let i = 0; i < n; i++) await node.emit('tally', i) })
node.handle('burst slowly', (from, n) => {
  let i = 0
  const timer = setInterval(() => {
    for (let end = i + 10; i < end && i < n; i++) node.emit('tally', i)
    if (i === n) clearInterval(timer)
  }, 10)
})

// Another topic, directly through pubsub.
const topic = 'raw topic'
/** @type {any} */
const ps = libp2p.services.pubsub
ps.subscribe(topic)
ps.addEventListener('message', (/** @type {any} */ { detail: { topic: t, data } }) => {
  if (t === topic && data[0] !== 0x40) ps.publish(topic, Uint8Array.of(0x40, ...data)).catch(() => {})
})

node.onDisconnect(() => { console.log('disconnected') })
node.onConnect(() => { console.log('connected') })
await node.ready()
console.log('ready', node.id)
process.stdin.resume()
process.stdin.on('end', async () => {
  await node.close()
  await libp2p.stop()
  process.exit(0)
})
