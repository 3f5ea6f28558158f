import { peerIdFromMultihash } from '@libp2p/peer-id'
import * as Digest from 'multiformats/hashes/digest'
import { ClosedError } from './errors.js'
import { idBytes } from './marks.js'
import { hexOf } from './protobuf.js'

/** @typedef {import('@libp2p/interface').Libp2p<any>} Libp2p */
/** @import { PeerId } from '@libp2p/interface' */
/** @import { PrivateKey } from '@libp2p/interface' */
/** @import { Stream } from '@libp2p/interface' */
/** @import { Session } from './batches.js' */

/**
 * Counters of what could not be used.
 * @typedef {object} Stats
 * @property {number} raw messages on the topic that are not batches
 * @property {number} forged messages that their author has not signed
 * @property {number} malformed events that could not be decoded
 * @property {number} duplicates batches that had nothing new
 * @property {bigint} lost events that were reported as gaps
 * @property {bigint} overrun events that were dropped because the handlers are too slow
 * @property {number} repaired batches that were fetched from a node
 */

let lastStart = 0n

/** @returns {Session} */
function newSession () {
  const now = BigInt(Date.now())
  // Two sessions in one ms would have no order.
  lastStart = now > lastStart ? now : lastStart + 1n
  return { session: hexOf(crypto.getRandomValues(new Uint8Array(8))), start: lastStart }
}

/** What the parts of a leaf share. */
export class Context {
  #closing = new AbortController()
  session = newSession()
  /** @type {Stats} */
  stats = { raw: 0, forged: 0, malformed: 0, duplicates: 0, lost: 0n, overrun: 0n, repaired: 0 }

  /** @param {{ libp2p: Libp2p, pubsub: any, network: string, privateKey: PrivateKey | undefined, onError: (err: unknown) => void }} config */
  constructor ({ libp2p, pubsub, network, privateKey, onError }) {
    this.libp2p = libp2p
    this.pubsub = pubsub
    this.network = network
    this.topic = 'smokesignal/' + network
    this.privateKey = privateKey
    this.onError = onError
    this.id = libp2p.peerId.toString()
  }

  get closed () { return this.#closing.signal.aborted }

  /** Aborted when the leaf is closed. */
  get signal () { return this.#closing.signal }

  close () { this.#closing.abort(new ClosedError('smokesignal: closed')) }

  checkOpen () {
    if (this.closed) throw new ClosedError('smokesignal: closed')
  }

  /**
   * Opens a stream, to a peer that is connected or has addresses that libp2p knows.
   * @param {string} id @param {string} protocol @param {number} timeout ms
   * @returns {Promise<Stream>}
   */
  async openStream (id, protocol, timeout) {
    const peer = peerIdFromMultihash(Digest.decode(idBytes(id)))
    const signal = AbortSignal.any([this.signal, AbortSignal.timeout(timeout)])
    const connection = this.libp2p.getConnections(peer).find((c) => c.status === 'open')
    return connection === undefined
      ? await this.libp2p.dialProtocol(peer, protocol, { signal })
      : await connection.newStream(protocol, { signal })
  }
}
