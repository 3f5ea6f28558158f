import { cleanName, shortID } from './text.js'

/** How long after a roll call a person who has not answered counts as gone, in ms. */
export const absence = 5000
const maxPeople = 1000 // because any peer can send greetings

/**
 * The people who are here, and their names, as known from their greetings. It reads no clock:
 * the caller passes the time as `now`, in ms.
 */
export class Roster {
  /** @type {Map<string, { name: string, claimed: string, heard: number }>} by id */
  #people = new Map()
  /** @type {number | undefined} the time of the last roll call, until it is settled */
  #called

  /** @param {string} self the name of this user, under which nobody else is shown */
  constructor (self) { this.self = self }

  /**
   * Records a sign of life of a person, with the name that the person claims, if any. It
   * returns the name under which the person is shown, and whether that is new: the claimed
   * name, with the short id after it if somebody else has that name; or the short id, while no
   * name is known.
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
    if (this.#isUsed(name)) name += '-' + shortID(id)
    while (this.#isUsed(name)) name += '-' // somebody claims that name on purpose
    this.#people.set(id, { name, claimed: wanted, heard: now })
    return { name, news: true }
  }

  /** @param {string} name */
  #isUsed (name) {
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

  /** Removes a person, and returns the name if there was one. @param {string} id */
  left (id) {
    const known = this.#people.get(id)
    this.#people.delete(id)
    return known?.name
  }

  /** Records a roll call. @param {number} now */
  call (now) { this.#called = now }

  /**
   * Removes the people who have not answered the last roll call, once they had time for
   * it. It returns their names, sorted.
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

  /** The names of everybody, sorted. */
  get names () {
    return [...this.#people.values()].map((p) => p.name).sort((a, b) => a.toLowerCase() < b.toLowerCase() ? -1 : 1)
  }
}
