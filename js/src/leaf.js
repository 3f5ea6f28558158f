import { Broadcasts } from './broadcasts.js'
import { Context } from './context.js'
import { Directs } from './directs.js'
import { ClosedError, NotConnectedError } from './errors.js'
import { newEvent } from './events.js'
import { Callbacks } from './handlers.js'
import { limits, protocols } from './limits.js'
import { Nodes } from './nodes.js'
import { Peer } from './peer.js'
import { resetStream } from './streams.js'
import { parseTicket } from './tickets.js'

/** @import { Stream } from '@libp2p/interface' */
/** @import { Connection } from '@libp2p/interface' */
/** @import { PeerId } from '@libp2p/interface' */
/** @import { Handler } from './handlers.js' */

/**
 * @typedef {object} JoinOptions
 * @property {import('@libp2p/interface').Libp2p<any>} libp2p started, with the services identify and pubsub
 * @property {string} [network] the name of the network; by default the ticket's, or 'default'
 * @property {string[]} [addrs] multiaddrs of nodes; two or three nodes are enough
 * @property {string} [ticket] a node's ticket
 * @property {import('@libp2p/interface').PrivateKey} [privateKey] the key of the libp2p node, which signs broadcasts that are repaired; by default the one that libp2p holds
 * @property {number} [maxNodes] how many nodes to connect to, 3 by default and at most
 * @property {number} [callTimeout] how long a call may take, in ms, 10000 by default
 * @property {(err: unknown) => void} [onError] called with the errors that handlers throw; by default they are logged to the console
 */

/**
 * A range of a sender's broadcasts that are lost: the numbers from `from` to below `to` of
 * one of its sessions.
 * @typedef {{ sender: string, session: string, from: bigint, to: bigint }} Gap
 */

// How long close waits for emitted events to arrive, and then for callbacks to return, in ms.
const closeTimeout = 2000

/**
 * Joins a network, and resolves to the leaf, which connects to nodes meanwhile. Handlers that
 * are registered before the next await miss nothing.
 * @param {JoinOptions} options
 * @returns {Promise<Leaf>}
 */
export async function join (options) {
  const leaf = new Leaf(options)
  await leaf.start()
  return leaf
}

/** A leaf of a network. Use join to make one. */
export class Leaf {
  #context
  #callTimeout
  #nodes
  #broadcasts
  #directs
  #connectCallbacks
  #disconnectCallbacks
  #peersCallbacks
  #everConnected = false
  #lastCallback = Promise.resolve() // callbacks about nodes run one after the other
  /** @type {Set<Stream>} */
  #served = new Set() // streams that peers have opened
  /** @type {Array<() => void>} */
  #removeListeners = []

