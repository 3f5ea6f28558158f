package discovery

import (
	"errors"
	"fmt"
	"sync"

	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

// sources are the places, besides seeds and neighbors, where a driver looks for nodes.
type sources struct {
	book       *peerBook // nil without Config.PeerBook
	rendezvous []*rendezvous
	close      func() error // closes all, once
}

// openSources reads the peer book and makes the rendezvous.
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

// linksChanged reports that a link was made or ended. It does not block.
func (s *sources) linksChanged() {
	if s.book != nil {
		s.book.linksChanged()
	}
	for _, r := range s.rendezvous {
		r.linksChanged()
	}
}

// closeAll ends the sources. The error means that the peer book cannot be written.
func (s *sources) closeAll() error {
	for _, r := range s.rendezvous {
		r.close()
	}
	if s.book == nil {
		return nil
	}
	return s.book.close()
}

// outcomes returns one sentence for each source, for a node that has no link.
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
			list = append(list, errors.New("discovery has found no node"))
		default:
			list = append(list, errors.New("no link yet to the nodes that discovery has found"))
		}
	}
	return list
}
