/**
 * What is to be shown with the next frame, all at once: one message of a stranger may
 * bring thousands of lines. A page that nobody sees has no frames, so of the lines no
 * more are kept than are shown.
 * @template Line
 */
export class Pending {
  /** @type {Line[]} */
  #lines = []
  /** @type {string[] | undefined} */
  #names
  #due = false
  #show
  #most
  #frame

  /**
   * @param {(lines: Line[], names: string[] | undefined) => void} show given the names if they changed
   * @param {number} most lines @param {(f: () => void) => void} frame calls f before the next frame
   */
  constructor (show, most, frame) {
    this.#show = show
    this.#most = most
    this.#frame = frame
  }

  /** @param {Line} line */
  line (line) {
    this.#lines.push(line)
    if (this.#lines.length >= 2 * this.#most) this.#lines = this.#lines.slice(-this.#most)
    this.#later()
  }

  /** @param {string[]} names */
  here (names) {
    this.#names = names
    this.#later()
  }

  #later () {
    if (this.#due) return
    this.#due = true
    this.#frame(() => this.flush())
  }

  /** Shows it now. */
  flush () {
    this.#due = false
    const [lines, names] = [this.#lines.slice(-this.#most), this.#names]
    this.clear()
    if (lines.length > 0 || names !== undefined) this.#show(lines, names)
  }

  /** Shows nothing of it. */
  clear () {
    this.#lines = []
    this.#names = undefined
  }
}
