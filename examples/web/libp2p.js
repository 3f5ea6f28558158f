// A libp2p node as a leaf needs it, in Node and in browsers.

import { floodsub } from '@libp2p/floodsub'
import { identify, identifyPush } from '@libp2p/identify'
import { noise } from '@libp2p/noise'
import { webRTCDirect } from '@libp2p/webrtc'
import { webSockets } from '@libp2p/websockets'
import { webTransport } from '@libp2p/webtransport'
import { yamux } from '@libp2p/yamux'
import { createLibp2p } from 'libp2p'

/**
 * Makes and starts a libp2p node that dials WebSocket, WebTransport and
 * WebRTC-direct. It does not listen, so it is reached by those it has dialled.
 * @param {object} [options]
 * @param {import('@libp2p/interface').PrivateKey} [options.privateKey] its identity; by default a new one
 * @param {any[]} [options.transports] beside those, such as tcp() in Node
 * @param {any} [options.pubsub] a service, floodsub() by default
 * @param {string[]} [options.listen] multiaddrs to listen at, for transports that can
 */
export async function createNode ({ privateKey, transports = [], pubsub = floodsub(), listen = [] } = {}) {
  // WebTransport is a matter of browsers.
  const inBrowser = 'WebTransport' in globalThis
  return await createLibp2p({
    privateKey,
    addresses: { listen },
    transports: [webSockets(), webRTCDirect(), ...inBrowser ? [webTransport()] : [], ...transports],
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
    // The default refuses the addresses of the local network in a browser.
    connectionGater: { denyDialMultiaddr: async () => false },
    services: { identify: identify(), identifyPush: identifyPush(), pubsub }
  })
}
