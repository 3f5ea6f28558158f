// A leaf of a smokesignal network on js-libp2p 3, for Node 22 and browsers: it takes
// part in broadcasts, direct events and calls without the overlay. It is written from
// docs/wire.md; where that has a section for what is done here, it is named.
//
//	const node = await join({ libp2p, network: 'default', addrs: [addr] })
//	node.on('chat', (from, text) => console.log(from, text))
//	node.onConnect(() => node.emit('chat', 'hello'))
//
// The libp2p node is yours: with identify, with floodsub or gossipsub as the service
// `pubsub` (signing, as by default), and with whatever transports. createNode makes one.

import { peerIdFromMultihash, peerIdFromPublicKey } from '@libp2p/peer-id'
import { multiaddr } from '@multiformats/multiaddr'
import * as Digest from 'multiformats/hashes/digest'
import { Order, Window, lostSize } from './order.js'
import {
  BadArgumentError, ClosedError, FrameReader, NoHandlerError, NotConnectedError, RemoteError, StalledError, TooLargeError,
  Undecodable, UnknownOutcomeError, checkName, compareSessions, decodeAnswer, decodeArg, decodeBatch, decodeDirect, decodeEvent,
  decodeHello, decodeRepair, encodeAnswer, encodeBatch, encodeDirect, encodeFrame, encodeHello, encodeRepair, hexOf, idBytes,
  limits, malformed, newEvent, openOriginal, parseTicket, protocols, signOriginal, statuses, unhex
} from './wire.js'

export {
  BadArgumentError, ClosedError, MalformedError, NoHandlerError, NotConnectedError, RemoteError, StalledError, TooLargeError,
  Undecodable, UnknownOutcomeError, formatTicket, parseTicket
} from './wire.js'

/** @typedef {import('./wire.js').Session} Session */
/** @typedef {import('./wire.js').Mark} Mark */
/** @typedef {import('./wire.js').Want} Want */
/** @typedef {import('./wire.js').Event} Event */
/** @typedef {import('./wire.js').Answer} Answer */
/** @typedef {import('./order.js').Step} Step */
/** @typedef {import('./order.js').Ask} Ask */

// ---------------------------------------------------------------------------
// Streams of js-libp2p

/** @typedef {import('@libp2p/interface').Stream} Stream */
/** @typedef {import('@libp2p/interface').Connection} Connection */
/** @typedef {import('@libp2p/interface').PeerId} PeerId */

const stallTimeout = 10_000 // for somebody to take something
const frameTimeout = 10_000 // from a frame's first byte to its last
const repairTimeout = 5000 // for each step on a stream of repair
const helloTimeout = 5000

/** @param {unknown} err */
const asError = (err) => err instanceof Error ? err : new Error(String(err))

/** @param {Stream} stream @param {unknown} err */
function reset (stream, err) {
  try {
    stream.abort(asError(err))
  } catch {} // it is gone
}

/**
 * Writes a frame and returns when the stream can take more. It throws a StalledError
 * when the other side takes nothing for so long.
 * @param {Stream} stream @param {Uint8Array} payload @param {number} [timeout] ms
 */
async function write (stream, payload, timeout = stallTimeout) {
  stream.send(encodeFrame(payload))
  // The stream's own onDrain is of no use: once it was called it returns at once.
  for (let left = stream.writeBufferLength, since = performance.now(); left > maxUnsent;) {
    await new Promise((resolve) => {
      const events = /** @type {const} */ (['drain', 'idle', 'close'])
      const done = () => {
        clearTimeout(timer)
        for (const e of events) stream.removeEventListener(e, done)
        resolve(undefined)
      }
      const timer = setTimeout(done, timeout)
      for (const e of events) stream.addEventListener(e, done)
    })
    if (stream.status !== 'open') throw new NotConnectedError('smokesignal: the stream was closed')
    if (stream.writeBufferLength < left) [left, since] = [stream.writeBufferLength, performance.now()]
    else if (performance.now() - since >= timeout) throw new StalledError('smokesignal: the other side takes nothing')
  }
}

/** What may wait in a stream before its writer does, in bytes. */
const maxUnsent = 64 << 10

/**
 * Reads the frames of a stream. Of what is not asked for little is read, so a reader
 * that is slow holds back its sender, and nobody else.
 */
class Frames {
  #reader
  #stream
  /** @type {(() => void) | undefined} */
  #wake
  #ended = false
  /** @type {Error | undefined} */
  #error

