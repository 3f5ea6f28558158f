// Package protocol holds the limits of the wire format that several packages share.
package protocol

// MaxNetwork is the longest network name in bytes.
const MaxNetwork = 128
