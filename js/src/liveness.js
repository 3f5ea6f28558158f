// Notices dead nodes (docs/wire.md, A leaf), without a network and without a clock: the
// caller passes the time as `now`, in ms.

// A dead node is noticed after 4 + 2 * 3 = 10 s. Two probes have to go unanswered, so that
// a leaf that was itself asleep does not give up a node before it has asked it once more.
const silenceTimeout = 4000
const answerTimeout = 3000
const maxProbes = 2

export class Liveness {
  /** @type {Map<string, { probes: number, due: number }>} */
  #nodes = new Map()

  /** Starts to watch a node. @param {number} now @param {string} node */
  addNode (now, node) { this.#nodes.set(node, { probes: 0, due: now + silenceTimeout }) }

  /** @param {string} node */
  removeNode (node) { this.#nodes.delete(node) }

  /** Records that something arrived from a node. @param {number} now @param {string} node */
  heard (now, node) {
    if (this.#nodes.has(node)) this.addNode(now, node)
  }

  /**
   * Returns the nodes to probe, the nodes that are dead, which are not watched any more,
   * and when to call advance again.
   * @param {number} now @returns {{ probe: string[], dead: string[], next: number }}
   */
  advance (now) {
    /** @type {string[]} */
    const probe = []
    /** @type {string[]} */
    const dead = []
    let next = Infinity
    for (const [id, n] of this.#nodes) {
      if (n.due <= now) {
        if (n.probes === maxProbes) {
          this.#nodes.delete(id)
          dead.push(id)
          continue
        }
        n.probes++
        n.due = now + answerTimeout
        probe.push(id)
      }
      next = Math.min(next, n.due)
    }
    return { probe, dead, next }
  }
}
