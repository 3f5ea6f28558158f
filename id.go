package smokesignal

import (
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"
)

// ID identifies a node and is bound to its key. It is the peer.ID of libp2p: a string of
// bytes. String returns it as text, and ParseID reads that text.
type ID = peer.ID

// ErrBadID is returned by Emit, TryEmit and Call of a Peer whose id cannot be the id of any
// node. The most frequent mistake is to convert text to an ID; use ParseID for that.
var ErrBadID = errors.New("smokesignal: bad id")

// ParseID reads an id as ID.String writes it: "12D3KooW...". The error is ErrBadID.
func ParseID(text string) (ID, error) {
	id, err := peer.Decode(text)
	if err != nil {
		return "", fmt.Errorf("%w: %.80q: %w", ErrBadID, text, err)
	}
	return id, nil
}

// checkID returns nil if id can be the id of a node. Otherwise the error is ErrBadID, and
// its text says what to do.
func checkID(id ID) error {
	// The text of an id is looked for first, because by chance the text also has the form of
	// an id: its second character is read as the length of the rest, and fits. No real id
	// is at the same time the text of an id.
	if _, err := peer.Decode(string(id)); err == nil {
		return fmt.Errorf("%w: %q is the text of an id; give Peer what ParseID returns for it", ErrBadID, string(id))
	}
	if _, err := peer.IDFromBytes([]byte(id)); err != nil {
		return fmt.Errorf("%w: %.80q is not the id of a node; ParseID reads the text of one", ErrBadID, string(id))
	}
	return nil
}
