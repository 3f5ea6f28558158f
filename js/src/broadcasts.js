// Broadcasts: it connects order, window, marks and repair with pubsub and the nodes
// (docs/wire.md, A leaf).

import { peerIdFromPublicKey } from '@libp2p/peer-id'
import { compareSessions, decodeBatch } from './batches.js'
import { Deliveries } from './deliveries.js'
import { NotConnectedError, malformed } from './errors.js'
import { limits, protocols } from './limits.js'
import { Liveness } from './liveness.js'
import { decodeRepair, encodeRepair } from './marks.js'
import { MarkSender } from './marksender.js'
import { Order } from './order.js'
import { openOriginal } from './originals.js'
import { Publisher } from './publisher.js'
import { StreamReader, repairTimeout, resetStream, writeFrame } from './streams.js'

/** @import { PeerId } from '@libp2p/interface' */
/** @import { Stream } from '@libp2p/interface' */
/** @import { Context } from './context.js' */
/** @import { Mark } from './marks.js' */
/** @import { Want } from './marks.js' */
/** @import { Ask } from './order.js' */

// How long a node on the topic may take to greet, before it is used without repair, in ms.
const greetTimeout = 5000
const maxRepairStreams = 8 // of one node

/**
 * A node on the topic.
 * @typedef {object} BroadcastNode
 * @property {string} id
 * @property {boolean} greeted it takes part in marks and repair
 * @property {MarkSender} marks
 * @property {number} streams that it has opened
 * @property {ReturnType<typeof setTimeout>} timer
 */

/**
 * What broadcasts report about nodes.
 * @typedef {object} NodeEvents
 * @property {(id: string) => void} ready the node has greeted, or was waited for long enough
 * @property {(id: string) => void} dead the node does not answer
 */

export class Broadcasts {
  #context
  #events
  /** @type {Map<string, BroadcastNode>} */
  #nodes = new Map()
  #order = new Order()
  #liveness = new Liveness()
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer

