// The order and the repair of broadcasts (docs/wire.md, A leaf), without a network and
// without a clock: the caller passes the time as `now`, in ms.

import { compareSessions } from './batches.js'

/** @import { Session } from './batches.js' */
/** @import { Batch } from './batches.js' */
/** @import { Mark } from './marks.js' */

const askDelay = 150 // how long events are missing before a node is asked for them
const roundPause = 500 // between two rounds of asking every node
const giveUpTimeout = 2000 // how long events are missing before they are given up, if a node knows of them
const unansweredTimeout = 65_000 // the same if no node that was asked knows of them
const disconnectedTimeout = 70_000 // the same without any node
const sessionTimeout = 2000 // how long a newer session waits for the missing events of the older one
const settleTimeout = 5000 // how long the first batch of an unknown sender waits for lower ones
const maxAsks = 16 // under way
const maxAsksPerNode = 4
export const lostSize = 64 // the bytes of memory that a gap counts for, however many events it has

/** @param {bigint} a @param {bigint} b */
const min = (a, b) => a < b ? a : b
/** @param {bigint} a @param {bigint} b */
const max = (a, b) => a > b ? a : b

/** @typedef {{ first: bigint, end: bigint, events: Uint8Array[], size: number }} Held */
/** @typedef {{ sender: string, session: string, from: bigint, to: bigint, events?: Uint8Array[], size: number }} Step events to deliver; a gap if there are none */
/** @typedef {{ node: string, sender: string, session: string, start: bigint, from: bigint, to: bigint }} Ask */

/** How far one session of a sender has been received. */
class ReceivedSession {
  /** @param {Session} s @param {bigint} next @param {number} now */
  constructor ({ session, start }, next, now) {
    this.session = session
    this.start = start
    this.first = next // the first number that was expected
    this.next = next // the first number that was not delivered
    this.born = now
    /** @type {Held[]} */
    this.held = [] // batches that cannot be delivered yet, in ascending order
    this.confirmed = 0n // the sender itself says that it has sent all numbers below
    this.claimed = 0n // other nodes say that it has sent all numbers below
    this.unproven = 0n // the first number that was given up because of such a claim alone; 0: none
    this.settlesAt = 0 // until then lower numbers may still become the first; 0: the first is fixed
    // The first gap, and the nodes that were asked for it.
    this.from = 0n
    this.since = 0
    this.asking = ''
    /** @type {Set<string>} */
    this.tried = new Set()
    this.askFailed = false
    this.gotSome = false
    this.retryAt = 0
  }

  /** Whether events are missing, or cannot be delivered yet. */
  get incomplete () { return this.held.length > 0 || this.confirmed > this.next || this.claimed > this.next }

  /** The first gap, or undefined if no number is known to be missing. */
  get gap () {
    let from = this.next
    for (const b of this.held) {
      if (b.first > from) return { from, to: b.first, hearsay: false }
      from = max(from, b.end) // not delivered yet, but not missing either
    }
    if (this.confirmed > from) return { from, to: this.confirmed, hearsay: false }
    if (this.claimed > from) return { from, to: this.claimed, hearsay: true }
    return undefined
  }

  /**
   * Adds a batch to those that are held, and returns false if it has nothing new.
   * @param {Held} b
   */
  insert (b) {
    let i = this.held.length
    while (i > 0 && this.held[i - 1].first >= b.first) i--
    const before = this.held[i - 1]
    const after = this.held[i]
    if ((before?.end ?? 0n) >= b.end || (after?.first === b.first && after.end >= b.end)) return false
    this.held.splice(i, 0, b)
    return true
  }
}

/** The sessions of one sender. The first one is being delivered, the others wait for it. */
class Sender {
  /** @type {ReceivedSession[]} */
  sessions = []
  held = 0 // bytes of the batches that are held

  /** @param {string} id */
  constructor (id) { this.id = id }

  /** @param {Session} s */
  find (s) { return this.sessions.find((r) => compareSessions(r, s) === 0) }

  /** @param {ReceivedSession} received */
  add (received) {
    this.sessions.push(received)
    this.sessions.sort(compareSessions)
    return received
  }
}

/**
 * Orders the batches of all senders by their numbers. It decides which node to ask for
 * missing events, and when to give them up.
 */
