import { limits, protocols } from './limits.js'
import { encodeRepair } from './marks.js'
import { repairTimeout, resetStream, writeFrame } from './streams.js'

/** @import { Stream } from '@libp2p/interface' */
/** @import { Context } from './context.js' */
/** @import { Mark } from './marks.js' */

const maxChanged = 4096 // senders whose marks wait to be sent
const maxMarksPerFrame = 400
const [minRetry, maxRetry] = [50, 5000] // ms

/**
 * Sends this leaf's marks to one node as they change, on one stream. The first frame on
 * each stream has all marks, and is this leaf's greeting.
 */
export class MarkSender {
  #context
  #id
  #marks
  /** @type {Set<string>} */
  #changed = new Set() // senders whose mark is to be sent
  /** @type {Set<string>} */
  #asks = new Set() // the senders among them whose mark the node is asked for
  /** @type {Stream | undefined} */
  #stream
  #sending = false
  #retry = minRetry
  #closed = false

  /**
   * @param {Context} context @param {string} id of the node
   * @param {{ all: (n: number) => Mark[], of: (sender: string) => Mark | undefined }} marks
   */
  constructor (context, id, marks) {
    this.#context = context
    this.#id = id
    this.#marks = marks
  }

  close () {
    this.#closed = true
    if (this.#stream !== undefined) resetStream(this.#stream, new Error('the node is gone'))
  }

  /** Sends the mark of a sender soon. @param {string} sender @param {{ ask?: boolean }} [options] with ask, asks for the node's mark */
  schedule (sender, { ask = false } = {}) {
    // The node accepts no data for long. It asks again for the marks that it did not get.
    if (this.#changed.size >= maxChanged && sender !== this.#context.id) return
    this.#changed.add(sender)
    if (ask) this.#asks.add(sender)
    this.send()
  }

  /** Sends everything that is scheduled, and the greeting if there is no stream yet. */
  async send () {
    if (this.#sending || this.#closed) return
    this.#sending = true
    await undefined // so that marks that change together travel together
    while (!this.#closed && !this.#context.closed && (this.#changed.size > 0 || this.#stream === undefined)) {
      try {
        if (this.#stream === undefined) {
          this.#stream = await this.#context.openStream(this.#id, protocols.repair, repairTimeout)
          this.#reopenAfter(this.#stream)
          await writeFrame(this.#stream, encodeRepair({ told: this.#marks.all(limits.marks) }), repairTimeout)
          continue
        }
        const marks = this.#nextMarks()
        if (marks.length > 0) await writeFrame(this.#stream, encodeRepair({ told: marks }), repairTimeout)
        this.#retry = minRetry
      } catch (err) {
        if (this.#stream !== undefined) resetStream(this.#stream, err)
        this.#stream = undefined // the next one begins with all marks
        await new Promise((resolve) => setTimeout(resolve, this.#retry))
        this.#retry = Math.min(2 * this.#retry, maxRetry)
      }
    }
    this.#sending = false
  }

  #nextMarks () {
    const marks = []
    for (const sender of [...this.#changed].slice(0, maxMarksPerFrame)) {
      const m = this.#marks.of(sender)
      this.#changed.delete(sender)
      const ask = this.#asks.delete(sender)
      if (m !== undefined) marks.push({ ...m, ask })
    }
    return marks
  }

  /** Opens another stream when this one ends. @param {Stream} stream */
  #reopenAfter (stream) {
    stream.addEventListener('close', () => {
      if (this.#stream !== stream) return
      this.#stream = undefined
      setTimeout(() => this.send(), this.#retry)
      this.#retry = Math.min(2 * this.#retry, maxRetry)
    })
  }
}
