// Direct events and calls, from peers and to peers.

import { decodeDirect, decodeHello, encodeAnswer, statuses } from './direct.js'
import { NotConnectedError, Undecodable, UnknownOutcomeError, malformed } from './errors.js'
import { checkName, decodeArg, newEvent } from './events.js'
import { Handlers } from './handlers.js'
import { Counters, Lane } from './lane.js'
import { limits } from './limits.js'
import { hexOf } from './protobuf.js'
import { StreamReader, asError, frameTimeout, resetStream, writeFrame } from './streams.js'

/** @import { PeerId } from '@libp2p/interface' */
/** @import { Stream } from '@libp2p/interface' */
/** @import { Context } from './context.js' */
/** @import { Event } from './events.js' */
/** @import { Handler } from './handlers.js' */

const helloTimeout = 5000 // ms
const retireTimeout = 1000 // ms that an old stream may still be silent when a newer one is there
const maxStreams = 4 // of one peer
const maxSenders = 1024 // of which the state is remembered although they have no stream

/**
 * The streams that a peer has opened. They are read one after the other, in the order of
 * their serial numbers, so that events keep their order when a peer opens a new stream.
 * @typedef {object} DirectSender
 * @property {number} streams
 * @property {{ session: string, serial: bigint, done: Promise<void>, retire: () => void } | undefined} newest
 * @property {string} session of the last call
 * @property {bigint} call the id of the last call; one with a lower id has run already
 */

export class Directs {
  #context
  #counters = new Counters()
  /** @type {Map<string, Lane>} */
  #lanes = new Map()
  #handlers
  /** @type {Map<string, Handlers>} */
  #handlersByPeer = new Map()
  /** @type {Map<string, Handler>} */
  #callHandlers = new Map()
  /** @type {Map<string, DirectSender>} */
  #senders = new Map()

  /** @param {Context} context */
  constructor (context) {
    this.#context = context
    this.#handlers = new Handlers(context.onError)
  }

