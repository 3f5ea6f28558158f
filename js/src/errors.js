// The errors of this package.

/** Thrown for bytes that break a rule of docs/wire.md. */
export class MalformedError extends Error { name = 'MalformedError' }
/** Thrown when there is no connection to send over. Nothing was sent. */
export class NotConnectedError extends Error { name = 'NotConnectedError' }
/** Thrown for more than fits into an event or a queue. Nothing was sent. */
export class TooLargeError extends Error { name = 'TooLargeError' }
/** Thrown when the leaf was closed. */
export class ClosedError extends Error { name = 'ClosedError' }
/** Thrown when the other side accepted no data for ten seconds. */
export class StalledError extends Error { name = 'StalledError' }
/** Thrown when the other side has no handler for a call. Nothing has run. */
export class NoHandlerError extends Error { name = 'NoHandlerError' }
/** Thrown when the other side cannot read the arguments of a call. Nothing has run. */
export class BadArgumentError extends Error { name = 'BadArgumentError' }
/** Thrown when the other side's handler ran and failed. The message is the handler's. */
export class RemoteError extends Error { name = 'RemoteError' }
/** Thrown when a call got no answer. The handler may have run, or may still run. */
export class UnknownOutcomeError extends Error { name = 'UnknownOutcomeError' }

/** The value of an argument that cannot be decoded here. */
export class Undecodable {
  /** @param {number} codec @param {Uint8Array} data @param {string} reason */
  constructor (codec, data, reason) {
    this.codec = codec
    this.data = data
    this.reason = reason
  }
}

/** @param {string} text @returns {never} */
export function malformed (text) { throw new MalformedError(text) }
