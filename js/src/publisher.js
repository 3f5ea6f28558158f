// The broadcasts of this leaf: what is emitted is gathered into batches, published, and kept
// for a while so that it can be repaired.

import { encodeBatch } from './batches.js'
import { ClosedError } from './errors.js'
import { limits } from './limits.js'
import { signOriginal } from './originals.js'
import { Window } from './window.js'

/** @import { Context } from './context.js' */
/** @import { Mark } from './marks.js' */
/** @import { Want } from './marks.js' */

const maxPending = 1 << 20 // bytes of events that wait for the window before emit waits
const maxBatch = 128 << 10 // bytes of a batch, unless a single event is larger
const eventOverhead = 6 // bytes that an event takes in a batch in addition
const keepBytes = 16 << 20
const keepTime = 60_000 // ms

export class Publisher {
  #context
  #onPublished
  /** @type {Uint8Array[]} */
  #pending = [] // encoded events
  #pendingBytes = 0
  /** @type {Array<{ event: Uint8Array, resolve: () => void, reject: (err: Error) => void }>} */
  #waiters = [] // calls of add that wait for space
  #publishing = false
  #next = 1n // the number of the next event that is published
  /** @type {Array<{ first: bigint, end: bigint, data: Uint8Array, at: number, signed?: Uint8Array }>} */
  #kept = []
  #keptBytes = 0
  window = new Window()

  /** @param {Context} context @param {() => void} onPublished called after batches were published */
  constructor (context, onPublished) {
    this.#context = context
    this.#onPublished = onPublished
  }

  /** Whether everything was published, and acknowledged by the nodes that are waited for. */
  get isIdle () { return this.#pending.length === 0 && !this.#publishing && this.window.isSettled }

  close () { for (const w of this.#waiters.splice(0)) w.reject(new ClosedError('smokesignal: closed')) }

  /** Queues an event, and waits while too much is queued. @param {Uint8Array} event */
  async add (event) {
    if (this.#waiters.length > 0 || (this.#pendingBytes > 0 && this.#pendingBytes + event.length > maxPending)) {
      await new Promise((resolve, reject) => { this.#waiters.push({ event, resolve: () => resolve(undefined), reject }) })
      return
    }
    this.#append(event)
    this.publish()
  }

  /** @param {Uint8Array} event */
  #append (event) {
    this.#pending.push(event)
    this.#pendingBytes += event.length
  }

  /** Publishes pending events, batch by batch, while the window has room. */
  async publish () {
    if (this.#publishing) return
    this.#publishing = true
    await undefined // so that events that are emitted together travel together
    while (this.#pending.length > 0 && this.window.hasRoom && !this.#context.closed) {
      const data = this.#nextBatch()
      try {
        await this.#context.pubsub.publish(this.#context.topic, data)
      } catch {} // no node is there: the batch is kept, and nodes ask for it later
    }
    this.#publishing = false
    this.#onPublished()
  }

  #nextBatch () {
    let n = 0
    for (let size = 0; n < this.#pending.length && n < limits.batchEvents; n++) {
      size += this.#pending[n].length + eventOverhead
      if (n > 0 && size > maxBatch) break
    }
    const events = this.#pending.splice(0, n)
    for (const e of events) this.#pendingBytes -= e.length
    while (this.#waiters.length > 0 && this.#pendingBytes + this.#waiters[0].event.length <= maxPending) {
      const w = /** @type {{ event: Uint8Array, resolve: () => void }} */ (this.#waiters.shift())
      this.#append(w.event)
      w.resolve()
    }
    const first = this.#next
    const end = first + BigInt(n)
    const data = encodeBatch({ ...this.#context.session, first, events })
    const now = performance.now()
    this.#next = end
    this.#kept.push({ first, end, data, at: now })
    this.#keptBytes += data.length
    this.#expire()
    this.window.published(now, end, data.length)
    return data
  }

  #expire () {
    const now = performance.now()
    while (this.#kept.length > 0 && (this.#keptBytes > keepBytes || now - this.#kept[0].at > keepTime)) {
      this.#keptBytes -= /** @type {{ data: Uint8Array }} */ (this.#kept.shift()).data.length
    }
  }

  /** This leaf's mark of itself. @returns {Mark} */
  get mark () {
    this.#expire()
    const next = this.#next
    return { sender: this.#context.id, ...this.#context.session, next, above: next, begin: 1n, floor: this.#kept[0]?.first ?? 0n, withheld: 0n, ask: false }
  }

  /** Yields the originals that have events of a want, in ascending order. @param {Want} want */
  async * originals (want) {
    const { privateKey, topic } = this.#context
    if (privateKey === undefined) return // without the key nothing can be signed again
    this.#expire()
    let size = 0
    for (const o of this.#kept.filter((o) => o.end > want.from && o.first < want.to)) {
      o.signed ??= await signOriginal(privateKey, topic, o.data)
      if (size > 0 && size + o.signed.length > limits.answerBytes) break
      size += o.signed.length
      yield o.signed
    }
  }
}
