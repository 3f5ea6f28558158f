package smokesignal

import (
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"
)

// ID identifies a node and is bound to its key. It is the peer.ID of libp2p: a string of
// bytes. String returns it as text, and ParseID reads that text.
type ID = peer.ID

// ErrBadID is returned by the Emit, TryEmit and Call of a Peer whose id is not the id of
// any node. Most often it was given as text: ParseID makes an ID of the text.
var ErrBadID = errors.New("smokesignal: bad id")

// ParseID reads an id as ID.String writes it: "12D3KooW...". The error is ErrBadID.
func ParseID(text string) (ID, error) {
	id, err := peer.Decode(text)
	if err != nil {
		return "", fmt.Errorf("%w: %.80q: %w", ErrBadID, text, err)
	}
	return id, nil
}

// checkID returns nil or an error that is ErrBadID and says how to mend the id.
func checkID(id ID) error {
	// The text of an id comes first: by chance it has the form of an id, too, as its
	// second character is the length of the rest. No id is the text of another.
	if _, err := peer.Decode(string(id)); err == nil {
		return fmt.Errorf("%w: %q is the text of an id; give Peer what ParseID returns for it", ErrBadID, string(id))
	}
	if _, err := peer.IDFromBytes([]byte(id)); err != nil {
		return fmt.Errorf("%w: %.80q is not the id of a node; ParseID reads the text of one", ErrBadID, string(id))
	}
	return nil
}
