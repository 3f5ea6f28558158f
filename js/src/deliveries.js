// The queue between the order of broadcasts and the handlers.

import { decodeEvent } from './events.js'
import { Callbacks, Handlers, maxBusy, yieldToOthers } from './handlers.js'
import { lostSize } from './order.js'

/** @import { Context } from './context.js' */
/** @import { Step } from './order.js' */
/** @typedef {{ raw: Uint8Array, size: number }} Raw a message on the topic that is not a batch */

const maxQueued = 16 << 20 // bytes of events and raw messages
const maxGaps = 1 << 20 // bytes that gaps may take beyond that
const maxGapsPerSender = 4096
const rawWeight = 1 << 10 // bytes that a raw message counts for in addition, as it may be empty

/** Calls the handlers of broadcasts: in order for one sender, side by side for several. */
export class Deliveries {
  #context
  /** @type {Map<string, Array<Step | Raw>>} */
  #queues = new Map() // by sender
  #queued = 0 // bytes

  /** @param {Context} context */
  constructor (context) {
    this.#context = context
    this.handlers = new Handlers(context.onError)
    this.gapCallbacks = new Callbacks(context.onError)
    this.rawCallbacks = new Callbacks(context.onError)
  }

  /** How many bytes wait for handlers. */
  get queued () { return this.#queued }

  /** @param {string} sender @param {Uint8Array} raw */
  addRaw (sender, raw) {
    if (this.rawCallbacks.size > 0) this.add(sender, { raw, size: raw.length + rawWeight })
  }

  /** @param {string} sender @param {Step | Raw} item */
  add (sender, item) {
    const { stats } = this.#context
    const full = this.#queued + item.size > maxQueued
    if (full) {
      // The handlers are too slow. They get a gap in place of the events.
      if ('raw' in item) {
        stats.overrun++
        return
      }
      if (item.events !== undefined) stats.overrun += item.to - item.from
      item = { ...item, events: undefined, size: lostSize }
    }
    const queue = this.#queues.get(sender)
    const last = queue?.at(-1)
    // Two adjoining gaps become one, unless the first is being reported already.
    if (!('raw' in item) && last !== undefined && last !== queue?.[0] && !('raw' in last) && last.events === undefined && item.events === undefined && last.session === item.session && last.to === item.from) {
      last.to = item.to
      return
    }
    // Gaps are limited too, and no sender may use up the space of all.
    if (full && ((queue?.length ?? 0) >= maxGapsPerSender || this.#queued + item.size > maxQueued + maxGaps)) return
    this.#queued += item.size
    if (queue !== undefined) {
      queue.push(item)
      return
    }
    this.#queues.set(sender, [item])
    this.#run(sender)
  }

  /** Calls the handlers for all that is queued for a sender. @param {string} sender */
  async #run (sender) {
    const queue = /** @type {Array<Step | Raw>} */ (this.#queues.get(sender))
    await undefined // handlers must not run on the stack of pubsub
    let since = performance.now()
    const yieldIfBusy = async () => {
      if (performance.now() - since <= maxBusy) return
      await yieldToOthers()
      since = performance.now()
    }
    for (; queue.length > 0; queue.shift()) {
      const item = queue[0]
      await yieldIfBusy()
      if (this.#context.closed) break
      if ('raw' in item) {
        await this.rawCallbacks.call(sender, item.raw)
      } else if (item.events === undefined) {
        await this.gapCallbacks.call({ sender, session: item.session, from: item.from, to: item.to })
      } else {
        for (const b of item.events) {
          await yieldIfBusy()
          if (this.#context.closed) break
          await this.#deliver(sender, b)
        }
      }
      this.#queued -= item.size
    }
    this.#queues.delete(sender)
  }

  /** @param {string} sender @param {Uint8Array} b an encoded event */
  async #deliver (sender, b) {
    let event
    try {
      event = decodeEvent(b)
    } catch {
      this.#context.stats.malformed++
      return
    }
    await this.handlers.call(sender, event)
  }
}
