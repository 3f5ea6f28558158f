/**
 * Collects what the page shows, and shows it once per frame, because one message of a peer
 * may bring thousands of lines. A hidden page has no frames, so only the newest lines are kept.
 * @template Line
 */
export class Pending {
  /** @type {Line[]} */
  #lines = []
  /** @type {string[] | undefined} */
  #names
  #due = false
  #show
  #maxLines
  #onFrame

  /**
   * @param {(lines: Line[], names: string[] | undefined) => void} show gets the names if they changed
   * @param {number} maxLines @param {(f: () => void) => void} onFrame calls f before the next frame
   */
  constructor (show, maxLines, onFrame) {
    this.#show = show
    this.#maxLines = maxLines
    this.#onFrame = onFrame
  }

  /** @param {Line} line */
  addLine (line) {
    this.#lines.push(line)
    if (this.#lines.length >= 2 * this.#maxLines) this.#lines = this.#lines.slice(-this.#maxLines)
    this.#schedule()
  }

  /** @param {string[]} names */
  setNames (names) {
    this.#names = names
    this.#schedule()
  }

  #schedule () {
    if (this.#due) return
    this.#due = true
    this.#onFrame(() => this.flush())
  }

  /** Shows everything now. */
  flush () {
    this.#due = false
    const [lines, names] = [this.#lines.slice(-this.#maxLines), this.#names]
    this.clear()
    if (lines.length > 0 || names !== undefined) this.#show(lines, names)
  }

  /** Drops everything that was not shown yet. */
  clear () {
    this.#lines = []
    this.#names = undefined
  }
}
