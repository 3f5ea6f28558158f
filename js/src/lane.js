// Direct events and calls from this leaf to one peer.

import { encodeDirect, encodeHello, decodeAnswer, statuses } from './direct.js'
import { BadArgumentError, NoHandlerError, NotConnectedError, RemoteError, StalledError, TooLargeError, UnknownOutcomeError, malformed } from './errors.js'
import { decodeArg, decodeEvent } from './events.js'
import { limits, protocols } from './limits.js'
import { unhex } from './protobuf.js'
import { StreamReader, asError, frameTimeout, resetStream, stallTimeout, writeFrame } from './streams.js'

/** @import { Stream } from '@libp2p/interface' */
/** @import { Context } from './context.js' */
/** @import { Answer } from './direct.js' */

/** The streams and the calls of a session are numbered. */
export class Counters {
  stream = 0n
  call = 0n
}

/** @typedef {{ name: string, resolve: (results: unknown[]) => void, reject: (err: Error) => void }} PendingCall */

const maxQueued = 4 << 20 // bytes

/**
 * Sends events and calls to one peer, in order, on one long stream that is opened when it is
 * needed. When the stream breaks, nothing that was written to it is written again.
 */
export class Lane {
  #context
  #counters
  #onIdle
  /** @type {Stream | undefined} */
  #stream
  /** @type {Map<bigint, PendingCall>} */
  #calls = new Map()
  #lastWrite = Promise.resolve()
  #queued = 0 // bytes
  #lastCall = 0n // the highest id that was written

  /** @param {Context} context @param {Counters} counters @param {string} id @param {(lane: Lane) => void} onIdle */
  constructor (context, counters, id, onIdle) {
    this.#context = context
    this.#counters = counters
    this.#onIdle = onIdle
    this.id = id
  }

  get idle () { return this.#stream === undefined && this.#calls.size === 0 && this.#queued === 0 }

  /**
   * Writes an event, or a call, after all those before it.
   * @param {Uint8Array} event @param {PendingCall} [call]
   */
  async send (event, call) {
    if (this.#queued > 0 && this.#queued + event.length > maxQueued) throw new TooLargeError('smokesignal: too many bytes are queued for this peer; await earlier calls of emit')
    this.#queued += event.length
    const done = this.#lastWrite.then(() => this.#write(event, call)).finally(() => {
      this.#queued -= event.length
      this.#onIdle(this) // the stream may have failed to open
    })
    this.#lastWrite = done.then(() => {}, () => {})
    return done
  }

  /** @param {Uint8Array} event @param {PendingCall} [call] */
  async #write (event, call) {
    this.#context.checkOpen()
    const stream = this.#stream ?? await this.#openStream()
    let id
    if (call !== undefined) {
      id = ++this.#counters.call // here, because ids must rise in the order of the writes
      this.#lastCall = id
      this.#calls.set(id, call)
    }
    try {
      await writeFrame(stream, encodeDirect(event, id))
    } catch (err) {
      resetStream(stream, err)
      if (call !== undefined) return // its outcome is unknown; the reader of the stream rejects it
      throw err instanceof StalledError ? err : new NotConnectedError(`smokesignal: the stream to ${this.id} broke: ${asError(err).message}`)
    }
  }

  async #openStream () {
    let stream
    try {
      stream = await this.#context.openStream(this.id, protocols.events, stallTimeout)
    } catch (err) {
      throw new NotConnectedError(`smokesignal: cannot reach ${this.id}: ${asError(err).message}`)
    }
    this.#stream = stream
    this.#readAnswers(stream)
    const { session, network } = this.#context
    await writeFrame(stream, encodeHello({ session: unhex(session.session), network, serial: ++this.#counters.stream }))
    return stream
  }

  /** Reads the answers on a stream until it ends. @param {Stream} stream */
  async #readAnswers (stream) {
    /** @type {unknown} */
    let reason = new Error('the stream ended')
    try {
      const reader = new StreamReader(stream, limits.event + limits.envelope, frameTimeout)
      for (let b; (b = await reader.next()) !== undefined;) {
        const answer = decodeAnswer(b)
        if (answer !== undefined) this.#handleAnswer(answer)
      }
    } catch (err) {
      reason = err
    }
    resetStream(stream, reason)
    if (this.#stream === stream) this.#stream = undefined
    for (const [id, call] of this.#calls) {
      this.#calls.delete(id)
      call.reject(new UnknownOutcomeError(`smokesignal: call ${call.name}: ${asError(reason).message}`))
    }
    this.#onIdle(this)
  }

  /** @param {Answer} answer */
  #handleAnswer ({ id, status, event, error }) {
    if (id > this.#lastCall) malformed('an answer to a call that was not sent')
    const call = this.#calls.get(id)
    if (call === undefined) return // the caller has stopped waiting
    const text = `smokesignal: call ${call.name}: `
    switch (Number(status)) {
      case statuses.done: {
        const { name, args } = decodeEvent(event)
        if (name !== call.name) malformed('an answer with another name')
        call.resolve(args.map(decodeArg))
        break
      }
      case statuses.failed:
        call.reject(new RemoteError(error))
        break
      case statuses.noHandler:
        call.reject(new NoHandlerError(text + 'the peer has no handler'))
        break
      case statuses.badArgument:
        call.reject(new BadArgumentError(text + error))
        break
      default:
        call.reject(new UnknownOutcomeError(text + `the peer answered with status ${status}`))
    }
    this.#calls.delete(id)
  }

  /** Removes a call that nobody waits for any more. @param {PendingCall} call */
  removeCall (call) {
    for (const [id, c] of this.#calls) if (c === call) this.#calls.delete(id)
  }

  close () {
    if (this.#stream !== undefined) this.#stream.close().catch(() => {})
  }
}
