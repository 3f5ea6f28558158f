// Package event holds the event that direct events, calls and broadcasts share: its form on the
// wire, the encoding of its arguments, and the errors of arguments.
//
// Each argument is encoded by itself: a []byte goes as it is, a proto.Message as protobuf, and
// everything else by the [Codec] of the node that sends it. Each argument names its encoding, so
// every node reads the events of every other node. A proto.Message inside another value is an
// ordinary struct to the codec. An argument that cannot be encoded (a channel, a function, text
// that is not UTF-8, in JSON also NaN) is an error that names the argument; nothing is sent then.
package event