  get size () { return { peers: this.#handlersByPeer.size, lanes: this.#lanes.size } }

  close () { for (const lane of this.#lanes.values()) lane.close() }

  /** @param {string} name @param {Handler} f */
  on (name, f) { return this.#handlers.on(name, f) }

  /** @param {string} id @param {string} name @param {Handler} f */
  onPeer (id, name, f) {
    const handlers = this.#handlersByPeer.get(id) ?? new Handlers(this.#context.onError)
    const remove = handlers.on(name, f)
    this.#handlersByPeer.set(id, handlers)
    return () => {
      remove()
      if (handlers.empty && this.#handlersByPeer.get(id) === handlers) this.#handlersByPeer.delete(id)
    }
  }

  /** @param {string} name @param {Handler} f */
  handle (name, f) {
    checkName(name)
    this.#callHandlers.set(name, f)
    return () => { if (this.#callHandlers.get(name) === f) this.#callHandlers.delete(name) }
  }

  /** @param {string} id */
  #lane (id) {
    let lane = this.#lanes.get(id)
    if (lane === undefined) {
      lane = new Lane(this.#context, this.#counters, id, (lane) => {
        if (lane.idle && this.#lanes.get(id) === lane) this.#lanes.delete(id)
      })
      this.#lanes.set(id, lane)
    }
    return lane
  }

  /** @param {string} id @param {string} name @param {unknown[]} args */
  async emit (id, name, args) { await this.#lane(id).send(newEvent(name, args)) }

  /** @param {string} id @param {string} name @param {unknown[]} args @param {number} timeout ms */
  async call (id, name, args, timeout) {
    const event = newEvent(name, args)
    const lane = this.#lane(id)
    const { promise, resolve, reject } = /** @type {PromiseWithResolvers<unknown[]>} */ (Promise.withResolvers())
    const call = { name, resolve, reject }
    const timer = setTimeout(() => {
      lane.removeCall(call)
      reject(new UnknownOutcomeError(`smokesignal: call ${name}: no answer in time`))
    }, timeout)
    try {
      lane.send(event, call).catch(reject)
      const results = await promise
      return results.length > 1 ? results : results[0]
    } finally {
      clearTimeout(timer)
    }
  }

  /** @param {string} id @returns {DirectSender} */
  #sender (id) {
    let sender = this.#senders.get(id)
    if (sender === undefined) {
      // Peers come and go; only the state of those without a stream may be dropped.
      for (const [old, x] of this.#senders) {
        if (this.#senders.size < maxSenders) break
        if (x.streams === 0) this.#senders.delete(old)
      }
      this.#senders.set(id, sender = { streams: 0, newest: undefined, session: '', call: 0n })
    }
    return sender
  }

  /** Reads the events and calls of a peer on a stream that it has opened. @param {Stream} stream @param {PeerId} peer */
  async serve (stream, peer) {
    const id = peer.toString()
    const sender = this.#sender(id)
    const { promise: done, resolve } = /** @type {PromiseWithResolvers<void>} */ (Promise.withResolvers())
    sender.streams++
    let self
    try {
      if (sender.streams > maxStreams) malformed('too many streams')
      const reader = new StreamReader(stream, limits.hello, helloTimeout)
      const first = await reader.next(helloTimeout)
      if (first === undefined) malformed('a stream without a hello')
      const hello = decodeHello(/** @type {Uint8Array} */ (first))
      if (hello.network !== this.#context.network) throw new NotConnectedError(`smokesignal: the peer is in the network "${hello.network}"`)
      const session = hexOf(hello.session)
      const older = sender.newest
      // Streams may overtake each other. Serial 0 comes from peers that do not number them.
      if (older?.session === session && older.serial > hello.serial && hello.serial !== 0n) malformed('a stream that is older than another one')
      self = { session, serial: hello.serial, done, retire: () => reader.setIdleTimeout(retireTimeout) }
      sender.newest = self
      if (older !== undefined) {
        older.retire()
        await older.done
      }
      if (sender.session !== session) [sender.session, sender.call] = [session, 0n] // call ids begin anew
      reader.setMaxFrame(limits.event + limits.envelope)
      reader.frameTimeout = frameTimeout
      for (let b; (b = await reader.next()) !== undefined;) await this.#handleFrame(stream, id, sender, b)
      await stream.close()
    } catch (err) {
      resetStream(stream, err)
    } finally {
      sender.streams--
      if (sender.newest === self) sender.newest = undefined
      resolve()
    }
  }

  /** @param {Stream} stream @param {string} id @param {DirectSender} sender @param {Uint8Array} frame */
  async #handleFrame (stream, id, sender, frame) {
    const found = decodeDirect(frame)
    if (found === undefined) return // a kind of frame of a later version
    this.#context.checkOpen()
    const { event, call } = found
    if (call === 0n) {
      await this.#handlers.call(id, event)
      await this.#handlersByPeer.get(id)?.call(id, event)
    } else if (call <= sender.call) {
      await writeFrame(stream, encodeAnswer({ id: call, status: statuses.repeated })) // no call may run twice
    } else {
      sender.call = call
      await writeFrame(stream, encodeAnswer(await this.#runCall(id, event, call)))
    }
  }

  /**
   * Runs the handler of a call, and returns the answer.
   * @param {string} from @param {Event} event @param {bigint} id
   */
  async #runCall (from, { name, args }, id) {
    const f = this.#callHandlers.get(name)
    if (f === undefined) return { id, status: statuses.noHandler }
    const values = args.map(decodeArg)
    const bad = values.findIndex((v) => v instanceof Undecodable)
    if (bad >= 0) return { id, status: statuses.badArgument, error: `argument ${bad + 1} cannot be decoded here` }
    try {
      const result = await f(from, ...values)
      return { id, event: newEvent(name, result === undefined ? [] : [result]) }
    } catch (err) {
      return { id, status: statuses.failed, error: asError(err).message }
    }
  }
}
