// Order, repair and windows of a leaf (docs/wire.md, A leaf): what is decided, without a
// network or a clock. `now` is in ms and handed in.

import { compareSessions } from './wire.js'

/** @typedef {import('./wire.js').Session} Session */
/** @typedef {import('./wire.js').Batch} Batch */
/** @typedef {import('./wire.js').Mark} Mark */

const grace = 150 // how long something is missing before it is asked for
const pause = 500 // between two rounds of asking everybody
const patience = 2000 // how long something is missing before it is given up
const doubt = 65_000 // the same if nobody who was asked was there
const alone = 70_000 // the same without a node
const sessionTimeout = 2000 // how long a newer session waits for what the older one has missing
const settleTimeout = 5000 // how long the first batch of an unknown sender waits for lower ones
export const lostSize = 64 // what events that are lost take in memory, however many they are

/** @param {bigint} a @param {bigint} b */
const min = (a, b) => a < b ? a : b
/** @param {bigint} a @param {bigint} b */
const max = (a, b) => a > b ? a : b

/** @typedef {{ first: bigint, end: bigint, events: Uint8Array[], size: number }} Held */
/** @typedef {{ sender: string, session: string, from: bigint, to: bigint, events?: Uint8Array[], size: number }} Step without events they are lost */
/** @typedef {{ node: string, sender: string, session: string, start: bigint, from: bigint, to: bigint }} Ask */

/** What is known of one life of a sender. */
class Life {
  /** @param {Session} s @param {bigint} next @param {number} now */
  constructor ({ session, start }, next, now) {
    this.session = session
    this.start = start
    this.first = next // where it began
    this.next = next // the first number that is not delivered
    this.born = now
    /** @type {Held[]} */
    this.held = [] // ascending; what waits for its turn
    this.told = 0n // the sender itself says that it has sent everything below
    this.claimed = 0n // others say so
    this.doubt = 0n // the first number that was given up on such a word alone; 0: none
    this.settles = 0 // until when lower numbers may become the first; 0: not at all
    // The first gap and who was asked for it.
    this.from = 0n
    this.since = 0
    this.asking = ''
    /** @type {Set<string>} */
    this.tried = new Set()
    this.failed = false
    this.brought = false
    this.again = 0
  }

  /** Whether something is known to be missing, or waits. */
  get waits () { return this.held.length > 0 || this.told > this.next || this.claimed > this.next }

  /** The first numbers that are missing; undefined if none are known to be. */
  get gap () {
    let from = this.next
    for (const b of this.held) {
      if (b.first > from) return { from, to: b.first, hearsay: false }
      from = max(from, b.end) // it waits for an earlier life, or to settle
    }
    if (this.told > from) return { from, to: this.told, hearsay: false }
    if (this.claimed > from) return { from, to: this.claimed, hearsay: true }
    return undefined
  }

  /**
   * Files a batch; false if there is nothing new in it.
   * @param {Held} b
   */
  hold (b) {
    let i = this.held.length
    while (i > 0 && this.held[i - 1].first >= b.first) i--
    const before = this.held[i - 1]
    const after = this.held[i]
    if ((before?.end ?? 0n) >= b.end || (after?.first === b.first && after.end >= b.end)) return false
    this.held.splice(i, 0, b)
    return true
  }
}

/** What is known of one sender. The first life is being delivered, the others wait. */
class Sender {
  /** @type {Life[]} */
  lives = []
  held = 0 // bytes that wait

  /** @param {string} id */
  constructor (id) { this.id = id }

  /** @param {Session} s */
  find (s) { return this.lives.find((l) => compareSessions(l, s) === 0) }

  /** @param {Life} life */
  add (life) {
    this.lives.push(life)
    this.lives.sort(compareSessions)
    return life
  }
}

/**
 * Brings the batches of all senders into the order of their numbers, decides whom to
 * ask for what is missing, and when to give it up.
 */
export class Order {
  /** @type {Map<string, Sender>} */
  #senders = new Map() // the longest silent first
  /** @type {Map<string, Life>} */
  #hints = new Map() // lives known from the word of others only
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

