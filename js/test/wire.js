// Everything that encodes and decodes, in one name space for the tests.

export * from '../src/batches.js'
export * from '../src/direct.js'
export * from '../src/errors.js'
export * from '../src/events.js'
export * from '../src/frames.js'
export * from '../src/limits.js'
export * from '../src/marks.js'
export * from '../src/originals.js'
export * from '../src/protobuf.js'
export * from '../src/tickets.js'
