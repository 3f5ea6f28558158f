// Package protocol holds the names and limits of the wire format that more than one package
// uses. docs/wire.md describes the format.
package protocol

import (
	"crypto/rand"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/protocol"
)

// ID is libp2p's type for protocol ids, here so that a file need not import libp2p's package
// protocol as well.
type ID = protocol.ID

// The protocols of a node, each on streams of its own.
const (
	// Overlay carries links, membership and the watchdog.
	Overlay ID = prefix + "overlay/1.0.0"
	// Repair carries high-water marks (how many broadcasts of each sender a node knows of) and
	// repairs of broadcasts.
	Repair ID = prefix + "repair/1.0.0"
	// Events carries direct events and calls.
	Events ID = prefix + "events/1.0.0"
	// Stream carries byte streams of the application.
	Stream ID = prefix + "stream/1.0.0"
)

const prefix = "/smokesignal/"

// IsOurs reports whether a protocol belongs to smokesignal, in any version.
func IsOurs(id ID) bool { return strings.HasPrefix(string(id), prefix) }

// Service is the service name under which libp2p's resource manager counts the streams of a
// node, except those of pubsub.
const Service = "smokesignal"

// DefaultNetwork is the network name of nodes and tickets for which none is given.
const DefaultNetwork = "default"

// MaxNetwork is the length in bytes of the longest network name in a message.
const MaxNetwork = 128

// MaxPingInterval is the longest ping interval or ping timeout that a watchdog may have, its
// own or that in another node's ping.
const MaxPingInterval = 24 * time.Hour

// Topic returns the pubsub topic on which the nodes of a network broadcast.
func Topic(network string) string { return "smokesignal/" + network }

// The largest sizes of the fields of a pubsub message, in bytes.
const (
	// MaxAuthor limits the id of the sender.
	MaxAuthor = 64
	// MaxSeqno limits pubsub's own sequence number.
	MaxSeqno = 64
	// MaxKey is the largest size of the author's public key, and also of the signature.
	MaxKey = 4 << 10
)

// A Session is a random number that identifies one run of a node's process.
type Session [8]byte

// NewSession returns a random session.
func NewSession() Session {
	var s Session
	rand.Read(s[:]) // crypto/rand never returns an error
	return s
}

// IsZero reports whether s is zero, which is not the session of any node.
func (s Session) IsZero() bool { return s == Session{} }
