// Originals: batches as signed messages of pubsub, which anybody can hand on (docs/wire.md,
// Marks and repair).

import { publicKeyFromProtobuf, publicKeyToProtobuf } from '@libp2p/crypto/keys'
import { peerIdFromMultihash, peerIdFromPublicKey } from '@libp2p/peer-id'
import * as Digest from 'multiformats/hashes/digest'
import { malformed } from './errors.js'
import { limits } from './limits.js'
import { idOf } from './marks.js'
import { Writer, fields, noBytes, textOf, utf8 } from './protobuf.js'

/**
 * A signed pubsub message.
 * @typedef {{ from: Uint8Array, data: Uint8Array, seqno: Uint8Array, topic: string, signature: Uint8Array, key: Uint8Array }} PubsubMessage
 */

/** Returns the bytes that are signed: all fields but the signature and the key. @param {PubsubMessage} m */
function signedPart (m) {
  return new Writer().raw(utf8.encode('libp2p-pubsub:')).raw(messageBytes(m)).finish()
}

/** @param {PubsubMessage} m */
const messageBytes = (m) => new Writer().message(1, m.from).message(2, m.data).message(3, m.seqno).message(4, utf8.encode(m.topic)).finish()

/**
 * Signs a batch, so that it can be sent as an original.
 * @param {import('@libp2p/interface').PrivateKey} key @param {string} topic @param {Uint8Array} data
 */
export async function signOriginal (key, topic, data) {
  const seqno = crypto.getRandomValues(new Uint8Array(8))
  seqno[0] ||= 1 // implementations that decode it as a number would lose a leading zero
  const id = peerIdFromPublicKey(key.publicKey)
  const m = { from: id.toMultihash().bytes, data, seqno, topic, signature: noBytes, key: noBytes }
  m.signature = await key.sign(signedPart(m))
  const w = new Writer().raw(messageBytes(m)).bytes(5, m.signature)
  // Other ids contain the key; that of an RSA key is a hash.
  if (id.type === 'RSA') w.bytes(6, publicKeyToProtobuf(key.publicKey))
  return w.finish()
}

/**
 * Checks the signature of an original, and returns its sender, topic and data.
 * @param {Uint8Array} b
 */
export async function openOriginal (b) {
  /** @type {Record<number, Uint8Array>} */
  const f = {}
  for (const { num, type, bytes } of fields(b)) {
    if (num > 6 || type !== 2) malformed('an original with a field that was not signed')
    f[num] = bytes
  }
  const m = { from: f[1] ?? noBytes, data: f[2] ?? noBytes, seqno: f[3] ?? noBytes, topic: textOf(f[4] ?? noBytes), signature: f[5] ?? noBytes, key: f[6] ?? noBytes }
  if (m.from.length > limits.id || m.seqno.length > limits.seqno || m.key.length > limits.key || m.signature.length > limits.key) {
    malformed('an original with a field out of bounds')
  }
  // A field that is missing here was missing when it was signed, too.
  const w = new Writer().raw(utf8.encode('libp2p-pubsub:'))
  for (const num of [1, 2, 3, 4]) if (f[num] !== undefined) w.message(num, f[num])
  let signed = false
  try {
    signed = await keyOf(m).verify(w.finish(), m.signature)
  } catch {} // bytes that are not a key or not a signature
  if (!signed) malformed('an original that its sender has not signed')
  return { sender: idOf(m.from), topic: m.topic, data: m.data }
}

/** Returns the sender's key, from its id or from the message. @param {PubsubMessage} m @returns {import('@libp2p/interface').PublicKey} */
function keyOf (m) {
  const id = peerIdFromMultihash(Digest.decode(m.from))
  if (m.key.length === 0) return id.publicKey ?? malformed('an original without a key')
  const key = publicKeyFromProtobuf(m.key)
  if (!peerIdFromPublicKey(key).equals(id)) malformed('an original with the key of another')
  return key
}
