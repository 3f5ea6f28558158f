// The parts of the packages that the page uses, as one file: build.js makes
// page/bundle.js from it.

import { webRTCDirect } from '@libp2p/webrtc'
import { createNode } from 'smokesignal-leaf/libp2p'

export { join } from 'smokesignal-leaf'
export { encode as encodeQR } from 'uqr'

/** Makes a libp2p node that dials over each transport that a browser has. */
export const newNode = () => createNode({ transports: [webRTCDirect()] })
