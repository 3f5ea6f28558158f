/** @import { Handler } from './handlers.js' */

/**
 * What a peer needs of its leaf.
 * @typedef {object} PeerAccess
 * @property {() => boolean} connected
 * @property {(name: string, args: unknown[]) => Promise<void>} emit
 * @property {(name: string, args: unknown[]) => Promise<any>} call
 * @property {(name: string, f: Handler) => () => void} on
 */

/** Another peer of the network, a node or a leaf. Leaf.peer returns it. */
export class Peer {
  #access

  /** @param {string} id @param {PeerAccess} access @internal */
  constructor (id, access) {
    this.id = id
    this.#access = access
  }

  /** Whether it is a node to which this leaf is connected. */
  get connected () { return this.#access.connected() }

  /**
   * Sends an event to this peer only. The promise resolves when the event was written. Events
   * and calls arrive in the order in which emit and call were called, at most once. It
   * rejects with a NotConnectedError if the peer cannot be reached.
   * @param {string} name @param {...unknown} args
   */
  async emit (name, ...args) { await this.#access.emit(name, args) }

  /**
   * Calls f for each event of this name that this peer sends to this leaf only.
   * @param {string} name or '*' for all @param {Handler} f @returns {() => void} removes the handler
   */
  on (name, f) { return this.#access.on(name, f) }

  /**
   * Calls the handler of this peer, and resolves to its result: undefined, one value, or an
   * array of several. It rejects with a RemoteError if the handler failed, with a
   * NoHandlerError or a BadArgumentError if it did not run, with a NotConnectedError if the
   * call was not sent, and with an UnknownOutcomeError if no answer came in time.
   * @param {string} name @param {...unknown} args
   * @returns {Promise<any>}
   */
  async call (name, ...args) { return await this.#access.call(name, args) }
}
