// A leaf of a smokesignal network, on js-libp2p 3, for Node 22 and browsers: it takes part in
// broadcasts, direct events and calls, but not in the overlay. docs/wire.md specifies what it
// does.
//
//	const leaf = await join({ libp2p, network: 'default', addrs: [addr] })
//	leaf.on('chat', (from, text) => console.log(from, text))
//	leaf.onConnect(() => leaf.emit('chat', 'hello'))
//
// The application provides the libp2p node: with identify, with floodsub or gossipsub as the
// service `pubsub` (signing, as by default), and with any transports. createNode of
// smokesignal-leaf/libp2p makes one.

export {
  BadArgumentError, ClosedError, MalformedError, NoHandlerError, NotConnectedError, RemoteError, StalledError, TooLargeError,
  Undecodable, UnknownOutcomeError
} from './errors.js'
export { join } from './leaf.js'
export { formatTicket, parseTicket } from './tickets.js'

/** @typedef {import('./context.js').Stats} Stats */
/** @typedef {import('./handlers.js').Handler} Handler */
/** @typedef {import('./leaf.js').Gap} Gap */
/** @typedef {import('./leaf.js').JoinOptions} JoinOptions */
/** @typedef {import('./leaf.js').Leaf} Leaf */
/** @typedef {import('./peer.js').Peer} Peer */
/** @typedef {import('./tickets.js').Ticket} Ticket */
