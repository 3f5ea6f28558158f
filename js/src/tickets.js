// Tickets (docs/wire.md, Tickets).

import { multiaddr } from '@multiformats/multiaddr'
import { base32 } from 'multiformats/bases/base32'
import { base58btc } from 'multiformats/bases/base58'
import { malformed } from './errors.js'
import { limits } from './limits.js'
import { idBytes, idOf } from './marks.js'
import { Writer, concat, equal, fields, textOf } from './protobuf.js'

/** @import { Field } from './protobuf.js' */

/** @typedef {{ id: string, network: string, addrs: string[] }} Ticket */

/** @param {Uint8Array} b */
function crc32 (b) {
  let sum = -1
  for (const c of b) {
    sum ^= c
    for (let k = 0; k < 8; k++) sum = sum & 1 ? sum >>> 1 ^ 0xedb88320 : sum >>> 1
  }
  return (sum ^ -1) >>> 0
}

// The multiaddr codes that an endpoint of a ticket stands for.
const [codeIP4, codeIP6, codeTCP, codeUDP, codeQUIC] = [4, 41, 6, 273, 461]

/**
 * Decodes a ticket, in upper or lower case. It throws a MalformedError if a letter is wrong
 * or missing, and if the ticket has no address that can be dialed.
 * @param {string} text @returns {Ticket}
 */
export function parseTicket (text) {
  const b = ticketBytes(text)
  const message = b.subarray(0, -4)
  if (crc32(message) !== new DataView(b.buffer, b.byteOffset + message.length).getUint32(0)) malformed('a ticket with a letter that is wrong or missing')
  /** @type {Ticket} */
  const ticket = { id: '', network: 'default', addrs: [] }
  let places = 0
  for (const f of fields(message)) {
    switch (f.num) {
      case 1:
        ticket.id = f.bytes.length === 32 ? base58btc.baseEncode(concat([Uint8Array.of(0, 36, 8, 1, 18, 32), f.bytes])) : idOf(f.bytes)
        break
      case 2:
        ticket.network = textOf(f.bytes)
        if (f.bytes.length === 0 || f.bytes.length > limits.network) malformed('a ticket with a network name that is empty or too long')
        break
      case 3:
      case 4:
        if (places++ < limits.places) ticket.addrs.push(...placeOf(f))
    }
  }
  if (ticket.id === '') malformed('a ticket without an id')
  if (ticket.addrs.length === 0) malformed('a ticket without an address')
  return ticket
}

/** Returns the bytes of a ticket, including the checksum. @param {string} text */
export function ticketBytes (text) {
  const t = text.toLowerCase()
  if (!t.startsWith('smoke')) malformed('a ticket begins with smoke1')
  if (t[5] !== '1') malformed('a ticket of another version')
  if (t.length > limits.ticket) malformed('a ticket that is too long')
  let b
  try {
    b = base32.baseDecode(t.slice(6))
  } catch {
    return malformed('a ticket with a letter that is wrong')
  }
  if (ticketText(b) !== t || b.length < 4) malformed('a ticket with a letter that is wrong or missing')
  return b
}

/** Returns the text of a ticket. @param {Uint8Array} b including the checksum */
export const ticketText = (b) => 'smoke1' + base32.baseEncode(b)

/** Returns the addresses of a place, or none if it is unknown here. @param {Field} f */
function placeOf (f) {
  if (f.num === 3) {
    const ip = f.bytes.subarray(0, -2)
    const port = f.bytes.subarray(-2)
    if ((ip.length !== 4 && ip.length !== 16) || !isDialable(ip) || (port[0] === 0 && port[1] === 0)) return []
    const at = new Writer().varint(ip.length === 4 ? codeIP4 : codeIP6).raw(ip).finish()
    return [
      concat([at, new Writer().varint(codeTCP).raw(port).finish()]),
      concat([at, new Writer().varint(codeUDP).raw(port).varint(codeQUIC).finish()])
    ].map((b) => multiaddr(b).toString())
  }
  try {
    const a = multiaddr(f.bytes)
    const [first, second] = a.getComponents()
    if (first === undefined || second?.value === '0') return []
    if (first.code === codeIP4 && !isDialable(f.bytes.subarray(1, 5))) return []
    if (first.code === codeIP6 && !isDialable(f.bytes.subarray(1, 17))) return []
    return [a.toString()]
  } catch {
    return []
  }
}

/** @param {Uint8Array} ip */
function isDialable (ip) {
  if (ip.every((c) => c === 0)) return false
  if (ip.length === 4) return ip[0] < 224
  return ip[0] !== 0xff && !(ip[0] === 0xfe && (ip[1] & 0xc0) === 0x80)
}

/**
 * Encodes a ticket. TCP and QUIC on one port are one place; at most eight places are written.
 * @param {Ticket} ticket
 */
export function formatTicket ({ id, network, addrs }) {
  const key = idBytes(id)
  const w = new Writer()
  const ed25519 = key.length === 38 && equal(key.subarray(0, 6), Uint8Array.of(0, 36, 8, 1, 18, 32))
  w.bytes(1, ed25519 ? key.subarray(6) : key)
  if (network !== 'default') w.text(2, network)
  const plain = addrs.map((a) => a.replace(/\/p2p\/[^/]+$/, ''))
  /** @type {Map<string, Uint8Array>} */
  const endpoints = new Map()
  const others = new Set()
  for (const a of plain) {
    const [, at, port] = a.match(/^(\/ip[46]\/[^/]+)\/(?:tcp\/(\d+)|udp\/\d+\/quic-v1)$/) ?? a.match(/^(\/ip[46]\/[^/]+)\/udp\/(\d+)\/quic-v1$/) ?? []
    const number = port ?? a.match(/\/udp\/(\d+)/)?.[1]
    const tcp = `${at}/tcp/${number}`
    if (at !== undefined && plain.includes(tcp) && plain.includes(`${at}/udp/${number}/quic-v1`)) {
      const b = multiaddr(tcp).bytes // code of the IP version, IP address, code of TCP, port
      endpoints.set(tcp, concat([b.subarray(1, -3), b.subarray(-2)]))
    } else {
      others.add(a)
    }
  }
  const places = [...endpoints.values()].slice(0, limits.places)
  for (const b of places) w.message(3, b)
  for (const a of [...others].slice(0, limits.places - places.length)) w.message(4, multiaddr(a).bytes)
  const message = w.finish()
  const sum = new Uint8Array(4)
  new DataView(sum.buffer).setUint32(0, crc32(message))
  return ticketText(concat([message, sum]))
}
