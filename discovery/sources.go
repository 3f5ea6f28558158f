package discovery

import (
	"errors"
	"fmt"
	"sync"

	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

// sources are the places where a driver looks for nodes in addition to its seeds and neighbors.
type sources struct {
	book       *peerBook // nil without Config.PeerBook
	rendezvous []*rendezvous
	close      func() error // calls closeAll once, however often it is called
}

// openSources reads the peer book and creates one rendezvous for each service in the
// configuration.
func (d *Driver) openSources() (err error) {
	s := &d.sources
	if d.cfg.PeerBook != "" {
		if s.book, err = openPeerBook(d.cfg.PeerBook, d.cfg.Network, d.log); err != nil {
			return err
		}
	}
	for _, service := range d.cfg.Rendezvous {
		s.rendezvous = append(s.rendezvous, newRendezvous(service, protocol.Topic(d.cfg.Network), d.cfg.Min, d.log))
	}
	s.close = sync.OnceValue(s.closeAll)
	return nil
}

func (s *sources) start(d *Driver) {
	if s.book != nil {
		s.book.start(d)
	}
	for _, r := range s.rendezvous {
		r.start(d)
	}
}

// linksChanged tells the sources that a link was made or ended. It does not block.
func (s *sources) linksChanged() {
	if s.book != nil {
		s.book.linksChanged()
	}
	for _, r := range s.rendezvous {
		r.linksChanged()
	}
}

// closeAll ends all sources. An error means that the peer book could not be written.
func (s *sources) closeAll() error {
	for _, r := range s.rendezvous {
		r.close()
	}
	if s.book == nil {
		return nil
	}
	return s.book.close()
}

// outcomes returns one sentence for each source that says why it has led to no link. It is
// called when the node has no link.
func (s *sources) outcomes() (list []error) {
	if s.book != nil {
		if n := s.book.len(); n == 0 {
			list = append(list, errors.New("the peer book is empty"))
		} else {
			list = append(list, fmt.Errorf("no link yet to any of %d nodes in the peer book", n))
		}
	}
	for _, r := range s.rendezvous {
		found, err := r.status()
		switch {
		case err != nil:
			list = append(list, fmt.Errorf("discovery: %w", err))
		case found == 0:
			list = append(list, errors.New("the libp2p Discovery has found no node"))
		default:
			list = append(list, errors.New("no link yet to the nodes that the libp2p Discovery has found"))
		}
	}
	return list
}
