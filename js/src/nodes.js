// The nodes of a leaf: it dials them, finds out which of its peers are nodes on the topic,
// and hangs up on those that do not work (docs/wire.md, A leaf).

import { multiaddr } from '@multiformats/multiaddr'
import { protocols } from './limits.js'
import { asError } from './streams.js'

/** @import { PeerId } from '@libp2p/interface' */
/** @import { Stream } from '@libp2p/interface' */
/** @import { Multiaddr } from '@multiformats/multiaddr' */
/** @import { Context } from './context.js' */

/**
 * A place at which a node is to be dialed.
 * @typedef {object} Target
 * @property {string | undefined} id of the node, if it is known
 * @property {Multiaddr[]} addrs
 * @property {number} failures dials since the node was ready
 * @property {number} next when it may be dialed again
 * @property {boolean} dialing
 */

/**
 * What happens to nodes.
 * @typedef {object} NodeChanges
 * @property {(id: string) => void} onTopic the node is on the topic
 * @property {(id: string) => void} gone the node was on the topic, and is not any more
 * @property {(id: string) => void} heard data arrived from the node
 * @property {() => void} firstReady
 * @property {() => void} lastGone
 * @property {(peers: string[]) => void} changed the list of ready nodes is now this one
 */

const dialPauses = [1000, 2000, 4000, 8000] // ms between dials of one target
const dialTimeout = 5000
// How long a connected node may be missing on the topic before it is dialed anew, in ms.
const topicTimeout = 10_000
// Pubsub does not report a stream that broke, so the nodes are looked at every checkInterval
// ms; and more often while one is connected but not on the topic, as it may announce the topic
// before this leaf has a stream to it.
const checkInterval = 5000
const offTopicInterval = 100

const isPubsub = (/** @type {Stream} */ s) => /^\/(floodsub|meshsub)\//.test(s.protocol)

export class Nodes {
  #context
  #changes
  #maxNodes
  /** @type {Target[]} */
  #targets = []
  /** @type {Map<string, { ready: boolean }>} */
  #nodes = new Map() // on the topic
  /** @type {Map<string, ReturnType<typeof setTimeout>>} */
  #offTopic = new Map() // nodes that are connected but not on the topic
  /** @type {WeakSet<Stream>} */
  #watched = new WeakSet() // streams of pubsub on which data is a sign of life
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #dialTimer
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #checkTimer
  /** Why the last dial failed, or ''. */
  problem = ''

  /** @param {Context} context @param {number} maxNodes @param {NodeChanges} changes */
  constructor (context, maxNodes, changes) {
    this.#context = context
    this.#maxNodes = maxNodes
    this.#changes = changes
  }

