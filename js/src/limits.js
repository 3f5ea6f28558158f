// The protocol ids and limits of docs/wire.md.

export const protocols = Object.freeze({
  overlay: '/smokesignal/overlay/1.0.0', // spoken by nodes only
  repair: '/smokesignal/repair/1.0.0',
  events: '/smokesignal/events/1.0.0'
})

// Sizes are in bytes, the others are counts.
export const limits = Object.freeze({
  event: 512 << 10, // an encoded event
  name: 128,
  args: 64,
  batch: 768 << 10,
  batchEvents: 16384,
  hello: 1 << 10,
  envelope: 64, // what a frame adds to its event
  errorText: 1 << 10,
  marks: 1024,
  marksBytes: 64 << 10,
  answerBytes: 1 << 20, // the originals that answer one want
  network: 128,
  id: 64, // a peer id
  key: 4 << 10, // a public key, and a signature
  seqno: 64, // of pubsub
  ticket: 4096,
  places: 8,
  number: 1n << 62n
})
