// Package protocol holds the names and limits of the wire format that several
// packages share. docs/wire.md describes the format.
package protocol

import (
	"crypto/rand"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/protocol"
)

// ID is the protocol id of libp2p, so that a file needs only one package of this name.
type ID = protocol.ID

// The protocols of a node, each on streams of its own.
const (
	// Overlay carries links, membership and the watchdog.
	Overlay ID = prefix + "overlay/1.0.0"
	// Repair carries high-water marks and repairs of broadcasts.
	Repair ID = prefix + "repair/1.0.0"
	// Events carries direct events and calls.
	Events ID = prefix + "events/1.0.0"
	// Stream carries byte streams of the application.
	Stream ID = prefix + "stream/1.0.0"
)

const prefix = "/smokesignal/"

// IsOurs reports whether a protocol belongs to smokesignal, in any version.
func IsOurs(id ID) bool { return strings.HasPrefix(string(id), prefix) }

// Service is the name under which the resource manager of libp2p accounts the streams
// of a node. The streams of pubsub are not among them.
const Service = "smokesignal"

// DefaultNetwork is the network of a node, and of a ticket, that does not name one.
const DefaultNetwork = "default"

// MaxNetwork is the longest network name that messages may carry, in bytes.
const MaxNetwork = 128

// MaxPingInterval is the longest interval or timeout of the watchdog, also that of another
// node which its pings name.
const MaxPingInterval = 24 * time.Hour

// Topic returns the pubsub topic on which the nodes of a network broadcast.
func Topic(network string) string { return "smokesignal/" + network }

// Limits of the fields of a pubsub message, in bytes.
const (
	// MaxAuthor bounds the id of a sender.
	MaxAuthor = 64
	// MaxSeqno bounds pubsub's own sequence number.
	MaxSeqno = 64
	// MaxKey bounds a public key, and a signature.
	MaxKey = 4 << 10
)

// A Session names one run of a node's process. It is random.
type Session [8]byte

// NewSession returns a random session.
func NewSession() Session {
	var s Session
	rand.Read(s[:]) // never fails
	return s
}

// IsZero reports whether s is the zero session, which no node has.
func (s Session) IsZero() bool { return s == Session{} }