  /** @param {Stream} stream @param {number} max bytes of a frame @param {number} timeout ms from its first byte to its last */
  constructor (stream, max, timeout) {
    this.#stream = stream
    this.#reader = new FrameReader(max)
    this.timeout = timeout
    // What the other side may send before it hears of a pause: yamux's window.
    stream.maxReadBufferLength = (16 << 20) + 1
    stream.addEventListener('message', (evt) => {
      this.#reader.push(evt.data.subarray())
      if (this.#reader.length > this.#reader.max + (256 << 10) && stream.readStatus === 'readable') stream.pause()
      this.#wake?.()
    })
    stream.addEventListener('end', () => this.#end())
    stream.addEventListener('remoteCloseWrite', () => this.#wake?.())
    stream.addEventListener('close', (evt) => this.#end(evt.error))
    if (stream.readableEnded || stream.status !== 'open') this.#end()
  }

  /** @param {Error} [err] */
  #end (err) {
    this.#ended = true
    this.#error ??= err
    this.#wake?.()
  }

  /** @param {number} max */
  setLimit (max) { this.#reader.max = max }

  /** Ends a wait for a frame after some silence. @param {number} ms */
  hurry (ms) {
    this.#patience = ms
    this.#wake?.()
  }

  #patience = Infinity
  #rested = performance.now()

  /**
   * Returns the next frame, undefined at the end. It throws when the stream is reset,
   * and when a frame is malformed or too slow.
   * @param {number} [patience] ms until it has to be here as a whole
   * @returns {Promise<Uint8Array | undefined>}
   */
  async next (patience = Infinity) {
    if (performance.now() - this.#rested > maxBusy) { // many that are here already would come in one go
      await pause()
      this.#rested = performance.now()
    }
    const begin = performance.now()
    let begun = this.#reader.begun ? begin : Infinity
    for (;;) {
      const frame = this.#reader.next()
      if (frame !== undefined) return frame
      if (this.#stream.readStatus === 'paused') {
        this.#stream.resume() // which may bring something at once
        continue
      }
      if (this.#ended) {
        if (this.#error !== undefined) throw this.#error
        if (this.#reader.begun) malformed('the stream ends inside a frame')
        return undefined
      }
      if (this.#reader.begun) begun = Math.min(begun, performance.now())
      const left = Math.min(begin + Math.min(patience, this.#patience), begun + this.timeout) - performance.now()
      if (left <= 0) malformed('a frame was not complete in time')
      await new Promise((resolve) => {
        const timer = left === Infinity ? undefined : setTimeout(resolve, left)
        this.#wake = () => {
          clearTimeout(timer)
          resolve(undefined)
        }
      })
      this.#wake = undefined
    }
  }
}

// ---------------------------------------------------------------------------
// Handlers

/** How long what comes from one sender may keep everything else from running, in ms. */
const maxBusy = 20

/** Lets everything else run that is due. Timers would do, but browsers delay those of a page that is hidden. */
const pause = () => new Promise((resolve) => {
  const { port1, port2 } = new MessageChannel()
  port1.onmessage = () => {
    port1.close()
    resolve(undefined)
  }
  port2.postMessage(0)
})

/** @typedef {(from: string, ...args: any[]) => unknown} Handler called one after the other for each sender: a promise is waited for */

class Handlers {
  /** @type {Map<string, Set<Handler>>} */
  #of = new Map()

  /** @param {(err: unknown) => void} failed */
  constructor (failed) { this.failed = failed }

  get empty () { return this.#of.size === 0 }

  /** @param {string} name @param {Handler} f @returns {() => void} */
  on (name, f) {
    if (name !== '*') checkName(name)
    let list = this.#of.get(name)
    if (list === undefined) this.#of.set(name, list = new Set())
    list.add(f)
    return () => {
      list.delete(f)
      if (list.size === 0 && this.#of.get(name) === list) this.#of.delete(name)
    }
  }

  /** @param {string} from @param {Event} event */
  async call (from, event) {
    const own = this.#of.get(event.name)
    const all = this.#of.get('*')
    if (own === undefined && all === undefined) return
    const args = event.args.map(decodeArg)
    for (const f of [...own ?? []]) await this.#run(() => f(from, ...args))
    for (const f of [...all ?? []]) await this.#run(() => f(from, event.name, ...args))
  }

  /** @param {() => unknown} f */
  async #run (f) {
    try {
      await f()
    } catch (err) {
      this.failed(err)
    }
  }
}

/** Callbacks of one kind, called in order, one after the other. */
class Listeners {
  /** @type {Set<(...args: any[]) => unknown>} */
  #list = new Set()

  /** @param {(err: unknown) => void} failed */
  constructor (failed) { this.failed = failed }

  /** @param {(...args: any[]) => unknown} f @returns {() => void} */
  add (f) {
    this.#list.add(f)
    return () => { this.#list.delete(f) }
  }

  get size () { return this.#list.size }

  /** @param {...unknown} args */
  async call (...args) {
    for (const f of [...this.#list]) {
      try {
        await f(...args)
      } catch (err) {
        this.failed(err)
      }
    }
  }
}

// ---------------------------------------------------------------------------
// Direct events and calls to one peer

/** What a session counts: its streams and its calls. */
class Counter {
  serial = 0n
  call = 0n
}

/** @typedef {{ name: string, resolve: (results: unknown[]) => void, reject: (err: Error) => void }} PendingCall */

/**
 * The events and calls to one peer, on one long stream that is opened when it is
 * needed. What was written to a stream that breaks is not written again.
 */
class Lane {
  /** @type {Stream | undefined} */
  #stream
  /** @type {Map<bigint, PendingCall>} */
  #calls = new Map()
  #turn = Promise.resolve() // of the last that was written
  #waiting = 0 // bytes
  #last = 0n // call that was written

  /** @param {Leaf} leaf @param {string} id */
  constructor (leaf, id) {
    this.leaf = leaf
    this.id = id
  }

  get idle () { return this.#stream === undefined && this.#calls.size === 0 && this.#waiting === 0 }

  /**
   * Writes an event, or a call, behind all those before it.
   * @param {Uint8Array} event @param {PendingCall} [call]
   */
  async write (event, call) {
    if (this.#waiting > 0 && this.#waiting + event.length > 4 << 20) throw new TooLargeError('smokesignal: too much waits for this peer; await what was emitted before')
    this.#waiting += event.length
    const before = this.#turn
    const done = before.then(() => this.#write(event, call)).finally(() => {
      this.#waiting -= event.length
      this.leaf.laneIdle(this) // it may have failed to open
    })
    this.#turn = done.then(() => {}, () => {})
    return done
  }

  /** @param {Uint8Array} event @param {PendingCall} [call] */
  async #write (event, call) {
    if (this.leaf.closed) throw new ClosedError('smokesignal: closed')
    const stream = this.#stream ?? await this.#open()
    let id
    if (call !== undefined) {
      id = ++this.leaf.counter.call // in the order in which they are written
      this.#last = id
      this.#calls.set(id, call)
    }
    try {
      await write(stream, encodeDirect(event, id))
    } catch (err) {
      reset(stream, err)
      if (call !== undefined) return // its outcome is not known, and told elsewhere
      throw err instanceof StalledError ? err : new NotConnectedError(`smokesignal: the stream to ${this.id} broke: ${asError(err).message}`)
    }
  }

  async #open () {
    let stream
    try {
      stream = await this.leaf.newStream(this.id, protocols.events, stallTimeout)
    } catch (err) {
      throw new NotConnectedError(`smokesignal: ${this.id} is not reached: ${asError(err).message}`)
    }
    const { session, network, counter } = this.leaf
    this.#stream = stream
    this.#read(stream)
    await write(stream, encodeHello({ session: unhex(session.session), network, serial: ++counter.serial }))
    return stream
  }

  /** Reads the answers of a stream until it ends. @param {Stream} stream */
  async #read (stream) {
    /** @type {unknown} */
    let why = new Error('the stream ended')
    try {
      const frames = new Frames(stream, limits.event + limits.envelope, frameTimeout)
      for (let b; (b = await frames.next()) !== undefined;) {
        const answer = decodeAnswer(b)
        if (answer !== undefined) this.#answered(answer)
      }
    } catch (err) {
      why = err
    }
    reset(stream, why)
    if (this.#stream === stream) this.#stream = undefined
    for (const [id, call] of this.#calls) {
      this.#calls.delete(id)
      call.reject(new UnknownOutcomeError(`smokesignal: call ${call.name}: ${asError(why).message}`))
    }
    this.leaf.laneIdle(this)
  }

  /** @param {Answer} answer */
  #answered ({ id, status, event, error }) {
    if (id > this.#last) malformed('an answer to a call that was not sent')
    const call = this.#calls.get(id)
    if (call === undefined) return
    const text = `smokesignal: call ${call.name}: `
    switch (Number(status)) {
      case statuses.done: {
        const { name, args } = decodeEvent(event)
        if (name !== call.name) malformed('an answer of another name')
        call.resolve(args.map(decodeArg))
        break
      }
      case statuses.failed:
        call.reject(new RemoteError(error))
        break
      case statuses.noHandler:
        call.reject(new NoHandlerError(text + 'the other node has no handler'))
        break
      case statuses.badArgument:
        call.reject(new BadArgumentError(text + error))
        break
      default:
        call.reject(new UnknownOutcomeError(text + `the other node answers with status ${status}`))
    }
    this.#calls.delete(id)
  }

  /** Nobody waits for these calls any more. @param {PendingCall} call */
  forget (call) {
    for (const [id, c] of this.#calls) if (c === call) this.#calls.delete(id)
  }

  close () {
    if (this.#stream !== undefined) this.#stream.close().catch(() => {})
  }
}

/** Another peer of the network, a node or a leaf. Take it from Leaf.peer. */
export class Peer {
  #leaf

  /** @param {Leaf} leaf @param {string} id */
  constructor (leaf, id) {
    this.#leaf = leaf
    this.id = id
  }

  /** Whether it is a node to which this leaf is connected. */
  get connected () { return this.#leaf.peers.includes(this.id) }

  /**
   * Sends an event to this peer alone. It resolves when the event was written; events
   * and calls arrive in the order of these calls, at most once.
   * @param {string} name @param {...unknown} args
   */
  async emit (name, ...args) { await this.#leaf.lane(this.id).write(newEvent(name, args)) }

  /**
   * Calls f for the events that this peer sends to this leaf alone.
   * @param {string} name or '*' @param {Handler} f @returns {() => void} which ends it
   */
  on (name, f) { return this.#leaf.onPeer(this.id, name, f) }

  /**
   * Asks this peer and resolves to what its handler returns: the value, an array if
   * there are several, undefined if there is none. It rejects with a RemoteError,
   * NoHandlerError or BadArgumentError that the other side answers, with a
   * NotConnectedError if it was not asked, and with an UnknownOutcomeError if no answer
   * came, after ten seconds at most.
   * @param {string} name @param {...unknown} args
   * @returns {Promise<any>}
   */
  async request (name, ...args) {
    const event = newEvent(name, args)
    const lane = this.#leaf.lane(this.id)
    const { promise, resolve, reject } = /** @type {PromiseWithResolvers<unknown[]>} */ (Promise.withResolvers())
    const call = { name, resolve, reject }
    const timer = setTimeout(() => {
      lane.forget(call)
      reject(new UnknownOutcomeError(`smokesignal: call ${name}: no answer in time`))
    }, this.#leaf.callTimeout)
    try {
      lane.write(event, call).catch(reject)
      const results = await promise
      return results.length > 1 ? results : results[0]
    } finally {
      clearTimeout(timer)
    }
  }
}

// ---------------------------------------------------------------------------
// The leaf

/**
 * A node that this leaf is connected to.
 * @typedef {object} Link
 * @property {string} id
 * @property {PeerId} peer
 * @property {boolean} up it is counted
 * @property {boolean} greeted it takes part in marks and repair
 * @property {Set<string>} dirty senders that it is to be told of
 * @property {Set<string>} asks those of them of which it is asked
 * @property {Stream | undefined} stream for what is told
 * @property {boolean} telling
 * @property {number} retry
 * @property {number} inbound streams
 * @property {ReturnType<typeof setTimeout> | undefined} timer
 */

/** @typedef {{ id: string | undefined, addrs: import('@multiformats/multiaddr').Multiaddr[], pause: number, next: number, dialing: boolean }} Target */

/**
 * @typedef {object} JoinOptions
 * @property {import('@libp2p/interface').Libp2p<any>} libp2p started, with the services identify and pubsub
 * @property {string} [network] the ticket's, or 'default'
 * @property {string[]} [addrs] multiaddrs of nodes; two or three nodes are enough
 * @property {string} [ticket] of a node
 * @property {import('@libp2p/interface').PrivateKey} [privateKey] of the libp2p node, with which what was lost is handed out again; by default its own
 * @property {number} [links] how many nodes to be connected to, 3 at most
 * @property {number} [callTimeout] ms, 10000 by default
 * @property {(err: unknown) => void} [onError] told what a handler threw; by default the console
 */

/** The pauses between dials of one address, in ms. */
const dialPauses = [1000, 2000, 4000, 8000]
const dialTimeout = 5000
// How long a connected node may be missing on the topic, before it is dialled anew, or
// without a greeting, before it is used without repair.
const topicTimeout = 10_000
const greetTimeout = 5000
const closeTimeout = 2000 // for what was emitted to arrive, and for callbacks to return
const maxDirty = 4096 // senders of which a node is still to be told
// What may wait for handlers, in bytes, and beyond that gaps, of each sender so many. A raw
// message counts for more than its data, which may be empty.
const maxQueued = 16 << 20
const maxGaps = 1 << 20
const maxItems = 4096
const rawWeight = 1 << 10
// How often the nodes are looked at, since pubsub tells nobody of a stream that broke, and
// how often while one is about to come: it may announce the topic before there is a stream to it.
const checkEvery = 5000
const checkSoon = 100

let lastStart = 0n

/** @returns {Session} */
function newSession () {
  const now = BigInt(Date.now())
  lastStart = now > lastStart ? now : lastStart + 1n
  return { session: hexOf(crypto.getRandomValues(new Uint8Array(8))), start: lastStart }
}

/**
 * Joins a network and returns the leaf, which is dialling by then: register the
 * handlers before the next await, and nothing is missed.
 * @param {JoinOptions} options
 */
export async function join (options) {
  const leaf = new Leaf(options)
  await leaf.start()
  return leaf
}

export class Leaf {
  /** @param {JoinOptions} options */
  constructor (options) {
    const { libp2p, addrs = [], ticket, callTimeout = 10_000 } = options
    const t = ticket === undefined ? undefined : parseTicket(ticket)
    if (t !== undefined && options.network !== undefined && t.network !== options.network) {
      throw new TypeError(`smokesignal: the ticket is for the network "${t.network}", not for "${options.network}"`)
    }
    this.libp2p = libp2p
    this.network = options.network ?? t?.network ?? 'default'
    if (new TextEncoder().encode(this.network).length > limits.network) throw new TypeError(`smokesignal: the name of a network has at most ${limits.network} bytes`)
    this.topic = 'smokesignal/' + this.network
    this.callTimeout = callTimeout
    this.id = libp2p.peerId.toString()
    this.session = newSession()
    this.counter = new Counter()
    this.closed = false
    /** What could not be used: data on the topic that is no batch, or forged; events that are malformed. */
    this.stats = { foreign: 0, forged: 0, malformed: 0, duplicates: 0, lost: 0n, overrun: 0n, repaired: 0 }
    this.#links = Math.max(1, Math.min(3, options.links ?? 3))
    this.#key = options.privateKey ?? /** @type {any} */ (libp2p).components?.privateKey
    this.#failed = options.onError ?? ((err) => console.error('smokesignal: a handler failed:', err))
    this.#pubsub = /** @type {any} */ (libp2p.services).pubsub
    if (typeof this.#pubsub?.subscribe !== 'function') throw new TypeError('smokesignal: libp2p needs the service pubsub: floodsub() or gossipsub()')
    if (this.#pubsub.globalSignaturePolicy === 'StrictNoSign') throw new TypeError('smokesignal: pubsub has to sign: globalSignaturePolicy is StrictNoSign')
    this.#broadcasts = new Handlers(this.#failed)
    this.#directs = new Handlers(this.#failed)
    this.#onConnect = new Listeners(this.#failed)
    this.#onDisconnect = new Listeners(this.#failed)
    this.#onPeers = new Listeners(this.#failed)
    this.#onGap = new Listeners(this.#failed)
    this.#onRaw = new Listeners(this.#failed)
    for (const a of [...addrs, ...t?.addrs ?? []]) {
      const addr = multiaddr(a)
      const id = t?.addrs.includes(a) ? t.id : addr.getComponents().findLast((c) => c.name === 'p2p')?.value
      const known = this.#targets.find((x) => x.id !== undefined && x.id === id)
      if (known === undefined) this.#targets.push({ id, addrs: [], pause: 0, next: 0, dialing: false })
      const target = known ?? /** @type {Target} */ (this.#targets.at(-1))
      target.addrs.push(id !== undefined && !a.includes('/p2p/') ? addr.encapsulate(`/p2p/${id}`) : addr)
    }
  }

  #links
  #key
  #failed
  #pubsub
  #broadcasts
  #directs
  #onConnect
  #onDisconnect
  #onPeers
  #onGap
  #onRaw
  /** @type {Target[]} */
  #targets = []
  /** @type {Map<string, Link>} */
  #nodes = new Map()
  /** @type {Map<string, ReturnType<typeof setTimeout>>} */
  #silent = new Map() // nodes that are connected but not on the topic
  #order = new Order()
  #window = new Window()
  #met = false
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #dialTimer
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #checkTimer
  #end = new AbortController()
  #notes = Promise.resolve() // the callbacks of connections, one after the other
  /** @type {Array<() => void>} */
  #undo = []

  // --- what an application uses

  /**
   * Calls f for the broadcasts of a name, or with '*' for all, whose name comes first
   * then: f(from, ...args). Those of one sender come once, in the order in which it
   * sent them, one after the other; if f returns a promise it is waited for.
   * @param {string} name @param {Handler} f @returns {() => void} which ends it
   */
  on (name, f) { return this.#broadcasts.on(name, f) }

  /** As on, for the events that any peer sends to this leaf alone. @param {string} name @param {Handler} f */
  onDirect (name, f) { return this.#directs.on(name, f) }

  /**
   * Answers the calls of a name with what f(from, ...args) returns: undefined is
   * nothing, what it throws goes to the caller as text.
   * @param {string} name @param {Handler} f @returns {() => void} which ends it
   */
  handle (name, f) {
    checkName(name)
    this.#answers.set(name, f)
    return () => { if (this.#answers.get(name) === f) this.#answers.delete(name) }
  }

  /** @type {Map<string, Handler>} */
  #answers = new Map()

  /** Calls f when the first node is there, and emit works. @param {() => unknown} f */
  onConnect (f) { return this.#onConnect.add(f) }

  /** Calls f when the last node is gone. @param {() => unknown} f */
  onDisconnect (f) { return this.#onDisconnect.add(f) }

  /** Calls f with the ids of the nodes when one has come or gone. @param {(peers: string[]) => unknown} f */
  onPeers (f) { return this.#onPeers.add(f) }

  /**
   * Calls f, in their place, for broadcasts that are missing and will not come: those
   * from the number `from` to below `to` of a sender's session.
   * @param {(gap: { sender: string, session: string, from: bigint, to: bigint }) => unknown} f
   */
  onGap (f) { return this.#onGap.add(f) }

  /** Calls f for data on the topic that is no batch, whose author is proven. @param {(from: string, data: Uint8Array) => unknown} f */
  onRaw (f) { return this.#onRaw.add(f) }

  /** The ids of the nodes that this leaf is connected to. */
  get peers () { return [...this.#nodes.values()].filter((n) => n.up).map((n) => n.id) }

  get connected () { return this.peers.length > 0 }

  /** Resolves as soon as there is a node. @param {{ signal?: AbortSignal }} [options] */
  async ready ({ signal } = {}) {
    if (this.closed) throw new ClosedError('smokesignal: closed')
    if (this.connected) return
    await new Promise((resolve, reject) => {
      const off = [this.onConnect(() => done(resolve)), this.#ended(() => done(() => reject(new ClosedError('smokesignal: closed'))))]
      const aborted = () => done(() => reject(new NotConnectedError(`smokesignal: not connected${this.#why === '' ? '' : ': ' + this.#why}`)))
      const done = (/** @type {(v?: any) => void} */ f) => {
        signal?.removeEventListener('abort', aborted)
        for (const o of off) o()
        f()
      }
      if (signal?.aborted) aborted()
      else signal?.addEventListener('abort', aborted)
    })
  }

  #why = '' // the last error of a dial

  /** @param {() => void} f */
  #ended (f) {
    this.#end.signal.addEventListener('abort', f)
    return () => this.#end.signal.removeEventListener('abort', f)
  }

  /** A handle on a peer, connected or not. @param {string} id */
  peer (id) { return new Peer(this, id) }

  /** As Peer.on. @param {string} id @param {string} name @param {Handler} f */
  onPeer (id, name, f) {
    const handlers = this.#of.get(id) ?? new Handlers(this.#failed)
    const off = handlers.on(name, f)
    this.#of.set(id, handlers)
    return () => {
      off()
      if (handlers.empty && this.#of.get(id) === handlers) this.#of.delete(id)
    }
  }

  /** Of how many peers there are handlers and streams, and how many bytes wait for handlers. */
  get size () { return { peers: this.#of.size, lanes: this.#lanes.size, queued: this.#queued } }

  /** @type {Map<string, Handlers>} */
  #of = new Map()

  /**
   * Leaves the network. What was emitted is given two seconds to arrive, and callbacks
   * that run as long to return. The libp2p node is left running.
   */
  async close () {
    if (this.closed) return
    const until = performance.now() + closeTimeout
    while (this.connected && (this.#pending.length > 0 || this.#publishing || !this.#window.calm) && performance.now() < until) {
      await new Promise((resolve) => setTimeout(resolve, 5))
    }
    this.closed = true
    this.#end.abort()
    clearTimeout(this.#timer)
    clearTimeout(this.#dialTimer)
    clearTimeout(this.#checkTimer)
    for (const t of this.#silent.values()) clearTimeout(t)
    for (const undo of this.#undo) undo()
    for (const id of [...this.#nodes.keys()]) this.#lost(id)
    for (const lane of this.#lanes.values()) lane.close()
    for (const w of this.#waiters.splice(0)) w.reject(new ClosedError('smokesignal: closed'))
    try {
      this.#pubsub.unsubscribe(this.topic)
    } catch {} // libp2p was stopped before
    await Promise.allSettled([this.libp2p.unhandle(protocols.repair), this.libp2p.unhandle(protocols.events)])
    for (const stream of this.#served) reset(stream, new ClosedError('smokesignal: closed'))
    // A callback that waits for this is not waited for.
    let timer
    await Promise.race([this.#notes, new Promise((resolve) => { timer = setTimeout(resolve, closeTimeout) })])
    clearTimeout(timer)
  }

  /** @type {Set<Stream>} */
  #served = new Set() // streams of others, which close ends

  /**
   * @param {(stream: Stream, peer: PeerId) => Promise<void>} read returns at its end
   * @returns {(stream: Stream, connection: Connection) => void}
   */
  #server (read) {
    return (stream, connection) => {
      if (this.closed) return reset(stream, new ClosedError('smokesignal: closed'))
      this.#served.add(stream)
      read(stream, connection.remotePeer).finally(() => this.#served.delete(stream))
    }
  }

  // --- nodes

  async start () {
    const { libp2p } = this
    await libp2p.handle(protocols.repair, this.#server((stream, peer) => this.#serveRepair(stream, peer)), { maxInboundStreams: 8 })
    await libp2p.handle(protocols.events, this.#server((stream, peer) => this.#serveDirect(stream, peer)), { maxInboundStreams: 8 })
    /** @param {any} target @param {string} name @param {(evt: any) => void} f */
    const listen = (target, name, f) => {
      const guarded = (/** @type {any} */ evt) => {
        try {
          f(evt)
        } catch (err) {
          this.#failed(err)
        }
      }
      target.addEventListener(name, guarded)
      this.#undo.push(() => target.removeEventListener(name, guarded))
    }
    listen(this.#pubsub, 'message', (evt) => this.#received(evt.detail))
    listen(this.#pubsub, 'subscription-change', (evt) => this.#look(evt.detail.peerId))
    listen(libp2p, 'peer:identify', (evt) => this.#look(evt.detail.peerId))
    listen(libp2p, 'peer:update', (evt) => this.#look(evt.detail.peer.id))
    listen(libp2p, 'peer:disconnect', (evt) => this.#look(evt.detail))
    this.#pubsub.subscribe(this.topic)
    for (const peer of libp2p.getPeers()) this.#look(peer)
    this.#dialTimer = setTimeout(() => this.#dial(), 0)
  }

  /** Dials what is due, as long as there are fewer nodes than there are to be. */
  #dial () {
    if (this.closed) return
    clearTimeout(this.#dialTimer)
    const now = performance.now()
    let next = Infinity
    let links = this.#nodes.size + this.#targets.filter((t) => t.dialing).length
    for (const t of this.#targets) {
      if (t.dialing || (t.id !== undefined && (this.#nodes.has(t.id) || this.#silent.has(t.id)))) continue
      // Another address of the same node, which need not stay that: it was given without an id.
      if (t.id !== undefined && this.#targets.some((x) => x.dialing && x.id === t.id)) continue
      if (links >= this.#links) break
      if (t.next > now) {
        next = Math.min(next, t.next)
        continue
      }
      links++
      this.#dialOne(t)
    }
    if (next < Infinity) this.#dialTimer = setTimeout(() => this.#dial(), next - now)
  }

  /** @param {Target} t */
  async #dialOne (t) {
    t.dialing = true
    try {
      const c = await this.libp2p.dial(t.addrs, { signal: AbortSignal.any([this.#end.signal, AbortSignal.timeout(dialTimeout)]) })
      t.id = c.remotePeer.toString()
      // Of two connections to one node pubsub may write on one and read on the other; it
      // does not know this one before it is identified.
      if (this.libp2p.getConnections(c.remotePeer).some((x) => x !== c && x.status === 'open' && x.limits === undefined)) {
        c.abort(new Error('there is a connection already'))
      }
      await this.#look(c.remotePeer)
    } catch (err) {
      this.#why = asError(err).message
    }
    t.dialing = false
    t.next = performance.now() + dialPauses[Math.min(t.pause++, dialPauses.length - 1)]
    this.#dial()
  }

  /** Looks what has become of a peer. @param {PeerId} peer */
  async #look (peer) {
    try {
      if (!this.closed) await this.#judge(peer)
    } catch {} // libp2p was stopped
  }

  /** Looks at the nodes now and then. */
  #check () {
    clearTimeout(this.#checkTimer)
    if (this.closed || (this.#nodes.size === 0 && this.#silent.size === 0)) return
    this.#checkTimer = setTimeout(() => {
      for (const peer of this.libp2p.getPeers()) {
        const id = peer.toString()
        if (this.#nodes.has(id) || this.#silent.has(id)) this.#look(peer)
      }
      this.#check()
    }, this.#silent.size > 0 ? checkSoon : checkEvery)
  }

  /**
   * Whether a peer has announced the topic, and is sent what is published: a peer whose
   * stream broke may open it again, and pubsub opens no other to it.
   * @param {PeerId} peer
   */
  #reached (peer) {
    const writes = (/** @type {Stream} */ s) => s.direction === 'outbound' && s.status === 'open' && s.writeStatus === 'writable' && /^\/(floodsub|meshsub)\//.test(s.protocol)
    return this.#pubsub.getSubscribers(this.topic).some((/** @type {PeerId} */ p) => p.equals(peer)) &&
      this.libp2p.getConnections(peer).some((c) => c.status === 'open' && c.streams.some(writes))
  }

  /** @param {PeerId} peer */
  async #judge (peer) {
    const id = peer.toString()
    const connected = this.libp2p.getConnections(peer).length > 0
    if (!connected || !this.#reached(peer)) this.#lost(id)
    if (!connected) {
      clearTimeout(this.#silent.get(id))
      if (this.#silent.delete(id)) this.#dial()
      return
    }
    let known
    try {
      known = (await this.libp2p.peerStore.get(peer)).protocols
    } catch {
      return // it is not identified yet
    }
    if (this.closed || !known.includes(protocols.overlay) || this.libp2p.getConnections(peer).length === 0) return
    if (this.#reached(peer)) {
      clearTimeout(this.#silent.get(id))
      this.#silent.delete(id)
      this.#found(id, peer)
    } else if (!this.#silent.has(id)) {
      // It may be about to announce the topic; or its stream broke, which no pubsub in
      // JavaScript heals.
      this.#silent.set(id, setTimeout(() => {
        this.#silent.delete(id)
        this.#why = `${id} is not on the topic ${this.topic}`
        this.libp2p.hangUp(peer).catch(() => {}).then(() => this.#dial())
      }, topicTimeout))
      this.#check()
    }
  }

  /** A node is on the topic. @param {string} id @param {PeerId} peer */
  #found (id, peer) {
    if (this.#nodes.has(id)) return
    /** @type {Link} */
    const link = {
      id, peer, up: false, greeted: false, dirty: new Set(), asks: new Set(), stream: undefined, telling: false, retry: 50, inbound: 0, timer: undefined
    }
    this.#nodes.set(id, link)
    this.#order.join(id)
    this.#window.join(performance.now(), id)
    link.timer = setTimeout(() => {
      this.#window.leave(id)
      this.#order.mute(id)
      this.#up(link)
      this.#publish()
    }, greetTimeout)
    this.#tell(link)
    this.#wake()
    this.#check()
  }

  /** A node is counted from now on. @param {Link} link */
  #up (link) {
    if (link.up) return
    const first = !this.connected
    link.up = true
    this.#met = true
    for (const t of this.#targets) if (t.id === link.id) t.pause = 0
    this.#note(() => first ? this.#onConnect.call() : undefined)
    const peers = this.peers
    this.#note(() => this.#onPeers.call(peers))
  }

  /** @param {string} id */
  #lost (id) {
    const link = this.#nodes.get(id)
    if (link === undefined) return
    this.#nodes.delete(id)
    clearTimeout(link.timer)
    if (link.stream !== undefined) reset(link.stream, new Error('the node is gone'))
    this.#order.leave(id)
    this.#window.leave(id)
    if (link.up) {
      const peers = this.peers
      if (peers.length === 0) this.#note(() => this.#onDisconnect.call())
      this.#note(() => this.#onPeers.call(peers))
    }
    this.#wake()
    this.#publish()
    this.#dial()
  }

  /** Runs a callback behind those before it. @param {() => unknown} f */
  #note (f) { this.#notes = this.#notes.then(f).then(() => {}, this.#failed) }

  /**
   * Opens a stream, to a peer that is connected or whose addresses libp2p knows.
   * @param {string} id @param {string} protocol @param {number} timeout
   */
  async newStream (id, protocol, timeout) {
    const peer = this.#nodes.get(id)?.peer ?? peerIdFromMultihash(Digest.decode(idBytes(id)))
    const signal = AbortSignal.any([this.#end.signal, AbortSignal.timeout(timeout)])
    const connection = this.libp2p.getConnections(peer).find((c) => c.status === 'open')
    return connection === undefined
      ? await this.libp2p.dialProtocol(peer, protocol, { signal })
      : await connection.newStream(protocol, { signal })
  }

  // --- broadcasts that come

  /** @param {any} msg a message of pubsub, whose signature was checked against its key */
  #received (msg) {
    if (msg.topic !== this.topic) return
    // Floodsub does not check that the key is the author's, so that anybody could speak
    // in another's name.
    if (msg.type !== 'signed' || msg.from === undefined || (msg.key !== undefined && !peerIdFromPublicKey(msg.key).equals(msg.from))) {
      this.stats.forged++
      return
    }
    const sender = msg.from.toString()
    if (sender === this.id) return
    let batch
    try {
      batch = decodeBatch(msg.data)
    } catch {
      this.stats.foreign++
      if (this.#onRaw.size > 0) this.#queue(sender, { raw: msg.data, size: msg.data.length + rawWeight })
      return
    }
    const now = performance.now()
    if (this.#order.receive(now, sender, batch) !== 'new') this.stats.duplicates++
    for (const link of this.#nodes.values()) this.#soil(link, sender)
    this.#wake()
  }

  /** Does what is due, and sets the timer. */
  #wake () {
    if (this.closed) return
    clearTimeout(this.#timer)
    const now = performance.now()
    const out = this.#order.output(now)
    for (const s of out.steps) {
      if (s.events === undefined) this.stats.lost += s.to - s.from
      this.#queue(s.sender, s)
      for (const link of this.#nodes.values()) this.#soil(link, s.sender)
    }
    for (const a of out.asks) this.#ask(a)
    const w = this.#window.advance(now)
    for (const id of w.nudge) {
      const link = this.#nodes.get(id)
      if (link !== undefined) this.#soil(link, this.id, true)
    }
    const next = Math.min(out.next, w.next)
    if (next < Infinity) this.#timer = setTimeout(() => { this.#wake(); this.#publish() }, Math.max(1, next - now))
  }

  /** @typedef {{ raw: Uint8Array, size: number }} Raw */
  /** @type {Map<string, Array<Step | Raw>>} */
  #queues = new Map() // what waits for handlers, by sender
  #queued = 0 // bytes

  /** @param {string} sender @param {Step | Raw} item */
  #queue (sender, item) {
    const full = this.#queued + item.size > maxQueued
    if (full) {
      // Handlers are too slow. What they will not see is a gap.
      if ('raw' in item) {
        this.stats.overrun++
        return
      }
      if (item.events !== undefined) this.stats.overrun += item.to - item.from
      item = { ...item, events: undefined, size: lostSize }
    }
    const list = this.#queues.get(sender)
    const last = list?.at(-1)
    if (!('raw' in item) && last !== undefined && last !== list?.[0] && !('raw' in last) && last.events === undefined && item.events === undefined && last.session === item.session && last.to === item.from) {
      last.to = item.to
      return
    }
    // Gaps have a bound, too, of which one sender gets a part.
    if (full && ((list?.length ?? 0) >= maxItems || this.#queued + item.size > maxQueued + maxGaps)) return
    this.#queued += item.size
    if (list !== undefined) {
      list.push(item)
      return
    }
    this.#queues.set(sender, [item])
    this.#handle(sender)
  }

  /** Calls the handlers for what waits of one sender. @param {string} sender */
  async #handle (sender) {
    const list = /** @type {Array<Step | Raw>} */ (this.#queues.get(sender))
    await undefined // never on the stack of pubsub
    let since = performance.now()
    const rest = async () => {
      await pause()
      since = performance.now()
    }
    for (; list.length > 0; list.shift()) {
      const item = list[0]
      if (performance.now() - since > maxBusy) await rest()
      if (this.closed) break
      if ('raw' in item) {
        await this.#onRaw.call(sender, item.raw)
      } else if (item.events === undefined) {
        await this.#onGap.call({ sender, session: item.session, from: item.from, to: item.to })
      } else {
        for (const b of item.events) {
          if (performance.now() - since > maxBusy) await rest()
          if (this.closed) break
          let event
          try {
            event = decodeEvent(b)
          } catch {
            this.stats.malformed++
            continue
          }
          await this.#broadcasts.call(sender, event)
        }
      }
      this.#queued -= item.size
    }
    this.#queues.delete(sender)
  }

  /** @param {Ask} a asks a node for what is missing */
  async #ask (a) {
    /** @type {'got' | 'nothing' | 'failed'} */
    let answer = 'nothing'
    let stream
    try {
      stream = await this.newStream(a.node, protocols.repair, repairTimeout)
      await write(stream, encodeRepair({ want: { ...a, passOn: true } }), repairTimeout)
      const frames = new Frames(stream, limits.answerBytes + limits.envelope, repairTimeout)
      for (let size = 0, ended = false; !ended;) {
        const b = await frames.next(repairTimeout)
        if (b === undefined) malformed('an answer without an end')
        const { original, end } = decodeRepair(/** @type {Uint8Array} */ (b))
        if (original !== undefined) {
          size += original.length
          const { sender, topic, data } = await openOriginal(original)
          if (sender !== a.sender || topic !== this.topic) malformed('an original of another sender or topic')
          const batch = decodeBatch(data)
          const last = batch.first + BigInt(batch.events.length)
          if (compareSessions(batch, a) !== 0 || last <= a.from || batch.first >= a.to || size > 2 * limits.answerBytes) malformed('an original that was not asked for')
          answer = 'got'
          this.stats.repaired++
          this.#order.receive(performance.now(), a.sender, batch)
        } else if (end !== undefined) {
          ended = true
          if (this.#nodes.has(a.node)) this.#order.told(performance.now(), a.node, end.filter((m) => m.sender !== this.id), false)
        }
      }
      stream.close().catch(() => {})
    } catch (err) {
      answer = 'failed'
      if (stream !== undefined) reset(stream, err)
    }
    this.#order.answered(performance.now(), a, answer)
    this.#wake()
  }

  // --- marks

  /** Notes that a node is to be told of a sender. @param {Link} link @param {string} sender @param {boolean} [ask] */
  #soil (link, sender, ask = false) {
    // A node that takes nothing asks again for what it is not told.
    if (link.dirty.size >= maxDirty && sender !== this.id) return
    link.dirty.add(sender)
    if (ask) link.asks.add(sender)
    this.#tell(link)
  }

  /** @returns {Mark} */
  #ownMark () {
    this.#expire()
    const next = this.#sent
    return { sender: this.id, ...this.session, next, above: next, begin: 1n, floor: this.#originals[0]?.first ?? 0n, withheld: 0n, ask: false }
  }

  /** Tells a node marks as they change, on one stream, whose first frame has them all. @param {Link} link */
  async #tell (link) {
    if (link.telling || this.closed) return
    link.telling = true
    await undefined // what comes together is told together
    while (this.#nodes.get(link.id) === link && (link.dirty.size > 0 || link.stream === undefined)) {
      try {
        if (link.stream === undefined) {
          link.stream = await this.newStream(link.id, protocols.repair, repairTimeout)
          this.#watch(link, link.stream)
          await write(link.stream, encodeRepair({ told: [this.#ownMark(), ...this.#order.marks(limits.marks - 1)] }), repairTimeout)
          continue
        }
        const marks = []
        for (const sender of [...link.dirty].slice(0, 400)) {
          const m = sender === this.id ? this.#ownMark() : this.#order.mark(sender)
          link.dirty.delete(sender)
          const ask = link.asks.delete(sender)
          if (m !== undefined) marks.push({ ...m, ask })
        }
        if (marks.length > 0) await write(link.stream, encodeRepair({ told: marks }), repairTimeout)
        link.retry = 50
      } catch (err) {
        if (link.stream !== undefined) reset(link.stream, err)
        link.stream = undefined // the next one begins with all there is
        await new Promise((resolve) => setTimeout(resolve, link.retry))
        link.retry = Math.min(2 * link.retry, 5000)
      }
    }
    link.telling = false
  }

  /** Opens another stream when this one ends. @param {Link} link @param {Stream} stream */
  #watch (link, stream) {
    stream.addEventListener('close', () => {
      if (link.stream !== stream) return
      link.stream = undefined
      setTimeout(() => this.#tell(link), link.retry)
      link.retry = Math.min(2 * link.retry, 5000)
    })
  }

  /** Reads what a node tells and wants. @param {Stream} stream @param {PeerId} peer */
  async #serveRepair (stream, peer) {
    const id = peer.toString()
    /** @type {Link | undefined} */
    let link
    try {
      const frames = new Frames(stream, limits.marksBytes + limits.envelope, repairTimeout)
      link = await this.#admit(id)
      if (link.inbound === 8) malformed('too many streams')
      link.inbound++
      for (let first = true, b; (b = await frames.next()) !== undefined; first = false) {
        const { told, want } = decodeRepair(b)
        if (told !== undefined) this.#told(link, told, first)
        if (want !== undefined) await this.#answer(stream, want)
      }
      await stream.close()
    } catch (err) {
      reset(stream, err)
    } finally {
      if (link !== undefined) link.inbound--
    }
  }

  /** Waits until a peer is a node on the topic: its stream may overtake its announcement. @param {string} id */
  async #admit (id) {
    const end = performance.now() + repairTimeout
    for (;;) {
      const link = this.#nodes.get(id)
      if (link !== undefined) return link
      if (performance.now() > end || this.closed) throw new NotConnectedError('smokesignal: the peer is not a node on the topic')
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
  }

  /** @param {Link} link @param {Mark[]} marks @param {boolean} greeting */
  #told (link, marks, greeting) {
    const now = performance.now()
    if (this.#nodes.get(link.id) !== link) return
    for (const m of marks) {
      if (m.sender === this.id && compareSessions(m, this.session) === 0) this.#window.acked(now, link.id, m.next - m.withheld)
    }
    this.#order.told(now, link.id, marks.filter((m) => m.sender !== this.id), greeting)
    for (const m of marks) if (m.ask && (m.sender === this.id || this.#order.mark(m.sender) !== undefined)) this.#soil(link, m.sender)
    if (greeting && !link.greeted) {
      link.greeted = true
      clearTimeout(link.timer)
      if (link.up) this.#window.join(now, link.id) // it came late
      this.#up(link)
    }
    this.#wake()
    this.#publish()
  }

  /** Writes what is here of what a node wants. @param {Stream} stream @param {Want} want */
  async #answer (stream, want) {
    let size = 0
    if (want.sender === this.id && compareSessions(want, this.session) === 0 && this.#key !== undefined) {
      this.#expire()
      for (const o of this.#originals.filter((o) => o.end > want.from && o.first < want.to)) {
        o.signed ??= await signOriginal(this.#key, this.topic, o.data)
        if (size > 0 && size + o.signed.length > limits.answerBytes) break
        size += o.signed.length
        await write(stream, encodeRepair({ original: o.signed }), repairTimeout)
      }
    }
    const mark = want.sender === this.id ? this.#ownMark() : this.#order.mark(want.sender)
    await write(stream, encodeRepair({ end: mark === undefined ? [] : [mark] }), repairTimeout)
  }

  // --- broadcasts that go

  /** @type {Uint8Array[]} */
  #pending = [] // encoded events
  #pendingBytes = 0
  /** @typedef {{ event: Uint8Array, resolve: () => void, reject: (err: Error) => void }} Waiter */
  /** @type {Waiter[]} */
  #waiters = []
  #publishing = false
  #sent = 1n // the number after the last event that was published
  /** @type {Array<{ first: bigint, end: bigint, data: Uint8Array, at: number, signed?: Uint8Array }>} */
  #originals = []
  #kept = 0 // bytes

  /**
   * Sends an event to everybody in the network. It resolves when the event is queued:
   * at once, unless the nodes cannot keep up. Everybody gets the events of this leaf
   * in the order of these calls. It rejects with a NotConnectedError as long as there
   * was never a node; later, what is emitted while there is none is kept for 60 s.
   * @param {string} name @param {...unknown} args
   */
  async emit (name, ...args) {
    const event = newEvent(name, args)
    if (this.closed) throw new ClosedError('smokesignal: closed')
    if (!this.#met) throw new NotConnectedError('smokesignal: there was never a node')
    if (this.#waiters.length > 0 || (this.#pendingBytes > 0 && this.#pendingBytes + event.length > 1 << 20)) {
      await new Promise((resolve, reject) => { this.#waiters.push({ event, resolve: () => resolve(undefined), reject }) })
      return
    }
    this.#append(event)
    this.#publish()
  }

  /** @param {Uint8Array} event */
  #append (event) {
    this.#pending.push(event)
    this.#pendingBytes += event.length
  }

  /** Publishes what waits, batch by batch, as long as the nodes have room. */
  async #publish () {
    if (this.#publishing) return
    this.#publishing = true
    await undefined // what is emitted together goes together
    while (this.#pending.length > 0 && this.#window.room && !this.closed) {
      let n = 0
      for (let size = 0; n < this.#pending.length && n < limits.batchEvents; n++) {
        size += this.#pending[n].length + 6
        if (n > 0 && size > 128 << 10) break
      }
      const events = this.#pending.splice(0, n)
      for (const e of events) this.#pendingBytes -= e.length
      while (this.#waiters.length > 0 && this.#pendingBytes + this.#waiters[0].event.length <= 1 << 20) {
        const w = /** @type {Waiter} */ (this.#waiters.shift())
        this.#append(w.event)
        w.resolve()
      }
      const first = this.#sent
      const end = first + BigInt(n)
      const data = encodeBatch({ ...this.session, first, events })
      const now = performance.now()
      this.#sent = end
      this.#originals.push({ first, end, data, at: now })
      this.#kept += data.length
      this.#expire()
      this.#window.took(now, end, data.length)
      try {
        await this.#pubsub.publish(this.topic, data)
      } catch {} // nobody is there: it is kept, and asked for
    }
    this.#publishing = false
    this.#wake()
  }

  #expire () {
    const now = performance.now()
    while (this.#originals.length > 0 && (this.#kept > 16 << 20 || now - this.#originals[0].at > 60_000)) {
      this.#kept -= /** @type {{ data: Uint8Array }} */ (this.#originals.shift()).data.length
    }
  }

  // --- direct events

  /** @type {Map<string, Lane>} */
  #lanes = new Map()

  /** @param {string} id */
  lane (id) {
    let lane = this.#lanes.get(id)
    if (lane === undefined) this.#lanes.set(id, lane = new Lane(this, id))
    return lane
  }

  /** @param {Lane} lane */
  laneIdle (lane) {
    if (lane.idle && this.#lanes.get(lane.id) === lane) this.#lanes.delete(lane.id)
  }

  /**
   * The streams that peers have opened, read one after the other.
   * @type {Map<string, { count: number, last: { session: string, serial: bigint, done: Promise<void>, retire: () => void } | undefined, session: string, call: bigint }>}
   */
  #inbound = new Map()

  /** Reads the events and calls of a peer. @param {Stream} stream @param {PeerId} peer */
  async #serveDirect (stream, peer) {
    const id = peer.toString()
    let from = this.#inbound.get(id)
    if (from === undefined) {
      // What is remembered of the calls of those who are gone is bounded.
      for (const [old, x] of this.#inbound) {
        if (this.#inbound.size < 1024) break
        if (x.count === 0) this.#inbound.delete(old)
      }
      this.#inbound.set(id, from = { count: 0, last: undefined, session: '', call: 0n })
    }
    const { promise: done, resolve } = /** @type {PromiseWithResolvers<void>} */ (Promise.withResolvers())
    from.count++
    let self
    try {
      if (from.count > 4) malformed('too many streams')
      const frames = new Frames(stream, limits.hello, helloTimeout)
      const first = await frames.next(helloTimeout)
      if (first === undefined) malformed('a stream without a hello')
      const hello = decodeHello(/** @type {Uint8Array} */ (first))
      if (hello.network !== this.network) throw new NotConnectedError(`smokesignal: the peer is in the network "${hello.network}"`)
      const session = hexOf(hello.session)
      const older = from.last
      if (older?.session === session && older.serial > hello.serial && hello.serial !== 0n) malformed('a stream that is older than another one')
      self = { session, serial: hello.serial, done, retire: () => frames.hurry(1000) }
      from.last = self
      if (older !== undefined) {
        older.retire()
        await older.done
      }
      if (from.session !== session) [from.session, from.call] = [session, 0n]
      frames.setLimit(limits.event + limits.envelope)
      frames.timeout = frameTimeout
      for (let b; (b = await frames.next()) !== undefined;) {
        const found = decodeDirect(b)
        if (found === undefined) continue
        if (this.closed) throw new ClosedError('smokesignal: closed')
        const { event, call } = found
        if (call === 0n) {
          await this.#directs.call(id, event)
          await this.#of.get(id)?.call(id, event)
        } else if (call <= from.call) {
          await write(stream, encodeAnswer({ id: call, status: statuses.repeated }))
        } else {
          from.call = call
          await write(stream, encodeAnswer(await this.#call(id, event, call)))
        }
      }
      await stream.close()
    } catch (err) {
      reset(stream, err)
    } finally {
      from.count--
      if (from.last === self) from.last = undefined
      resolve()
    }
  }

  /**
   * Runs the handler of a call.
   * @param {string} from @param {Event} event @param {bigint} id
   */
  async #call (from, { name, args }, id) {
    const f = this.#answers.get(name)
    if (f === undefined) return { id, status: statuses.noHandler }
    const values = args.map(decodeArg)
    const bad = values.findIndex((v) => v instanceof Undecodable)
    if (bad >= 0) return { id, status: statuses.badArgument, error: `argument ${bad + 1} cannot be read here` }
    try {
      const result = await f(from, ...values)
      return { id, event: newEvent(name, result === undefined ? [] : [result]) }
    } catch (err) {
      return { id, status: statuses.failed, error: asError(err).message }
    }
  }
}
