import { cleanName, shortID } from './text.js'

/** How long after a roll call a silent one counts as gone, in ms. */
export const absence = 5000
const maxPeople = 1000 // what strangers can make us remember

/**
 * Who is here, and under what names, known by their greetings. It reads no clock: now
 * is in ms, from anywhere.
 */
export class Roster {
  /** @type {Map<string, { name: string, claimed: string, heard: number }>} by id */
  #people = new Map()
  /** @type {number | undefined} the last roll call that is not settled */
  #called

  /** @param {string} self the name of this user, which nobody else gets */
  constructor (self) { this.self = self }

  /**
   * Notes a sign of life, with the name that is claimed or none. Returns how somebody
   * is shown: under that name, with the short id after it if somebody else has the name,
   * or under the short id while no name is known; and whether that is news.
   * @param {string} id @param {unknown} claimed @param {number} now
   * @returns {{ name: string, news: boolean }}
   */
  heard (id, claimed, now) {
    const wanted = cleanName(claimed)
    const known = this.#people.get(id)
    if (known !== undefined) {
      known.heard = now
      if (wanted === '' || wanted === known.claimed) return { name: known.name, news: false }
      this.#people.delete(id)
    }
    if (this.#people.size >= maxPeople) return { name: shortID(id), news: false }
    let name = wanted === '' ? shortID(id) : wanted
    if (this.#taken(name)) name += '-' + shortID(id)
    while (this.#taken(name)) name += '-' // somebody took that one on purpose
    this.#people.set(id, { name, claimed: wanted, heard: now })
    return { name, news: true }
  }

  /** @param {string} name */
  #taken (name) {
    const same = (/** @type {string} */ other) => other.toLowerCase() === name.toLowerCase()
    return same(this.self) || [...this.#people.values()].some((p) => same(p.name))
  }

  /** Returns the person with a name or a short id. @param {string} name */
  find (name) {
    for (const [id, p] of this.#people) {
      if (p.name.toLowerCase() === name.toLowerCase() || shortID(id) === name) return { id, name: p.name }
    }
    return undefined
  }

  /** Strikes somebody, and returns the name if there was one. @param {string} id */
  left (id) {
    const known = this.#people.get(id)
    this.#people.delete(id)
    return known?.name
  }

  /** Notes that everybody was asked to answer. @param {number} now */
  call (now) { this.#called = now }

  /**
   * Strikes those who did not answer the last roll call, once they had time for it.
   * Returns their names, sorted.
   * @param {number} now
   */
  settle (now) {
    const called = this.#called
    if (called === undefined || now - called < absence) return []
    this.#called = undefined
    const gone = []
    for (const [id, p] of this.#people) {
      if (p.heard < called) {
        gone.push(p.name)
        this.#people.delete(id)
      }
    }
    return gone.sort()
  }

  clear () {
    this.#people.clear()
    this.#called = undefined
  }

  /** Everybody else's name, sorted. */
  get names () {
    return [...this.#people.values()].map((p) => p.name).sort((a, b) => a.toLowerCase() < b.toLowerCase() ? -1 : 1)
  }
}