  /** @param {JoinOptions} options @internal */
  constructor ({ libp2p, network, addrs = [], ticket, privateKey, maxNodes = 3, callTimeout = 10_000, onError }) {
    const parsed = ticket === undefined ? undefined : parseTicket(ticket)
    if (parsed !== undefined && network !== undefined && parsed.network !== network) {
      throw new TypeError(`smokesignal: the ticket is for the network "${parsed.network}", not for "${network}"`)
    }
    network ??= parsed?.network ?? 'default'
    if (new TextEncoder().encode(network).length > limits.network) throw new TypeError(`smokesignal: a network name may have at most ${limits.network} bytes`)
    const { pubsub } = /** @type {any} */ (libp2p.services)
    if (typeof pubsub?.subscribe !== 'function') throw new TypeError('smokesignal: libp2p needs the service pubsub: floodsub() or gossipsub()')
    if (pubsub.globalSignaturePolicy === 'StrictNoSign') throw new TypeError('smokesignal: pubsub must sign messages, but its globalSignaturePolicy is StrictNoSign')
    privateKey ??= /** @type {any} */ (libp2p).components?.privateKey
    onError ??= (err) => console.error('smokesignal: a handler failed:', err)

    this.#callTimeout = callTimeout
    this.#connectCallbacks = new Callbacks(onError)
    this.#disconnectCallbacks = new Callbacks(onError)
    this.#peersCallbacks = new Callbacks(onError)
    this.#context = new Context({ libp2p, pubsub, network, privateKey, onError })
    this.#directs = new Directs(this.#context)
    this.#broadcasts = new Broadcasts(this.#context, {
      ready: (id) => this.#nodes.setReady(id),
      dead: (id) => this.#nodes.abort(id)
    })
    this.#nodes = new Nodes(this.#context, Math.max(1, Math.min(3, maxNodes)), {
      onTopic: (id) => this.#broadcasts.addNode(id),
      gone: (id) => this.#broadcasts.removeNode(id),
      heard: (id) => this.#broadcasts.heard(id),
      firstReady: () => {
        this.#everConnected = true
        this.#queueCallback(() => this.#connectCallbacks.call())
      },
      lastGone: () => this.#queueCallback(() => this.#disconnectCallbacks.call()),
      changed: (peers) => this.#queueCallback(() => this.#peersCallbacks.call(peers))
    })
    for (const a of addrs) this.#nodes.addAddress(a)
    for (const a of parsed?.addrs ?? []) this.#nodes.addAddress(a, parsed?.id)
  }

  /** @internal */
  async start () {
    const { libp2p, pubsub, topic } = this.#context
    await libp2p.handle(protocols.repair, this.#server((stream, peer) => this.#broadcasts.serve(stream, peer)), { maxInboundStreams: 8 })
    await libp2p.handle(protocols.events, this.#server((stream, peer) => this.#directs.serve(stream, peer)), { maxInboundStreams: 8 })
    this.#listen(pubsub, 'message', (evt) => this.#broadcasts.receive(evt.detail))
    this.#listen(pubsub, 'subscription-change', (evt) => this.#nodes.update(evt.detail.peerId))
    this.#listen(libp2p, 'peer:identify', (evt) => this.#nodes.update(evt.detail.peerId))
    this.#listen(libp2p, 'peer:update', (evt) => this.#nodes.update(evt.detail.peer.id))
    this.#listen(libp2p, 'peer:disconnect', (evt) => this.#nodes.update(evt.detail))
    pubsub.subscribe(topic)
    this.#nodes.start()
  }

  /** @param {any} target @param {string} name @param {(evt: any) => void} f */
  #listen (target, name, f) {
    const listener = (/** @type {any} */ evt) => {
      try {
        f(evt)
      } catch (err) {
        this.#context.onError(err)
      }
    }
    target.addEventListener(name, listener)
    this.#removeListeners.push(() => target.removeEventListener(name, listener))
  }

  /**
   * @param {(stream: Stream, peer: PeerId) => Promise<void>} serve resolves when the stream has ended
   * @returns {(stream: Stream, connection: Connection) => void}
   */
  #server (serve) {
    return (stream, connection) => {
      if (this.#context.closed) return resetStream(stream, new ClosedError('smokesignal: closed'))
      this.#served.add(stream)
      serve(stream, connection.remotePeer).finally(() => this.#served.delete(stream))
    }
  }

  /** Runs a callback after those before it. @param {() => unknown} f */
  #queueCallback (f) { this.#lastCallback = this.#lastCallback.then(f).then(() => {}, this.#context.onError) }

  /** The libp2p node. */
  get libp2p () { return this.#context.libp2p }

  /** The peer id of this leaf. */
  get id () { return this.#context.id }

  get network () { return this.#context.network }

  /** The pubsub topic of the network. */
  get topic () { return this.#context.topic }

  get closed () { return this.#context.closed }

  /** Counters of what could not be used. */
  get stats () { return { ...this.#context.stats } }

  /** How many peers have handlers of their own, how many lanes to peers are open, and how many bytes wait for handlers. */
  get size () { return { ...this.#directs.size, queued: this.#broadcasts.deliveries.queued } }

  /** The ids of the nodes that this leaf is connected to. */
  get peers () { return this.#nodes.ready }

  get connected () { return this.peers.length > 0 }

  /**
   * Calls f(from, ...args) for each broadcast of this name. Broadcasts of one sender come
   * once, in the order in which it sent them, one after the other: if f returns a promise,
   * the next one waits for it. With '*', f(from, name, ...args) is called for all broadcasts.
   * @param {string} name @param {Handler} f @returns {() => void} removes the handler
   */
  on (name, f) { return this.#broadcasts.deliveries.handlers.on(name, f) }

  /**
   * Calls f as on does, for the events that any peer sends to this leaf only.
   * @param {string} name @param {Handler} f @returns {() => void} removes the handler
   */
  onDirect (name, f) { return this.#directs.on(name, f) }

  /**
   * Answers the calls of this name with the result of f(from, ...args): undefined is no
   * result, and an error that f throws is sent to the caller as text.
   * @param {string} name @param {Handler} f @returns {() => void} removes the handler
   */
  handle (name, f) { return this.#directs.handle(name, f) }

  /** Calls f when the first node is connected. @param {() => unknown} f @returns {() => void} removes the callback */
  onConnect (f) { return this.#connectCallbacks.add(f) }

  /** Calls f when the last node is gone. @param {() => unknown} f @returns {() => void} removes the callback */
  onDisconnect (f) { return this.#disconnectCallbacks.add(f) }

  /** Calls f with the ids of the nodes when one was added or is gone. @param {(peers: string[]) => unknown} f @returns {() => void} removes the callback */
  onPeers (f) { return this.#peersCallbacks.add(f) }

  /** Calls f in place of broadcasts that are lost. @param {(gap: Gap) => unknown} f @returns {() => void} removes the callback */
  onGap (f) { return this.#broadcasts.deliveries.gapCallbacks.add(f) }

  /** Calls f for messages on the topic that are not batches. Their author is proven. @param {(from: string, data: Uint8Array) => unknown} f @returns {() => void} removes the callback */
  onRaw (f) { return this.#broadcasts.deliveries.rawCallbacks.add(f) }

  /** Resolves when a node is connected. @param {{ signal?: AbortSignal }} [options] */
  async ready ({ signal } = {}) {
    this.#context.checkOpen()
    if (this.connected) return
    const { promise, resolve, reject } = /** @type {PromiseWithResolvers<void>} */ (Promise.withResolvers())
    const remove = this.onConnect(() => resolve())
    const closed = () => reject(new ClosedError('smokesignal: closed'))
    const aborted = () => reject(new NotConnectedError(`smokesignal: not connected${this.#nodes.problem === '' ? '' : ': ' + this.#nodes.problem}`))
    this.#context.signal.addEventListener('abort', closed)
    signal?.addEventListener('abort', aborted)
    if (signal?.aborted) aborted()
    try {
      await promise
    } finally {
      remove()
      this.#context.signal.removeEventListener('abort', closed)
      signal?.removeEventListener('abort', aborted)
    }
  }

  /**
   * Returns a handle on a peer, which need not be connected.
   * @param {string} id
   */
  peer (id) {
    return new Peer(id, {
      connected: () => this.peers.includes(id),
      emit: (name, args) => this.#directs.emit(id, name, args),
      call: (name, args) => this.#directs.call(id, name, args, this.#callTimeout),
      on: (name, f) => this.#directs.onPeer(id, name, f)
    })
  }

  /**
   * Broadcasts an event to the network. The promise resolves when the event is queued: at
   * once, unless the nodes cannot keep up. Every member receives the broadcasts of this leaf
   * in the order of these calls. Before the first node was connected, emit rejects with a
   * NotConnectedError. Later, events that are emitted without a connection are kept for 60 s.
   * @param {string} name @param {...unknown} args
   */
  async emit (name, ...args) {
    const event = newEvent(name, args)
    this.#context.checkOpen()
    if (!this.#everConnected) throw new NotConnectedError('smokesignal: no node was connected yet')
    await this.#broadcasts.publisher.add(event)
  }

  /**
   * Leaves the network. It gives emitted events two seconds to arrive, and running callbacks
   * as long to return. The libp2p node goes on.
   */
  async close () {
    const { libp2p, pubsub, topic } = this.#context
    if (this.closed) return
    const until = performance.now() + closeTimeout
    while (this.connected && !this.#broadcasts.publisher.isIdle && performance.now() < until) {
      await new Promise((resolve) => setTimeout(resolve, 5))
    }
    this.#context.close()
    for (const remove of this.#removeListeners) remove()
    this.#nodes.close()
    this.#broadcasts.close()
    this.#directs.close()
    try {
      pubsub.unsubscribe(topic)
    } catch {} // libp2p was stopped before
    await Promise.allSettled([libp2p.unhandle(protocols.repair), libp2p.unhandle(protocols.events)])
    for (const stream of this.#served) resetStream(stream, new ClosedError('smokesignal: closed'))
    // It does not wait for ever, because a callback may itself wait for close.
    let timer
    await Promise.race([this.#lastCallback, new Promise((resolve) => { timer = setTimeout(resolve, closeTimeout) })])
    clearTimeout(timer)
  }
}
