// What a program with the package does with a node in Go (js/test/peer), in Node and in a
// browser.

import { NoHandlerError, join } from 'smokesignal-leaf'
import { createNode } from 'smokesignal-leaf/libp2p'

/** @param {string} addr of the node */
export async function run (addr) {
  const libp2p = await createNode()
  const leaf = await join({ libp2p, network: 'package', addrs: [addr] })
  const pong = () => /** @type {PromiseWithResolvers<string>} */ (Promise.withResolvers())
  const [broadcast, direct] = [pong(), pong()]
  leaf.on('pong', (from, text) => broadcast.resolve(text))
  leaf.onDirect('pong', (from, text) => direct.resolve(text))
  leaf.handle('question', (from, text) => `${text}!`)
  await leaf.ready({ signal: AbortSignal.timeout(20_000) })

  const [id] = leaf.peers
  const node = leaf.peer(id)
  await leaf.emit('ping', 'to everybody')
  await node.emit('ping', 'to one')
  const results = await Promise.all([broadcast.promise, direct.promise, node.call('ask back', 'well')])
  if (results.join(', ') !== 'to everybody, to one, well!') throw new Error(`the results are ${results}`)
  const error = await node.call('unknown').catch((err) => err)
  if (!(error instanceof NoHandlerError)) throw new Error(`a call without a handler: ${error}`)
  await leaf.close()
  await libp2p.stop()
}