export class Order {
  /** @type {Map<string, Sender>} */
  #senders = new Map() // the one that was silent longest comes first
  /** @type {Map<string, ReceivedSession>} */
  #hints = new Map() // sessions that only other nodes have told of, by sender
  /** @type {Map<string, { met: boolean, mute: boolean, asked: number, claims: Map<string, Mark & { greeting: boolean }> }>} */
  #nodes = new Map()
  /** @type {Step[]} */
  #steps = []
  #asks = 0
  #held = 0

  /** @param {{ maxSenders?: number, maxHeld?: number, maxTotal?: number }} [config] */
  constructor ({ maxSenders = 1024, maxHeld = 4 << 20, maxTotal = 16 << 20 } = {}) {
    this.maxSenders = maxSenders
    this.maxHeld = maxHeld
    this.maxTotal = maxTotal
  }

  /** How many bytes are held, and how many senders and hints are known. */
  get size () { return { held: this.#held, senders: this.#senders.size, hints: this.#hints.size } }

  /** Adds a node that can be asked. @param {string} node */
  addNode (node) {
    if (!this.#nodes.has(node)) this.#nodes.set(node, { met: false, mute: false, asked: 0, claims: new Map() })
  }

  /** Removes a node. @param {string} node */
  removeNode (node) { this.#nodes.delete(node) }

  /** Stops asking a node, because it has not greeted in time, until it greets. @param {string} node */
  muteNode (node) {
    const n = this.#nodes.get(node)
    if (n !== undefined) n.mute = true
  }

  /**
   * Applies the marks of a node, for all senders but this leaf.
   * @param {number} now @param {string} node @param {Mark[]} marks @param {boolean} greeting
   */
  receiveMarks (now, node, marks, greeting) {
    const n = this.#nodes.get(node)
    if (n === undefined) return
    for (const m of marks) {
      const old = n.claims.get(m.sender)
      const same = old !== undefined && compareSessions(old, m) === 0
      if (old !== undefined && !same && compareSessions(old, m) > 0) continue // older than an earlier mark of the node
      if (old === undefined && n.claims.size >= 4 * this.maxSenders) n.claims.delete(/** @type {string} */ (n.claims.keys().next().value))
      // The number at which an unknown session begins here. The events that the node had
      // when it greeted were sent before this leaf was there, so they are not owed to it.
      const begin = greeting || !n.met || (same && old.greeting) ? m.above : m.begin
      const claim = { ...m, greeting: greeting || (same && old.greeting) }
      if (same && claim.begin >= old.begin) { // a frame on another stream may have overtaken this one
        claim.next = max(claim.begin === old.begin ? claim.next : old.next, old.next)
        claim.begin = old.begin
      }
      n.claims.delete(m.sender) // to move it to the end, as the latest
      n.claims.set(m.sender, claim)
      this.#applyMark(now, node, m, begin)
    }
    n.met ||= greeting
    if (greeting) n.mute = false
  }

  /** @param {number} now @param {string} node @param {Mark} m @param {bigint} begin */
  #applyMark (now, node, m, begin) {
    let s = this.#senders.get(m.sender)
    let received = s?.find(m)
    if (received === undefined) {
      if (s !== undefined && compareSessions(m, s.sessions[0]) < 0) return // a session that is over
      const hint = this.#hints.get(m.sender)
      const order = hint === undefined ? 1 : compareSessions(m, hint)
      if (order > 0) { // only the latest session is remembered as a hint
        this.#hints.delete(m.sender)
        if (this.#hints.size >= 4 * this.maxSenders) this.#hints.delete(/** @type {string} */ (this.#hints.keys().next().value))
        this.#hints.set(m.sender, new ReceivedSession(m, begin, now))
      } else if (order === 0 && begin < /** @type {ReceivedSession} */ (hint).next) {
        /** @type {ReceivedSession} */ (hint).next = begin
      } else if (order < 0) {
        return
      }
      received = /** @type {ReceivedSession} */ (this.#hints.get(m.sender))
    } else if (received.settlesAt > 0 && begin < received.next) { // nothing was delivered yet
      received.first = received.next = begin
    }
    if (received.claimed < m.next) received.claimed = m.next
    if (received.asking !== node && received.tried.delete(node)) received.retryAt = 0 // the node may have the events by now
    if (node === m.sender) { // the sender's own mark is true
      s ??= this.#addSender(m.sender)
      if (s.find(m) === undefined) {
        this.#hints.delete(m.sender)
        received.first = received.next
        s.add(received)
      }
      if (received.confirmed < m.above) received.confirmed = m.above
    }
    if (received.settlesAt > 0 && this.#nodes.size === 1) received.settlesAt = 0 // the events come over this node only
    if (s !== undefined && s.sessions.length > 0) this.#deliver(now, s)
  }

  /** @param {string} id */
  #addSender (id) {
    for (const old of this.#senders.values()) {
      if (this.#senders.size < this.maxSenders) break
      while (old.sessions.length > 0) this.#endSession(old)
      this.#senders.delete(old.id)
    }
    const s = new Sender(id)
    this.#senders.set(id, s)
    return s
  }

  /**
   * Receives a batch, whose signature was checked.
   * @param {number} now @param {string} sender @param {Batch} batch
   * @returns {'new' | 'duplicate' | 'old'}
   */
  receiveBatch (now, sender, batch) {
    let s = this.#senders.get(sender)
    const known = s !== undefined && s.sessions.length > 0
    s ??= this.#addSender(sender)
    this.#senders.delete(sender) // to move it to the end, as the latest
    this.#senders.set(sender, s)
    /** @type {Held} */
    const b = {
      first: batch.first,
      end: batch.first + BigInt(batch.events.length),
      events: batch.events,
      size: batch.events.reduce((n, e) => n + e.length + 64, 0)
    }
    let received = s.find(batch)
    if (received === undefined) {
      if (known && compareSessions(batch, s.sessions[0]) < 0) return 'old' // no sender goes back to an earlier session
      const hint = this.#hints.get(sender)
      if (hint !== undefined && compareSessions(hint, batch) === 0) {
        this.#hints.delete(sender)
        received = hint
        // A claim of other nodes may only make us wait for more events, never skip any.
        received.first = received.next = min(received.next, b.first)
      } else {
        // A known sender owes its next session from number 1. What an unknown one owes is not
        // known yet: this batch may have overtaken lower ones.
        received = new ReceivedSession(batch, known ? 1n : b.first, now)
        if (!known && b.first > 1n) received.settlesAt = now + settleTimeout
      }
      received.born = now
      s.add(received)
    }
    if (received.settlesAt > 0 && b.first < received.next) received.first = received.next = b.first
    this.#restoreUnproven(received, b.first, b.end)
    if (b.end <= received.next || !received.insert(b)) return 'duplicate'
    s.held += b.size
    this.#held += b.size
    this.#deliver(now, s)
    this.#limitHeld(now)
    return 'new'
  }

  /**
   * Makes events deliverable again that were given up because of a claim alone, now that
   * the sender has proven that it sent them.
   * @param {ReceivedSession} received @param {bigint} from @param {bigint} to
   */
  #restoreUnproven (received, from, to) {
    if (received.unproven === 0n || to <= received.unproven) return
    const given = received.next
    from = max(from, received.unproven)
    received.unproven = 0n
    if (from < given) {
      received.next = from
      if (to < given) received.unproven = to
    }
  }

  /** Delivers all events of a sender that can be delivered. @param {number} now @param {Sender} s */
  #deliver (now, s) {
    for (;;) {
      const head = s.sessions[0]
      if (head.settlesAt > 0 && head.next === 1n) head.settlesAt = 0 // no number can be lower
      if (head.settlesAt === 0) this.#drain(s, head)
      if (!head.incomplete && s.sessions.length > 1) s.sessions.shift() // all of it was delivered
      else if (s.sessions.length > 4) this.#endSession(s) // a sender must not fill the memory with sessions
      else if (s.held > this.maxHeld && head.incomplete) this.#skipGap(s, head) // or with batches behind a gap
      else break
    }
    for (const received of s.sessions) this.#noteGap(now, received)
  }

  /** Starts the clock of a gap that is new. @param {number} now @param {ReceivedSession} received */
  #noteGap (now, received) {
    const gap = received.gap
    if (gap === undefined) {
      received.from = 0n
      received.gotSome = false
    } else if (gap.from !== received.from) {
      received.from = gap.from
      received.since = now
      received.tried.clear()
      received.askFailed = false
      received.retryAt = 0
    }
  }

  /** Delivers the held batches up to the first gap. @param {Sender} s @param {ReceivedSession} received */
  #drain (s, received) {
    while (received.held.length > 0 && received.held[0].first <= received.next) {
      const b = /** @type {Held} */ (received.held.shift())
      s.held -= b.size
      this.#held -= b.size
      if (b.end <= received.next) continue
      const events = b.events.slice(Number(received.next - b.first))
      this.#steps.push({ sender: s.id, session: received.session, from: received.next, to: b.end, events, size: b.size })
      received.next = b.end
    }
  }

  /** Reports the first gap, and goes on after it. @param {Sender} s @param {ReceivedSession} received */
  #skipGap (s, received) {
    received.settlesAt = 0
    this.#drain(s, received)
    const ends = [received.held[0]?.first, received.confirmed, received.claimed].filter((n) => n !== undefined && n > received.next)
    if (ends.length === 0) return // there is no gap
    const to = /** @type {bigint[]} */ (ends).reduce(min)
    this.#steps.push({ sender: s.id, session: received.session, from: received.next, to, size: lostSize })
    if (received.unproven === 0n && received.held.length === 0 && received.confirmed <= received.next) received.unproven = received.next
    received.next = to
    this.#drain(s, received)
  }

  /** Ends the first session of a sender, and reports every gap in it. @param {Sender} s */
  #endSession (s) {
    const head = s.sessions[0]
    for (this.#skipGap(s, head); head.incomplete;) this.#skipGap(s, head)
    s.sessions.shift()
  }

  /** Keeps the bytes that are held within their limit. @param {number} now */
  #limitHeld (now) {
    while (this.#held > this.maxTotal) {
      let most
      for (const s of this.#senders.values()) if (s.held > (most?.held ?? -1)) most = s
      const s = /** @type {Sender} */ (most)
      this.#skipGap(s, s.sessions[0])
      this.#deliver(now, s)
    }
  }

  /**
   * Applies the timeouts that are due, and returns the events to deliver and the nodes to
   * ask. The caller reports the end of each ask to finishAsk. It calls advance again after
   * each change, and at the time `next` at the latest.
   * @param {number} now @returns {{ steps: Step[], asks: Ask[], next: number }}
   */
  advance (now) {
    /** @type {Ask[]} */
    const asks = []
    let next = Infinity
    for (const s of [...this.#senders.values()]) {
      if (!s.sessions.some((r) => r.incomplete || r.settlesAt > 0)) continue
      const head = s.sessions[0]
      if (head.settlesAt > 0) {
        if (head.settlesAt <= now) {
          head.settlesAt = 0
          this.#deliver(now, s)
        } else {
          next = Math.min(next, head.settlesAt)
        }
      }
      if (s.sessions.length > 1 && s.sessions[0].incomplete) {
        const end = s.sessions[1].born + sessionTimeout
        if (end <= now) {
          this.#endSession(s)
          this.#deliver(now, s)
        } else {
          next = Math.min(next, end)
        }
      }
      for (const received of [...s.sessions]) {
        next = Math.min(next, this.#repairGap(now, s.id, received, asks, () => {
          if (received !== s.sessions[0]) return
          this.#skipGap(s, received)
          this.#deliver(now, s)
        }))
      }
    }
    for (const [id, received] of this.#hints) {
      if (received.claimed <= received.next) continue
      this.#noteGap(now, received)
      next = Math.min(next, this.#repairGap(now, id, received, asks, () => {
        this.#steps.push({ sender: id, session: received.session, from: received.next, to: received.claimed, size: lostSize })
        received.next = received.claimed
      }))
    }
    const steps = this.#steps
    this.#steps = []
    return { steps, asks, next }
  }

  /**
   * Decides whether to ask for the first gap of a session or to give it up. It returns when
   * to decide again.
   * @param {number} now @param {string} sender @param {ReceivedSession} received @param {Ask[]} asks @param {() => void} giveUp
   */
  #repairGap (now, sender, received, asks, giveUp) {
    const gap = received.gap
    if (gap === undefined || received.settlesAt > 0 || received.asking !== '') return Infinity
    const due = Math.max(received.since + (received.gotSome ? 0 : askDelay), received.retryAt)
    if (now < due) return due // the events may just be late
    const node = this.#chooseNode(sender, received, gap)
    if (node === undefined || this.#asks >= maxAsks) { // enough asks are under way
      received.retryAt = now + askDelay
      return received.retryAt
    }
    if (node !== '') {
      /** @type {{ asked: number }} */ (this.#nodes.get(node)).asked++
      this.#asks++
      received.asking = node
      asks.push({ node, sender, session: received.session, start: received.start, from: gap.from, to: gap.to })
      return Infinity
    }
    // Every node was asked. The gap is given up if a node that should have the events has
    // answered without them, if no node can be asked, or after a long time.
    const missing = now - received.since
    const nodes = [...this.#nodes.values()]
    const proven = !received.askFailed && missing >= giveUpTimeout && nodes.some(({ claims }) => {
      const c = claims.get(sender)
      return c !== undefined && compareSessions(c, received) === 0 && c.begin <= gap.from && gap.from < c.next
    })
    const hopeless = missing >= giveUpTimeout && nodes.length > 0 && nodes.every(({ mute }) => mute)
    received.tried.clear()
    received.askFailed = false
    received.retryAt = now + roundPause
    if (!proven && !hopeless && missing < (this.#nodes.size > 0 ? unansweredTimeout : disconnectedTimeout)) return received.retryAt
    giveUp()
    return now // to decide about the next gap
  }

  /**
   * Returns the node to ask, preferring those whose marks cover the gap. It returns '' if
   * all were asked, and undefined if all that are left are busy.
   * @param {string} sender @param {ReceivedSession} received @param {{ from: bigint, hearsay: boolean }} gap
   */
  #chooseNode (sender, received, gap) {
    let best = ''
    let rank = 0
    let busy = false
    for (const [id, { mute, asked, claims }] of this.#nodes) {
      if (mute || received.tried.has(id)) continue
      const c = claims.get(sender)
      let r = 4
      if (c === undefined || compareSessions(c, received) !== 0 || c.next <= gap.from) {
        if (id === sender) r = 2
        else if (gap.hearsay) continue // only the nodes that claim it are asked
        else r = 1
      } else if (c.floor === 0n || c.floor > gap.from) { // it may have to ask others in turn
        r = 3
      }
      if (asked >= maxAsksPerNode) busy = true
      else if (r > rank) [best, rank] = [id, r]
    }
    return best === '' && busy ? undefined : best
  }

  /**
   * Ends an ask. The answer is 'got' if it brought events, which were passed to receiveBatch.
   * @param {number} now @param {Ask} ask @param {'got' | 'nothing' | 'failed'} answer
   */
  finishAsk (now, ask, answer) {
    this.#asks--
    const n = this.#nodes.get(ask.node)
    if (n !== undefined) n.asked--
    const received = this.#senders.get(ask.sender)?.find(ask) ?? this.#hints.get(ask.sender)
    if (received === undefined || received.asking !== ask.node || compareSessions(received, ask) !== 0) return
    received.asking = ''
    received.gotSome = answer === 'got'
    if (received.gap?.from === ask.from) {
      received.tried.add(ask.node)
      received.askFailed ||= answer === 'failed'
    }
  }

  /**
   * Returns how far this leaf has received a sender, or undefined for an unknown sender.
   * @param {string} sender @returns {Mark | undefined}
   */
  mark (sender) {
    const received = this.#senders.get(sender)?.sessions.at(-1) ?? this.#hints.get(sender)
    if (received === undefined) return undefined
    let next = received.unproven === 0n ? received.next : received.unproven // so that a false claim does not spread
    let above = next
    for (const b of received.held) {
      if (b.first <= next) next = max(next, b.end)
      above = max(above, b.end)
    }
    const begin = this.#senders.has(sender) ? min(received.first, next) : next
    return { sender, session: received.session, start: received.start, next, above: max(above, next), begin, floor: 0n, withheld: 0n, ask: false }
  }

  /** Returns the marks of at most n senders, the last heard first. @param {number} n */
  marks (n) {
    const ids = [...this.#senders.keys()].reverse().slice(0, n)
    return ids.map((id) => /** @type {Mark} */ (this.mark(id)))
  }
}
