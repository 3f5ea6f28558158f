// A libp2p node as a leaf needs it, for Node and browsers.

import { floodsub } from '@libp2p/floodsub'
import { identify, identifyPush } from '@libp2p/identify'
import { noise } from '@libp2p/noise'
import { webSockets } from '@libp2p/websockets'
import { webTransport } from '@libp2p/webtransport'
import { yamux } from '@libp2p/yamux'
import { createLibp2p } from 'libp2p'

/**
 * Makes and starts a libp2p node that dials WebSocket and, in browsers, WebTransport.
 * It does not listen by default, so only the peers that it has dialed can reach it.
 * @param {object} [options]
 * @param {import('@libp2p/interface').PrivateKey} [options.privateKey] the identity; a new one by default
 * @param {any[]} [options.transports] more transports, such as tcp() in Node or webRTCDirect()
 * @param {any} [options.pubsub] the pubsub service; floodsub() by default
 * @param {string[]} [options.listen] multiaddrs to listen on, for transports that can
 * @returns {Promise<import('@libp2p/interface').Libp2p<any>>}
 */
export async function createNode ({ privateKey, transports = [], pubsub = floodsub(), listen = [] } = {}) {
  // Only browsers implement WebTransport.
  const inBrowser = 'WebTransport' in globalThis
  return await createLibp2p({
    privateKey,
    addresses: { listen },
    transports: [webSockets(), ...inBrowser ? [webTransport()] : [], ...transports],
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
    // In a browser, libp2p's default gater refuses addresses of the local network.
    connectionGater: { denyDialMultiaddr: async () => false },
    services: { identify: identify(), identifyPush: identifyPush(), pubsub }
  })
}