  /** @param {Context} context @param {NodeEvents} events */
  constructor (context, events) {
    this.#context = context
    this.#events = events
    this.deliveries = new Deliveries(context)
    this.publisher = new Publisher(context, () => this.#advance())
  }

  close () {
    clearTimeout(this.#timer)
    this.publisher.close()
  }

  /** Adds a node on the topic, and greets it. @param {string} id */
  addNode (id) {
    const { publisher } = this
    const now = performance.now()
    const marks = new MarkSender(this.#context, id, {
      all: (n) => [publisher.mark, ...this.#order.marks(n - 1)],
      of: (sender) => this.#mark(sender)
    })
    const timer = setTimeout(() => {
      // It is a node that has greeted 16 leaves already. Nothing may wait for it.
      publisher.window.removeNode(id)
      this.#order.muteNode(id)
      this.#events.ready(id)
      publisher.publish()
    }, greetTimeout)
    this.#nodes.set(id, { id, greeted: false, marks, streams: 0, timer })
    this.#order.addNode(id)
    publisher.window.addNode(now, id)
    marks.send()
    this.#advance()
  }

  /** @param {string} id */
  removeNode (id) {
    const node = this.#nodes.get(id)
    if (node === undefined) return
    this.#nodes.delete(id)
    clearTimeout(node.timer)
    node.marks.close()
    this.#order.removeNode(id)
    this.#liveness.removeNode(id)
    this.publisher.window.removeNode(id)
    this.#advance()
    this.publisher.publish()
  }

  /** Records that data arrived from a node. @param {string} id */
  heard (id) { this.#liveness.heard(performance.now(), id) }

  /** @param {string} sender */
  #mark (sender) { return sender === this.#context.id ? this.publisher.mark : this.#order.mark(sender) }

  /** @param {any} msg a message of pubsub, whose signature was checked against its key */
  receive (msg) {
    const context = this.#context
    if (msg.topic !== context.topic) return
    // Floodsub does not check that the key is the author's, so anybody could speak in
    // another peer's name.
    if (msg.type !== 'signed' || msg.from === undefined || (msg.key !== undefined && !peerIdFromPublicKey(msg.key).equals(msg.from))) {
      context.stats.forged++
      return
    }
    const sender = msg.from.toString()
    if (sender === context.id) return
    let batch
    try {
      batch = decodeBatch(msg.data)
    } catch {
      context.stats.raw++
      this.deliveries.addRaw(sender, msg.data)
      return
    }
    if (this.#order.receiveBatch(performance.now(), sender, batch) !== 'new') context.stats.duplicates++
    for (const node of this.#nodes.values()) node.marks.schedule(sender)
    this.#advance()
  }

  /** Carries out everything that is due, and sets the timer for the next time. */
  #advance () {
    if (this.#context.closed) return
    clearTimeout(this.#timer)
    const now = performance.now()
    const { steps, asks, next: orderNext } = this.#order.advance(now)
    for (const s of steps) {
      if (s.events === undefined) this.#context.stats.lost += s.to - s.from
      this.deliveries.add(s.sender, s)
      for (const node of this.#nodes.values()) node.marks.schedule(s.sender)
    }
    for (const a of asks) this.#fetch(a)
    const { nudge, next: windowNext } = this.publisher.window.advance(now)
    const { probe, dead, next: livenessNext } = this.#liveness.advance(now)
    // A node answers a mark with `ask` with its own mark, also if nothing has changed.
    for (const id of new Set([...nudge, ...probe])) this.#nodes.get(id)?.marks.schedule(this.#context.id, { ask: true })
    const next = Math.min(orderNext, windowNext, livenessNext)
    if (next < Infinity) this.#timer = setTimeout(() => { this.#advance(); this.publisher.publish() }, Math.max(1, next - now))
    for (const id of dead) this.#events.dead(id)
  }

  /** Asks a node for missing events. @param {Ask} ask */
  async #fetch (ask) {
    /** @type {'got' | 'nothing' | 'failed'} */
    let answer = 'nothing'
    let stream
    try {
      stream = await this.#context.openStream(ask.node, protocols.repair, repairTimeout)
      await writeFrame(stream, encodeRepair({ want: { ...ask, passOn: true } }), repairTimeout)
      const reader = new StreamReader(stream, limits.answerBytes + limits.envelope, repairTimeout)
      for (let size = 0, ended = false; !ended;) {
        const b = await reader.next(repairTimeout)
        if (b === undefined) malformed('an answer without an end')
        this.heard(ask.node)
        const { original, end } = decodeRepair(/** @type {Uint8Array} */ (b))
        if (original !== undefined) {
          size += original.length
          if (size > 2 * limits.answerBytes) malformed('an answer that is too large')
          await this.#receiveOriginal(ask, original)
          answer = 'got'
        } else if (end !== undefined) {
          ended = true
          if (this.#nodes.has(ask.node)) this.#receiveMarks(ask.node, end, false)
        }
      }
      stream.close().catch(() => {})
    } catch (err) {
      answer = 'failed'
      if (stream !== undefined) resetStream(stream, err)
    }
    this.#order.finishAsk(performance.now(), ask, answer)
    this.#advance()
  }

  /** @param {Ask} ask @param {Uint8Array} original */
  async #receiveOriginal (ask, original) {
    const { sender, topic, data } = await openOriginal(original)
    if (sender !== ask.sender || topic !== this.#context.topic) malformed('an original of another sender or topic')
    const batch = decodeBatch(data)
    const end = batch.first + BigInt(batch.events.length)
    if (compareSessions(batch, ask) !== 0 || end <= ask.from || batch.first >= ask.to) malformed('an original that was not asked for')
    this.#context.stats.repaired++
    this.#order.receiveBatch(performance.now(), ask.sender, batch)
  }

  /** Reads the marks and wants of a node on a stream that it has opened. @param {Stream} stream @param {PeerId} peer */
  async serve (stream, peer) {
    const id = peer.toString()
    /** @type {BroadcastNode | undefined} */
    let node
    try {
      const reader = new StreamReader(stream, limits.marksBytes + limits.envelope, repairTimeout)
      node = await this.#awaitNode(id)
      if (node.streams === maxRepairStreams) malformed('too many streams') // each has a buffer
      node.streams++
      for (let first = true, b; (b = await reader.next()) !== undefined; first = false) {
        this.heard(id)
        const { told, want } = decodeRepair(b)
        if (told !== undefined) this.#handleMarks(node, told, first)
        if (want !== undefined) await this.#answerWant(stream, want)
      }
      await stream.close()
    } catch (err) {
      resetStream(stream, err)
    } finally {
      if (node !== undefined) node.streams--
    }
  }

  /** Waits until a peer is a node on the topic: its stream may overtake its announcement. @param {string} id */
  async #awaitNode (id) {
    const end = performance.now() + repairTimeout
    for (;;) {
      const node = this.#nodes.get(id)
      if (node !== undefined) return node
      this.#context.checkOpen()
      if (performance.now() > end) throw new NotConnectedError('smokesignal: the peer is not a node on the topic')
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
  }

  /** @param {BroadcastNode} node @param {Mark[]} marks @param {boolean} greeting */
  #handleMarks (node, marks, greeting) {
    const now = performance.now()
    const self = this.#context.id
    const { window } = this.publisher
    if (this.#nodes.get(node.id) !== node) return // it is gone, or was added anew
    for (const m of marks) {
      // What the node withholds is missing behind it, so it does not count as acknowledged.
      if (m.sender === self && compareSessions(m, this.#context.session) === 0) window.acknowledged(now, node.id, m.next - m.withheld)
    }
    this.#receiveMarks(node.id, marks, greeting)
    for (const m of marks) if (m.ask && this.#mark(m.sender) !== undefined) node.marks.schedule(m.sender)
    if (greeting && !node.greeted) {
      node.greeted = true
      clearTimeout(node.timer)
      if (!window.hasNode(node.id)) window.addNode(now, node.id) // it greeted after greetTimeout
      this.#liveness.addNode(now, node.id)
      this.#events.ready(node.id)
    }
    this.#advance()
    this.publisher.publish()
  }

  /** @param {string} node @param {Mark[]} marks @param {boolean} greeting */
  #receiveMarks (node, marks, greeting) {
    this.#order.receiveMarks(performance.now(), node, marks.filter((m) => m.sender !== this.#context.id), greeting)
  }

  /** Writes the originals that are kept here of a node's want. @param {Stream} stream @param {Want} want */
  async #answerWant (stream, want) {
    if (want.sender === this.#context.id && compareSessions(want, this.#context.session) === 0) {
      for await (const original of this.publisher.originals(want)) await writeFrame(stream, encodeRepair({ original }), repairTimeout)
    }
    const mark = this.#mark(want.sender)
    await writeFrame(stream, encodeRepair({ end: mark === undefined ? [] : [mark] }), repairTimeout)
  }
}
