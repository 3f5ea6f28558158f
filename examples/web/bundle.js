// What the page needs of packages, as one file: build.js makes page/bundle.js of it.

export { createNode } from './libp2p.js'
export { join } from './smokesignal.js'
export { encode as encodeQR } from 'uqr'