  /** How many bytes wait, and of how many senders something is known. */
  get size () { return { held: this.#held, senders: this.#senders.size, hints: this.#hints.size } }

  /** @param {string} node which can be asked from now on */
  join (node) {
    if (!this.#nodes.has(node)) this.#nodes.set(node, { met: false, mute: false, asked: 0, claims: new Map() })
  }

  /** @param {string} node */
  leave (node) { this.#nodes.delete(node) }

  /** Asks a node no more, as it has not greeted in time, until it does. @param {string} node */
  mute (node) {
    const n = this.#nodes.get(node)
    if (n !== undefined) n.mute = true
  }

  /**
   * Takes the marks that a node tells, of others than this leaf.
   * @param {number} now @param {string} node @param {Mark[]} marks @param {boolean} greeting
   */
  told (now, node, marks, greeting) {
    const n = this.#nodes.get(node)
    if (n === undefined) return
    for (const m of marks) {
      const old = n.claims.get(m.sender)
      const same = old !== undefined && compareSessions(old, m) === 0
      if (old !== undefined && !same && compareSessions(old, m) > 0) continue
      if (old === undefined && n.claims.size >= 4 * this.maxSenders) n.claims.delete(/** @type {string} */ (n.claims.keys().next().value))
      // Where to begin with a session that is not known here. What the node had when
      // it greeted was sent before this leaf was there.
      const begin = greeting || !n.met || (same && old.greeting) ? m.above : m.begin
      const claim = { ...m, greeting: greeting || (same && old.greeting) }
      if (same && claim.begin >= old.begin) { // its words may overtake each other
        claim.next = max(claim.begin === old.begin ? claim.next : old.next, old.next)
        claim.begin = old.begin
      }
      n.claims.delete(m.sender) // it goes to the end: it was told last
      n.claims.set(m.sender, claim)
      this.#claim(now, node, m, begin)
    }
    n.met ||= greeting
    if (greeting) n.mute = false
  }

  /** @param {number} now @param {string} node @param {Mark} m @param {bigint} begin */
  #claim (now, node, m, begin) {
    let s = this.#senders.get(m.sender)
    let life = s?.find(m)
    if (life === undefined) {
      if (s !== undefined && compareSessions(m, s.lives[0]) < 0) return
      const hint = this.#hints.get(m.sender)
      const order = hint === undefined ? 1 : compareSessions(m, hint)
      if (order > 0) {
        this.#hints.delete(m.sender)
        if (this.#hints.size >= 4 * this.maxSenders) this.#hints.delete(/** @type {string} */ (this.#hints.keys().next().value))
        this.#hints.set(m.sender, new Life(m, begin, now))
      } else if (order === 0 && begin < /** @type {Life} */ (hint).next) {
        /** @type {Life} */ (hint).next = begin
      } else if (order < 0) {
        return
      }
      life = /** @type {Life} */ (this.#hints.get(m.sender))
    } else if (life.settles > 0 && begin < life.next) {
      life.first = life.next = begin
    }
    if (life.claimed < m.next) life.claimed = m.next
    if (life.asking !== node && life.tried.delete(node)) life.again = 0 // it may have it now
    if (node === m.sender) { // it speaks of itself, so that is true
      s ??= this.#add(m.sender)
      if (s.find(m) === undefined) {
        this.#hints.delete(m.sender)
        life.first = life.next
        s.add(life)
      }
      if (life.told < m.above) life.told = m.above
    }
    if (life.settles > 0 && this.#nodes.size === 1) life.settles = 0 // there is no other way
    if (s !== undefined && s.lives.length > 0) this.#settle(now, s)
  }

  /** @param {string} id */
  #add (id) {
    for (const old of this.#senders.values()) {
      if (this.#senders.size < this.maxSenders) break
      while (old.lives.length > 0) this.#retire(old)
      this.#senders.delete(old.id)
    }
    const s = new Sender(id)
    this.#senders.set(id, s)
    return s
  }

  /**
   * Takes a batch that its sender has signed.
   * @param {number} now @param {string} sender @param {Batch} batch
   * @returns {'new' | 'duplicate' | 'old'}
   */
  receive (now, sender, batch) {
    let s = this.#senders.get(sender)
    const known = s !== undefined && s.lives.length > 0
    s ??= this.#add(sender)
    this.#senders.delete(sender) // it goes to the end: it was heard last
    this.#senders.set(sender, s)
    /** @type {Held} */
    const b = {
      first: batch.first,
      end: batch.first + BigInt(batch.events.length),
      events: batch.events,
      size: batch.events.reduce((n, e) => n + e.length + 64, 0)
    }
    let life = s.find(batch)
    if (life === undefined) {
      if (known && compareSessions(batch, s.lives[0]) < 0) return 'old'
      const hint = this.#hints.get(sender)
      if (hint !== undefined && compareSessions(hint, batch) === 0) {
        this.#hints.delete(sender)
        life = hint
        // The word of others may only make us wait for more.
        life.first = life.next = min(life.next, b.first)
      } else {
        life = new Life(batch, known ? 1n : b.first, now)
        if (!known && b.first > 1n) life.settles = now + settleTimeout
      }
      life.born = now
      s.add(life)
    }
    if (life.settles > 0 && b.first < life.next) life.first = life.next = b.first
    this.#believe(life, b.first, b.end)
    if (b.end <= life.next || !life.hold(b)) return 'duplicate'
    s.held += b.size
    this.#held += b.size
    this.#settle(now, s)
    this.#relieve(now)
    return 'new'
  }

  /**
   * What the sender has proven to have sent comes although it was given up on the word
   * of others.
   * @param {Life} life @param {bigint} from @param {bigint} to
   */
  #believe (life, from, to) {
    if (life.doubt === 0n || to <= life.doubt) return
    const given = life.next
    from = max(from, life.doubt)
    life.doubt = 0n
    if (from < given) {
      life.next = from
      if (to < given) life.doubt = to
    }
  }

  /** Delivers what can be delivered of a sender. @param {number} now @param {Sender} s */
  #settle (now, s) {
    for (;;) {
      const head = s.lives[0]
      if (head.settles > 0 && head.next === 1n) head.settles = 0
      if (head.settles === 0) this.#drain(s, head)
      if (!head.waits && s.lives.length > 1) s.lives.shift()
      else if (s.lives.length > 4) this.#retire(s)
      else if (s.held > this.maxHeld && head.waits) this.#skip(s, head)
      else break
    }
    for (const life of s.lives) this.#notice(now, life)
  }

  /** Begins to count how long something is missing. @param {number} now @param {Life} life */
  #notice (now, life) {
    const gap = life.gap
    if (gap === undefined) {
      life.from = 0n
      life.brought = false
    } else if (gap.from !== life.from) {
      life.from = gap.from
      life.since = now
      life.tried.clear()
      life.failed = false
      life.again = 0
    }
  }

  /** @param {Sender} s @param {Life} life */
  #drain (s, life) {
    while (life.held.length > 0 && life.held[0].first <= life.next) {
      const b = /** @type {Held} */ (life.held.shift())
      s.held -= b.size
      this.#held -= b.size
      if (b.end <= life.next) continue
      const events = b.events.slice(Number(life.next - b.first))
      this.#steps.push({ sender: s.id, session: life.session, from: life.next, to: b.end, events, size: b.size })
      life.next = b.end
    }
  }

  /** Gives up the first gap. @param {Sender} s @param {Life} life */
  #skip (s, life) {
    life.settles = 0
    this.#drain(s, life)
    const ends = [life.held[0]?.first, life.told, life.claimed].filter((n) => n !== undefined && n > life.next)
    if (ends.length === 0) return
    const to = /** @type {bigint[]} */ (ends).reduce(min)
    this.#steps.push({ sender: s.id, session: life.session, from: life.next, to, size: lostSize })
    if (life.doubt === 0n && life.held.length === 0 && life.told <= life.next) life.doubt = life.next
    life.next = to
    this.#drain(s, life)
  }

  /** Gives up every gap of the first life, which ends. @param {Sender} s */
  #retire (s) {
    const head = s.lives[0]
    for (this.#skip(s, head); head.waits;) this.#skip(s, head)
    s.lives.shift()
  }

  /** Keeps what waits within its bound. @param {number} now */
  #relieve (now) {
    while (this.#held > this.maxTotal) {
      let most
      for (const s of this.#senders.values()) if (s.held > (most?.held ?? -1)) most = s
      const s = /** @type {Sender} */ (most)
      this.#skip(s, s.lives[0])
      this.#settle(now, s)
    }
  }

  /**
   * Lets the time be now. Every ask has to be answered; next is when to call again
   * although nothing happened.
   * @param {number} now @returns {{ steps: Step[], asks: Ask[], next: number }}
   */
  output (now) {
    /** @type {Ask[]} */
    const asks = []
    let next = Infinity
    for (const s of [...this.#senders.values()]) {
      if (!s.lives.some((l) => l.waits || l.settles > 0)) continue
      const head = s.lives[0]
      if (head.settles > 0) {
        if (head.settles <= now) {
          head.settles = 0
          this.#settle(now, s)
        } else {
          next = Math.min(next, head.settles)
        }
      }
      if (s.lives.length > 1 && s.lives[0].waits) {
        const end = s.lives[1].born + sessionTimeout
        if (end <= now) {
          this.#retire(s)
          this.#settle(now, s)
        } else {
          next = Math.min(next, end)
        }
      }
      for (const life of [...s.lives]) {
        next = Math.min(next, this.#repair(now, s.id, life, asks, () => {
          if (life !== s.lives[0]) return
          this.#skip(s, life)
          this.#settle(now, s)
        }))
      }
    }
    for (const [id, life] of this.#hints) {
      if (life.claimed <= life.next) continue
      this.#notice(now, life)
      next = Math.min(next, this.#repair(now, id, life, asks, () => {
        this.#steps.push({ sender: id, session: life.session, from: life.next, to: life.claimed, size: lostSize })
        life.next = life.claimed
      }))
    }
    const steps = this.#steps
    this.#steps = []
    return { steps, asks, next }
  }

  /**
   * Decides about the gap of one life; returns when to look again.
   * @param {number} now @param {string} sender @param {Life} life @param {Ask[]} asks @param {() => void} giveUp
   */
  #repair (now, sender, life, asks, giveUp) {
    const gap = life.gap
    if (gap === undefined || life.settles > 0 || life.asking !== '') return Infinity
    const due = Math.max(life.since + (life.brought ? 0 : grace), life.again)
    if (now < due) return due
    const node = this.#choose(sender, life, gap)
    if (node === undefined || this.#asks >= 16) { // all are busy
      life.again = now + grace
      return life.again
    }
    if (node !== '') {
      /** @type {{ asked: number }} */ (this.#nodes.get(node)).asked++
      this.#asks++
      life.asking = node
      asks.push({ node, sender, session: life.session, start: life.start, from: gap.from, to: gap.to })
      return Infinity
    }
    const missing = now - life.since
    const nodes = [...this.#nodes.values()]
    const proven = !life.failed && missing >= patience && nodes.some(({ claims }) => {
      const c = claims.get(sender)
      return c !== undefined && compareSessions(c, life) === 0 && c.begin <= gap.from && gap.from < c.next
    })
    const hopeless = missing >= patience && nodes.length > 0 && nodes.every(({ mute }) => mute)
    life.tried.clear()
    life.failed = false
    life.again = now + pause
    if (!proven && !hopeless && missing < (this.#nodes.size > 0 ? doubt : alone)) return life.again
    giveUp()
    return now // there may be another gap
  }

  /**
   * Returns whom to ask: first those that say they have it. Nobody ('') if all were
   * asked, undefined if all that are left are busy.
   * @param {string} sender @param {Life} life @param {{ from: bigint, hearsay: boolean }} gap
   */
  #choose (sender, life, gap) {
    let best = ''
    let rank = 0
    let busy = false
    for (const [id, { mute, asked, claims }] of this.#nodes) {
      if (mute || life.tried.has(id)) continue
      const c = claims.get(sender)
      let r = 4
      if (c === undefined || compareSessions(c, life) !== 0 || c.next <= gap.from) {
        if (id === sender) r = 2
        else if (gap.hearsay) continue
        else r = 1
      } else if (c.floor === 0n || c.floor > gap.from) {
        r = 3
      }
      if (asked >= 4) busy = true
      else if (r > rank) [best, rank] = [id, r]
    }
    return best === '' && busy ? undefined : best
  }

  /**
   * Says what came of an ask: 'got' if something came, which was received before.
   * @param {number} now @param {Ask} ask @param {'got' | 'nothing' | 'failed'} answer
   */
  answered (now, ask, answer) {
    this.#asks--
    const n = this.#nodes.get(ask.node)
    if (n !== undefined) n.asked--
    const life = this.#senders.get(ask.sender)?.find(ask) ?? this.#hints.get(ask.sender)
    if (life === undefined || life.asking !== ask.node || compareSessions(life, ask) !== 0) return
    life.asking = ''
    life.brought = answer === 'got'
    if (life.gap?.from === ask.from) {
      life.tried.add(ask.node)
      life.failed ||= answer === 'failed'
    }
  }

  /**
   * How far this leaf is with a sender; undefined if nothing is known of it.
   * @param {string} sender @returns {Mark | undefined}
   */
  mark (sender) {
    const life = this.#senders.get(sender)?.lives.at(-1) ?? this.#hints.get(sender)
    if (life === undefined) return undefined
    let next = life.doubt === 0n ? life.next : life.doubt // so that a lie does not spread
    let above = next
    for (const b of life.held) {
      if (b.first <= next) next = max(next, b.end)
      above = max(above, b.end)
    }
    const begin = this.#senders.has(sender) ? min(life.first, next) : next
    return { sender, session: life.session, start: life.start, next, above: max(above, next), begin, floor: 0n, withheld: 0n, ask: false }
  }

  /** The marks of the senders that were heard, the last heard first. @param {number} n */
  marks (n) {
    const ids = [...this.#senders.keys()].reverse().slice(0, n)
    return ids.map((id) => /** @type {Mark} */ (this.mark(id)))
  }
}

/**
 * Decides when a batch of this leaf may be published: while each node lacks fewer than
 * 16 batches and 1 MiB of what was published since it is there. One that acknowledges
 * nothing for five seconds is not waited for until it does.
 */
export class Window {
  /** @type {{ end: bigint, size: number, count: number }[]} */
  #batches = []
  #count = 0
  /** @type {Map<string, { since: number, through: bigint, progress: number, givenUp: boolean, nudge: number, pause: number }>} */
  #nodes = new Map()

  /** @param {number} now @param {string} node */
  join (now, node) {
    this.#nodes.set(node, { since: this.#count, through: 0n, progress: now, givenUp: false, nudge: Infinity, pause: 300 })
  }

  /** @param {string} node */
  leave (node) {
    this.#nodes.delete(node)
    this.#trim()
  }

  /** A batch is being published. @param {number} now @param {bigint} end @param {number} size */
  took (now, end, size) {
    for (const n of this.#nodes.values()) {
      if (this.#lacks(n).count > 0) continue
      n.progress = now
      n.nudge = now + (n.pause = 300)
    }
    if (this.#nodes.size > 0) this.#batches.push({ end, size, count: ++this.#count })
    if (this.#batches.length > 4096) this.#batches.shift()
  }

  /** A node says that nobody behind it lacks anything below. @param {number} now @param {string} node @param {bigint} through */
  acked (now, node, through) {
    const n = this.#nodes.get(node)
    if (n === undefined || through <= n.through) return
    n.through = through
    n.progress = now
    n.givenUp = false
    n.nudge = now + (n.pause = 300)
    this.#trim()
  }

  #trim () {
    while (this.#batches.length > 0 && [...this.#nodes.values()].every((n) => n.since >= this.#batches[0].count || n.through >= this.#batches[0].end)) {
      this.#batches.shift()
    }
  }

  /** @param {{ since: number, through: bigint }} n */
  #lacks (n) {
    let [count, size] = [0, 0]
    for (const b of this.#batches) {
      if (b.count > n.since && b.end > n.through) {
        count++
        size += b.size
      }
    }
    return { count, size }
  }

  /** Whether another batch may be published. */
  get room () {
    for (const n of this.#nodes.values()) {
      if (n.givenUp) continue
      const { count, size } = this.#lacks(n)
      if (count >= 16 || size >= 1 << 20) return false
    }
    return true
  }

  /** Whether every node has everything that it is owed. */
  get calm () { return [...this.#nodes.values()].every((n) => n.givenUp || this.#lacks(n).count === 0) }

  /**
   * Gives up who was waited for too long, and returns the nodes that are to be told
   * this leaf's mark, with ask, in case they noticed nothing.
   * @param {number} now @returns {{ nudge: string[], next: number }}
   */
  advance (now) {
    const nudge = []
    let next = Infinity
    for (const [id, n] of this.#nodes) {
      if (this.#lacks(n).count === 0) continue
      if (!n.givenUp && now - n.progress >= 5000) n.givenUp = true
      if (n.nudge <= now) {
        n.pause *= 2
        n.nudge = n.pause > 40_000 ? Infinity : now + n.pause
        nudge.push(id)
      }
      next = Math.min(next, n.nudge, n.givenUp ? Infinity : n.progress + 5000)
    }
    return { nudge, next }
  }
}
