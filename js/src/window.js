// The window of this leaf's own broadcasts (docs/wire.md, A leaf), without a network and
// without a clock: the caller passes the time as `now`, in ms.

const maxBatches = 16 // that a node may lack
const maxBytes = 1 << 20 // that a node may lack
const progressTimeout = 5000 // ms without an acknowledgment after which a node is not waited for
const [firstNudge, lastNudge] = [300, 40_000] // ms between nudges; each pause is twice the last one
const maxRemembered = 4096 // batches, because a node may never acknowledge any

/**
 * Decides when this leaf may publish a batch: while each node lacks fewer than 16 batches
 * and 1 MiB of those published since it was added. A node that acknowledges nothing for
 * five seconds is not waited for until it acknowledges again.
 */
export class Window {
  /** @type {{ end: bigint, size: number, count: number }[]} */
  #batches = []
  #count = 0
  /** @type {Map<string, { since: number, through: bigint, progress: number, givenUp: boolean, nudge: number, pause: number }>} */
  #nodes = new Map()

  /** Adds a node. @param {number} now @param {string} node */
  addNode (now, node) {
    this.#nodes.set(node, { since: this.#count, through: 0n, progress: now, givenUp: false, nudge: Infinity, pause: firstNudge })
  }

  /** @param {string} node */
  hasNode (node) { return this.#nodes.has(node) }

  /** Removes a node. @param {string} node */
  removeNode (node) {
    this.#nodes.delete(node)
    this.#trim()
  }

  /** Counts a batch that is being published. @param {number} now @param {bigint} end the number after its last event @param {number} size */
  published (now, end, size) {
    for (const n of this.#nodes.values()) {
      if (this.#unacknowledged(n).count > 0) continue
      // The node had everything until now, so its time starts with this batch.
      n.progress = now
      n.nudge = now + (n.pause = firstNudge)
    }
    if (this.#nodes.size > 0) this.#batches.push({ end, size, count: ++this.#count })
    if (this.#batches.length > maxRemembered) this.#batches.shift()
  }

  /** Records that a node, and all behind it, have every number below through. @param {number} now @param {string} node @param {bigint} through */
  acknowledged (now, node, through) {
    const n = this.#nodes.get(node)
    if (n === undefined || through <= n.through) return // a mark that is late
    n.through = through
    n.progress = now
    n.givenUp = false
    n.nudge = now + (n.pause = firstNudge)
    this.#trim()
  }

  /** Removes the batches that every node has, or need not have. */
  #trim () {
    while (this.#batches.length > 0 && [...this.#nodes.values()].every((n) => n.since >= this.#batches[0].count || n.through >= this.#batches[0].end)) {
      this.#batches.shift()
    }
  }

  /** Returns how many batches and bytes a node lacks. @param {{ since: number, through: bigint }} n */
  #unacknowledged (n) {
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
  get hasRoom () {
    for (const n of this.#nodes.values()) {
      if (n.givenUp) continue
      const { count, size } = this.#unacknowledged(n)
      if (count >= maxBatches || size >= maxBytes) return false
    }
    return true
  }

  /** Whether every node that is waited for has acknowledged everything. */
  get isSettled () { return [...this.#nodes.values()].every((n) => n.givenUp || this.#unacknowledged(n).count === 0) }

  /**
   * Applies the timeouts that are due. It returns the nodes to nudge with this leaf's mark
   * and `ask`, because they may not have noticed that there is a batch, and when to call
   * advance again.
   * @param {number} now @returns {{ nudge: string[], next: number }}
   */
  advance (now) {
    const nudge = []
    let next = Infinity
    for (const [id, n] of this.#nodes) {
      if (this.#unacknowledged(n).count === 0) continue
      // A slow or dead node must not stop this leaf for ever; repair serves it later.
      if (!n.givenUp && now - n.progress >= progressTimeout) n.givenUp = true
      if (n.nudge <= now) {
        n.pause *= 2
        n.nudge = n.pause > lastNudge ? Infinity : now + n.pause
        nudge.push(id)
      }
      next = Math.min(next, n.nudge, n.givenUp ? Infinity : n.progress + progressTimeout)
    }
    return { nudge, next }
  }
}
