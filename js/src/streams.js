// Frames on the streams of js-libp2p.

import { NotConnectedError, StalledError, malformed } from './errors.js'
import { FrameReader, encodeFrame } from './frames.js'
import { maxBusy, yieldToOthers } from './handlers.js'

/** @import { Stream } from '@libp2p/interface' */

/** How long a peer may accept no data before the stream counts as broken, in ms. */
export const stallTimeout = 10_000
/** How long a frame may take from its first byte to its last, in ms. */
export const frameTimeout = 10_000
/** How long each step on a stream of repair may take, in ms. */
export const repairTimeout = 5000

const maxUnsent = 64 << 10 // bytes that a stream may buffer before its writer waits
// A paused stream still receives what the other side sends before it learns of the pause:
// at most the window of yamux.
const maxBuffered = (16 << 20) + 1
const readAhead = 256 << 10 // bytes beyond one frame at which a stream is paused

/** @param {unknown} err */
export const asError = (err) => err instanceof Error ? err : new Error(String(err))

/** @param {Stream} stream @param {unknown} err */
export function resetStream (stream, err) {
  try {
    stream.abort(asError(err))
  } catch {} // it has ended already
}

/**
 * Writes a frame, and resolves when the stream has room for another one. It rejects with
 * a StalledError when the other side accepts no data for so long, and with a
 * NotConnectedError when the stream ends.
 * @param {Stream} stream @param {Uint8Array} payload @param {number} [timeout] ms
 */
export async function writeFrame (stream, payload, timeout = stallTimeout) {
  stream.send(encodeFrame(payload))
  // The stream's onDrain method cannot be used: after its first call it resolves at once.
  for (let unsent = stream.writeBufferLength, since = performance.now(); unsent > maxUnsent;) {
    await new Promise((resolve) => {
      const events = /** @type {const} */ (['drain', 'idle', 'close'])
      const done = () => {
        clearTimeout(timer)
        for (const e of events) stream.removeEventListener(e, done)
        resolve(undefined)
      }
      const timer = setTimeout(done, timeout)
      for (const e of events) stream.addEventListener(e, done)
    })
    if (stream.status !== 'open') throw new NotConnectedError('smokesignal: the stream was closed')
    if (stream.writeBufferLength < unsent) [unsent, since] = [stream.writeBufferLength, performance.now()]
    else if (performance.now() - since >= timeout) throw new StalledError('smokesignal: the other side accepts no data')
  }
}

/**
 * Reads the frames of a stream. It buffers little more than the frame that is asked for,
 * so a slow reader holds back its own sender, and no other peer.
 */
export class StreamReader {
  #reader
  #stream
  /** @type {(() => void) | undefined} */
  #wake
  #ended = false
  /** @type {Error | undefined} */
  #error
  #idleTimeout = Infinity
  #yieldedAt = performance.now()

  /** @param {Stream} stream @param {number} max bytes of a frame @param {number} frameTimeout ms from its first byte to its last */
  constructor (stream, max, frameTimeout) {
    this.#stream = stream
    this.#reader = new FrameReader(max)
    this.frameTimeout = frameTimeout
    stream.maxReadBufferLength = maxBuffered
    stream.addEventListener('message', (evt) => {
      this.#reader.push(evt.data.subarray())
      if (this.#reader.length > this.#reader.max + readAhead && stream.readStatus === 'readable') stream.pause()
      this.#wake?.()
    })
    stream.addEventListener('end', () => this.#setEnded())
    stream.addEventListener('remoteCloseWrite', () => this.#wake?.())
    stream.addEventListener('close', (evt) => this.#setEnded(evt.error))
    if (stream.readableEnded || stream.status !== 'open') this.#setEnded()
  }

  /** @param {Error} [err] */
  #setEnded (err) {
    this.#ended = true
    this.#error ??= err
    this.#wake?.()
  }

  /** @param {number} max bytes of a frame */
  setMaxFrame (max) { this.#reader.max = max }

  /** Limits how long each frame is waited for. @param {number} ms */
  setIdleTimeout (ms) {
    this.#idleTimeout = ms
    this.#wake?.()
  }

  /**
   * Returns the next frame, or undefined at the end of the stream. It throws when the
   * stream is reset, and when a frame is malformed or incomplete for too long.
   * @param {number} [timeout] ms until the frame must be complete
   * @returns {Promise<Uint8Array | undefined>}
   */
  async next (timeout = Infinity) {
    // Many frames that have arrived already would otherwise be handled in one go.
    if (performance.now() - this.#yieldedAt > maxBusy) {
      await yieldToOthers()
      this.#yieldedAt = performance.now()
    }
    const called = performance.now()
    let begun = this.#reader.begun ? called : Infinity
    for (;;) {
      const frame = this.#reader.next()
      if (frame !== undefined) return frame
      if (this.#stream.readStatus === 'paused') {
        this.#stream.resume() // which may deliver data before it returns
        continue
      }
      if (this.#ended) {
        if (this.#error !== undefined) throw this.#error
        if (this.#reader.begun) malformed('the stream ends inside a frame')
        return undefined
      }
      if (this.#reader.begun) begun = Math.min(begun, performance.now())
      const left = Math.min(called + Math.min(timeout, this.#idleTimeout), begun + this.frameTimeout) - performance.now()
      if (left <= 0) malformed('a frame was not complete in time')
      await new Promise((resolve) => {
        const timer = left === Infinity ? undefined : setTimeout(resolve, left)
        this.#wake = () => {
          clearTimeout(timer)
          resolve(undefined)
        }
      })
      this.#wake = undefined
    }
  }
}
