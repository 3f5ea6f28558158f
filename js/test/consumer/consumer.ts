// A program in TypeScript that uses each entry and each type of the package.

import { formatTicket, join, parseTicket, RemoteError, Undecodable } from 'smokesignal-leaf'
import type { Gap, Handler, JoinOptions, Leaf, Peer, Ticket } from 'smokesignal-leaf'
import { createNode } from 'smokesignal-leaf/libp2p'

export async function main (text: string): Promise<void> {
  const ticket: Ticket = parseTicket(text)
  const options: JoinOptions = { libp2p: await createNode(), ticket: formatTicket(ticket), onError: (err: unknown) => console.error(err) }
  const leaf: Leaf = await join(options)
  const handler: Handler = (from: string, value: unknown) => {
    if (value instanceof Undecodable) console.log(from, value.codec, value.data.length)
  }
  const remove: () => void = leaf.on('chat', handler)
  leaf.onGap((gap: Gap) => console.log(gap.sender, gap.to - gap.from))
  await leaf.ready({ signal: AbortSignal.timeout(1000) })
  const peer: Peer = leaf.peer(leaf.peers[0] ?? ticket.id)
  try {
    const sum: number = await peer.call('sum', 1, 2)
    await leaf.emit('chat', sum)
  } catch (err) {
    if (err instanceof RemoteError) console.log(err.message)
  }
  remove()
  // @ts-expect-error: an event has a name
  await leaf.emit(7)
  await leaf.close()
}
