// Handlers of events, and callbacks.

import { checkName, decodeArg } from './events.js'

/** How long the handlers of one sender may keep everything else from running, in ms. */
export const maxBusy = 20

/**
 * Lets everything run that is due. It does not use a timer, because browsers delay the
 * timers of hidden pages.
 */
export const yieldToOthers = () => new Promise((resolve) => {
  const { port1, port2 } = new MessageChannel()
  port1.onmessage = () => {
    port1.close()
    resolve(undefined)
  }
  port2.postMessage(0)
})

/** @import { Event } from './events.js' */

/**
 * A function that is called with the sender and the arguments of an event. If it returns a
 * promise, the next event of the same sender waits for it.
 * @typedef {(from: string, ...args: any[]) => unknown} Handler
 */

/** The handlers of events, by name. */
export class Handlers {
  /** @type {Map<string, Set<Handler>>} */
  #byName = new Map()

  /** @param {(err: unknown) => void} onError called with the errors that handlers throw */
  constructor (onError) { this.onError = onError }

  get empty () { return this.#byName.size === 0 }

  /** @param {string} name or '*' for all events @param {Handler} f @returns {() => void} removes the handler */
  on (name, f) {
    if (name !== '*') checkName(name)
    let list = this.#byName.get(name)
    if (list === undefined) this.#byName.set(name, list = new Set())
    list.add(f)
    return () => {
      list.delete(f)
      // After the last handler was removed, the name may have been registered anew.
      if (list.size === 0 && this.#byName.get(name) === list) this.#byName.delete(name)
    }
  }

  /** Calls the handlers of an event one after the other. @param {string} from @param {Event} event */
  async call (from, event) {
    const named = this.#byName.get(event.name)
    const all = this.#byName.get('*')
    if (named === undefined && all === undefined) return // decoding the arguments would be in vain
    const args = event.args.map(decodeArg)
    for (const f of [...named ?? []]) await this.#run(() => f(from, ...args))
    for (const f of [...all ?? []]) await this.#run(() => f(from, event.name, ...args))
  }

  /** @param {() => unknown} f */
  async #run (f) {
    try {
      await f()
    } catch (err) {
      this.onError(err)
    }
  }
}

/** Callbacks of one kind, called one after the other. */
export class Callbacks {
  /** @type {Set<(...args: any[]) => unknown>} */
  #list = new Set()

  /** @param {(err: unknown) => void} onError called with the errors that callbacks throw */
  constructor (onError) { this.onError = onError }

  /** @param {(...args: any[]) => unknown} f @returns {() => void} removes the callback */
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
        this.onError(err)
      }
    }
  }
}
