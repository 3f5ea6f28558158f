import { Roster, absence } from './roster.js'
import { clean, cleanName, pieces, shortID } from './text.js'

// The least time between two greetings, in ms, so that many questions at once get one answer.
const greetInterval = 400
// A phone that falls asleep says no goodbye, and no node reports its loss. So pages hold a
// roll call at this interval, in ms.
const rollCallInterval = 30_000

/**
 * How the chat is shown.
 * @typedef {object} View
 * @property {(name: string, text: string) => void} said shows a line of somebody else
 * @property {(text: string) => void} note shows a line about the chat itself
 * @property {(names: string[]) => void} here shows the names of everybody else who is here
 * @property {(connected: boolean) => void} connected shows whether there is a connection
 */

/** @typedef {import('smokesignal-leaf').Leaf} Leaf */

/**
 * The chat with everybody in the network, in pages and in the terminals of examples/chat. A
 * line is the broadcast "chat". The broadcast "hello" says a name, and may ask for the names
 * of the others, which answer with a "hello" that does not ask; so it is also a roll call.
 * "bye" says that somebody leaves.
 */
export class Chat {
  #leaf
  #view
  #roster
  /** @type {Array<() => void>} */
  #undo = []
  #greetedAt = -Infinity
  #owed = false
  #owedAsk = false
  #calledAt
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #greetTimer
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #settleTimer

  #now

  /**
   * @param {Leaf} leaf that was just joined
   * @param {string} name @param {View} view @param {() => number} [now] in ms
   */
  constructor (leaf, name, view, now = () => performance.now()) {
    this.#leaf = leaf
    this.#now = now
    this.#calledAt = now()
    this.#view = view
    this.name = cleanName(name) || shortID(leaf.id)
    this.#roster = new Roster(this.name)
    const timer = setInterval(() => this.#rollCall(), rollCallInterval / 3)
    this.#undo.push(
      leaf.on('chat', (from, text) => view.said(this.#nameOf(from), clean(text))),
      leaf.onDirect('tell', (from, text) => view.said(`${this.#nameOf(from)} → you`, clean(text))),
      leaf.on('hello', (from, greeting) => this.#greeted(from, greeting)),
      leaf.on('bye', (from) => this.#left(from)),
      leaf.onGap(({ sender, from, to }) => view.note(`${to - from} lines of ${this.#nameOf(sender)} were lost`)),
      leaf.onConnect(() => this.#connected()),
      leaf.onDisconnect(() => this.#disconnected()),
      () => clearInterval(timer)
    )
    view.here([])
  }

  /** Sends a line to everybody, in pieces if it is long. @param {string} text */
  async say (text) {
    for (const piece of pieces(text)) await this.#leaf.emit('chat', piece)
  }

  /**
   * Sends a line to one person only, as direct events. Those reach only the nodes to which
   * this page is connected, usually the server of the page: a browser cannot dial a terminal,
   * which listens on TCP and QUIC, nor another page, which does not listen. The error says so.
   * @param {string} name @param {string} text
   * @returns {Promise<string>} the name as it is shown
   */
  async sendTo (name, text) {
    const found = this.#roster.find(name)
    if (found === undefined) throw new Error(`nobody here is called ${cleanName(name)}`)
    try {
      for (const piece of pieces(text)) await this.#leaf.peer(found.id).emit('tell', piece)
    } catch (err) {
      if (/** @type {Error} */ (err).name !== 'NotConnectedError') throw err
      throw new Error(`no connection to ${found.name}: a page can send a private line only to the node that it is connected to. ` +
        'Say it to everybody, or use examples/chat in a terminal, which reaches every terminal')
    }
    return found.name
  }

  /** Says this user's name, and asks for the names of the others. */
  wake () { if (this.#leaf.connected) this.#greet(true) }

  /** Removes the handlers from the leaf. With a goodbye, the others know at once. @param {boolean} [goodbye] */
  async close (goodbye = false) {
    for (const undo of this.#undo) undo()
    clearTimeout(this.#greetTimer)
    clearTimeout(this.#settleTimer)
    if (goodbye && this.#leaf.connected) await this.#leaf.emit('bye', this.name)
  }

  #connected () {
    this.#view.connected(true)
    this.#greetedAt = -Infinity
    this.#greet(true)
  }

  #disconnected () {
    this.#view.connected(false)
    this.#roster.clear()
    this.#view.here([])
  }

  /** @param {string} from @param {unknown} greeting which may be anything */
  #greeted (from, greeting) {
    const { name, ask } = /** @type {{ name?: unknown, ask?: unknown }} */ (greeting ?? {})
    const now = this.#now() // one time for both, because the question is also the asker's answer
    const heard = this.#roster.heard(from, name, now)
    if (heard.news) {
      this.#view.note(`${heard.name} joined`)
      this.#view.here(this.#roster.names)
    }
    if (ask === true) {
      this.#called(now)
      this.#greet(false)
    }
  }

  /** @param {string} from */
  #left (from) {
    const name = this.#roster.left(from)
    if (name !== undefined) this.#gone([name])
  }

  /** @param {string[]} names */
  #gone (names) {
    for (const name of names) this.#view.note(`${name} left`)
    if (names.length > 0) this.#view.here(this.#roster.names)
  }

  /** Returns the name of somebody who just spoke, and asks for unknown names. @param {string} from */
  #nameOf (from) {
    const { name, news } = this.#roster.heard(from, undefined, this.#now())
    if (news) {
      this.#view.here(this.#roster.names)
      this.#greet(true)
    }
    return name
  }

  /** Says this user's name, now or after greetInterval. @param {boolean} ask */
  #greet (ask) {
    const now = this.#now()
    const wait = this.#greetedAt + greetInterval - now
    if (wait > 0) {
      this.#owed = true
      this.#owedAsk ||= ask
      clearTimeout(this.#greetTimer)
      this.#greetTimer = setTimeout(() => { if (this.#owed) this.#greet(false) }, wait)
      return
    }
    const asks = ask || this.#owedAsk
    this.#owed = this.#owedAsk = false
    this.#greetedAt = now
    if (asks) this.#called(now)
    // A greeting that fails, because everybody just left, is owed to nobody.
    this.#leaf.emit('hello', { name: this.name, ask: asks }).catch(() => {})
  }

  /** Somebody, perhaps this one, has asked everybody to answer. @param {number} now */
  #called (now) {
    this.#calledAt = now
    this.#roster.call(now)
    clearTimeout(this.#settleTimer)
    this.#settleTimer = setTimeout(() => this.#gone(this.#roster.settle(this.#now())), absence + 50)
  }

  /** Holds a roll call, unless somebody did; pages take turns by chance. */
  #rollCall () {
    const since = this.#now() - this.#calledAt
    if (this.#leaf.connected && since > rollCallInterval * (0.7 + 0.6 * Math.random())) this.#greet(true)
  }
}
