// Frames: an unsigned varint length, and that many bytes (docs/wire.md, Frames).

import { malformed } from './errors.js'
import { Writer } from './protobuf.js'

/** @param {Uint8Array} payload */
export const encodeFrame = (payload) => new Writer().varint(payload.length).raw(payload).finish()

/** Cuts a stream of bytes into frames. */
export class FrameReader {
  /** @type {Uint8Array[]} */
  #chunks = []
  #at = 0 // in the first chunk
  #length = 0

  /** @param {number} max the most bytes that a frame may have */
  constructor (max) { this.max = max }

  /** @param {Uint8Array} chunk */
  push (chunk) {
    if (chunk.length === 0) return
    this.#chunks.push(chunk)
    this.#length += chunk.length
  }

  /** How many bytes have not been returned yet. */
  get length () { return this.#length }

  /** Whether a part of a frame has arrived. */
  get begun () { return this.#length > 0 }

  /** Returns the next frame, or undefined if it is not complete. */
  next () {
    let size = 0
    let header = 0
    for (let i = 0, at = this.#at, c = 0; ; at++) {
      if (header === this.#length) return undefined
      while (at === this.#chunks[c].length) {
        at = 0
        c++
      }
      const b = this.#chunks[c][at]
      if (i === 5) malformed('a length of more than five bytes')
      size += (b & 0x7f) * 2 ** (7 * i++)
      header++
      if (b < 0x80) {
        if (b === 0 && i > 1) malformed('a length that is longer than needed')
        break
      }
      if (i === 5) malformed('a length of more than five bytes')
    }
    if (size > this.max) malformed(`a frame of ${size} bytes, at most ${this.max}`)
    if (this.#length < header + size) return undefined
    this.#read(header)
    return this.#read(size)
  }

  /** Removes and returns the first n bytes. @param {number} n */
  #read (n) {
    this.#length -= n
    const first = this.#chunks[0]
    if (n > 0 && this.#at + n <= first.length) { // the common case, without a copy
      const b = first.subarray(this.#at, this.#at + n)
      this.#at += n
      if (this.#at === first.length) {
        this.#chunks.shift()
        this.#at = 0
      }
      return b
    }
    const b = new Uint8Array(n)
    for (let got = 0; got < n;) {
      const part = this.#chunks[0].subarray(this.#at, this.#at + n - got)
      b.set(part, got)
      got += part.length
      this.#at += part.length
      if (this.#at === this.#chunks[0].length) {
        this.#chunks.shift()
        this.#at = 0
      }
    }
    return b
  }
}