  /** The ids of the nodes that are ready. */
  get ready () { return [...this.#nodes].filter(([, n]) => n.ready).map(([id]) => id) }

  /** @param {string} text a multiaddr @param {string} [id] of the node; by default it is in the multiaddr, if at all */
  addAddress (text, id) {
    const addr = multiaddr(text)
    const known = id ?? addr.getComponents().findLast((c) => c.name === 'p2p')?.value
    let target = this.#targets.find((t) => t.id !== undefined && t.id === known)
    if (target === undefined) this.#targets.push(target = { id: known, addrs: [], failures: 0, next: 0, dialing: false })
    target.addrs.push(known !== undefined && !text.includes('/p2p/') ? addr.encapsulate(`/p2p/${known}`) : addr)
  }

  start () {
    for (const peer of this.#context.libp2p.getPeers()) this.update(peer)
    this.#dialTimer = setTimeout(() => this.#dial(), 0)
  }

  close () {
    clearTimeout(this.#dialTimer)
    clearTimeout(this.#checkTimer)
    for (const timer of this.#offTopic.values()) clearTimeout(timer)
    for (const id of [...this.#nodes.keys()]) this.#remove(id)
  }

  /** Dials the targets that are due, while there are too few nodes. */
  #dial () {
    if (this.#context.closed) return
    clearTimeout(this.#dialTimer)
    const now = performance.now()
    let next = Infinity
    let count = this.#nodes.size + this.#targets.filter((t) => t.dialing).length
    for (const t of this.#targets) {
      if (t.dialing || (t.id !== undefined && (this.#nodes.has(t.id) || this.#offTopic.has(t.id)))) continue
      // Two targets are one node if an address without an id turned out to be that node's.
      if (t.id !== undefined && this.#targets.some((x) => x.dialing && x.id === t.id)) continue
      if (count >= this.#maxNodes) break
      if (t.next > now) {
        next = Math.min(next, t.next)
        continue
      }
      count++
      this.#dialTarget(t)
    }
    if (next < Infinity) this.#dialTimer = setTimeout(() => this.#dial(), next - now)
  }

  /** @param {Target} t */
  async #dialTarget (t) {
    const { libp2p, signal } = this.#context
    t.dialing = true
    try {
      const c = await libp2p.dial(t.addrs, { signal: AbortSignal.any([signal, AbortSignal.timeout(dialTimeout)]) })
      t.id = c.remotePeer.toString()
      // With two connections to one node, pubsub may write on one and read on the other. This
      // one is closed, because pubsub does not use it before identify has run.
      if (libp2p.getConnections(c.remotePeer).some((x) => x !== c && x.status === 'open' && x.limits === undefined)) {
        c.abort(new Error('there is a connection already'))
      }
      await this.update(c.remotePeer)
    } catch (err) {
      this.problem = asError(err).message
    }
    t.dialing = false
    t.next = performance.now() + dialPauses[Math.min(t.failures++, dialPauses.length - 1)]
    this.#dial()
  }

  /** Brings what is known of a peer up to date. @param {PeerId} peer */
  async update (peer) {
    try {
      if (!this.#context.closed) await this.#classify(peer)
    } catch {} // libp2p was stopped
  }

  /** Updates the nodes at intervals. */
  #check () {
    clearTimeout(this.#checkTimer)
    if (this.#context.closed || (this.#nodes.size === 0 && this.#offTopic.size === 0)) return
    this.#checkTimer = setTimeout(() => {
      for (const peer of this.#context.libp2p.getPeers()) {
        const id = peer.toString()
        if (this.#nodes.has(id) || this.#offTopic.has(id)) this.update(peer)
      }
      this.#check()
    }, this.#offTopic.size > 0 ? offTopicInterval : checkInterval)
  }

  /** @param {PeerId} peer */
  #streams (peer) { return this.#context.libp2p.getConnections(peer).filter((c) => c.status === 'open').flatMap((c) => c.streams) }

  /**
   * Reports whether a peer has announced the topic, and this leaf has a stream to it. The
   * stream is looked at too, because a peer that lost this leaf's stream may announce the topic
   * again, but pubsub does not open another stream to it.
   * @param {PeerId} peer
   */
  #isOnTopic (peer) {
    const { pubsub, topic } = this.#context
    return pubsub.getSubscribers(topic).some((/** @type {PeerId} */ p) => p.equals(peer)) &&
      this.#streams(peer).some((s) => isPubsub(s) && s.direction === 'outbound' && s.status === 'open' && s.writeStatus === 'writable')
  }

  /** @param {PeerId} peer */
  async #classify (peer) {
    const { libp2p, topic } = this.#context
    const id = peer.toString()
    const connected = libp2p.getConnections(peer).length > 0
    if (!connected || !this.#isOnTopic(peer)) this.#remove(id)
    if (!connected) {
      clearTimeout(this.#offTopic.get(id))
      if (this.#offTopic.delete(id)) this.#dial()
      return
    }
    let spoken
    try {
      spoken = (await libp2p.peerStore.get(peer)).protocols
    } catch {
      return // identify has not run yet; its event brings us back
    }
    // Only nodes speak the overlay. The peer may have gone, or the leaf closed, meanwhile.
    if (this.#context.closed || !spoken.includes(protocols.overlay) || libp2p.getConnections(peer).length === 0) return
    if (this.#isOnTopic(peer)) {
      clearTimeout(this.#offTopic.get(id))
      this.#offTopic.delete(id)
      this.#add(id)
      this.#watchStreams(id, peer)
    } else if (!this.#offTopic.has(id)) {
      // Either it is about to announce the topic, or it is in another network, or its stream
      // broke, which no pubsub in JavaScript repairs.
      this.#offTopic.set(id, setTimeout(() => {
        this.#offTopic.delete(id)
        this.problem = `${id} is not on the topic ${topic}`
        libp2p.hangUp(peer).catch(() => {}).then(() => this.#dial())
      }, topicTimeout))
      this.#check()
    }
  }

  /** Reports all data of pubsub that a node sends. @param {string} id @param {PeerId} peer */
  #watchStreams (id, peer) {
    for (const s of this.#streams(peer)) {
      if (!isPubsub(s) || s.direction !== 'inbound' || this.#watched.has(s)) continue
      this.#watched.add(s)
      s.addEventListener('message', () => this.#changes.heard(id))
    }
  }

  /** @param {string} id */
  #add (id) {
    if (this.#nodes.has(id)) return
    this.#nodes.set(id, { ready: false })
    this.#changes.onTopic(id)
    this.#check()
  }

  /** Counts a node on the topic as connected. @param {string} id */
  setReady (id) {
    const node = this.#nodes.get(id)
    if (node === undefined || node.ready) return
    const first = this.ready.length === 0
    node.ready = true
    for (const t of this.#targets) if (t.id === id) t.failures = 0
    if (first) this.#changes.firstReady()
    this.#changes.changed(this.ready)
  }

  /** Closes the connections to a node that does not answer, and dials it again. @param {string} id */
  abort (id) {
    this.problem = `${id} does not answer`
    for (const c of this.#context.libp2p.getConnections()) {
      if (c.remotePeer.toString() === id) c.abort(new Error('smokesignal: the node does not answer'))
    }
    this.#remove(id)
  }

  /** @param {string} id */
  #remove (id) {
    const node = this.#nodes.get(id)
    if (node === undefined) return
    this.#nodes.delete(id)
    this.#changes.gone(id)
    if (node.ready) {
      const { ready } = this
      if (ready.length === 0) this.#changes.lastGone()
      this.#changes.changed(ready)
    }
    this.#dial()
  }
}
