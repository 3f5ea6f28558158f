package discovery

import (
	"context"
	"errors"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/discovery/internal/overlay"
)

// SeedStatus is what is known of a seed.
type SeedStatus struct {
	Seed string    // as the user wrote it
	ID   peer.ID   // empty until it was reached
	Err  error     // why it cannot be used at present, or nil
	Next time.Time // of the next attempt; zero if none is planned
	Self bool      // it is this node
}

// seedState is what the user is told of a seed; which one is tried when is decided
// by the overlay. It is owned by the loop.
type seedState struct {
	seed *Seed
	id   peer.ID
	self bool
	full bool // it turned us down for want of room

	err  error
	told string // the last cause told to the user
}

// askSeed looks who is at the seed's address, on a goroutine of its own.
func (d *Driver) askSeed(now time.Time, o overlay.AskSeed) {
	s := d.seeds[o.Seed]
	if s.full && d.state.Degree() == 0 { // turned down, and nobody else took us in meanwhile
		d.seedFailed(now, o.Seed, ErrFull)
	}
	if d.ctx.Err() != nil {
		return
	}
	d.tasks.Go(func() {
		ctx, cancel := context.WithTimeout(d.ctx, dialTimeout)
		defer cancel()
		info, err := s.seed.Find(ctx, d.host)
		d.run(func() {
			switch {
			case errors.Is(err, ErrSelf):
				s.self = true
				d.seedFailed(time.Now(), o.Seed, err)
				if d.cfg.Hooks.SeedIsSelf != nil {
					d.cfg.Hooks.SeedIsSelf(s.seed.String())
				}
				d.step(overlay.SeedSelf(o))
			case err != nil:
				if d.ctx.Err() == nil {
					d.seedFailed(time.Now(), o.Seed, err)
				}
				d.step(overlay.SeedFailed(o))
			default:
				d.seedFound(o.Seed, s, info)
			}
		})
	})
}

// Find looks who is at the seed's address, and leaves a connection to it. What it makes
// and closes of connections is told apart from what others use, as of the driver's own.
func (d *Driver) Find(ctx context.Context, s *Seed) (peer.AddrInfo, error) {
	return s.Find(ctx, d.host)
}

func (d *Driver) seedFound(i int, s *seedState, info peer.AddrInfo) {
	if s.id != "" && s.id != info.ID {
		d.log.Warn("seed has a new identity", "seed", s.seed, "was", s.id, "is", info.ID)
	}
	s.id = info.ID
	// What kept it from being found is over; what it answered itself may not be.
	if _, refused := errors.AsType[*LinkError](s.err); !refused && !errors.Is(s.err, ErrFull) && !errors.Is(s.err, ErrOtherNetwork) {
		s.err, s.told = nil, ""
	}
	if d.cfg.Hooks.SeedFound != nil {
		d.cfg.Hooks.SeedFound(s.seed.String(), info)
	}
	d.step(overlay.SeedFound{Seed: i, Contact: overlay.Contact{ID: info.ID, Addrs: info.Addrs}})
}

// seedLinked clears the fault of the seed that p is.
func (d *Driver) seedLinked(p peer.ID) {
	for _, s := range d.seeds {
		if s.id == p {
			s.err, s.told = nil, ""
		}
		// Somebody took us in, so that one seed is full is no fault.
		s.full = false
		if errors.Is(s.err, ErrFull) {
			s.err, s.told = nil, ""
		}
	}
}

// seedRefused records why a seed that was reached turned us down.
func (d *Driver) seedRefused(now time.Time, o overlay.Refused) {
	for i, s := range d.seeds {
		if s.id != o.Peer || s.id == "" {
			continue
		}
		switch o.Reason {
		case overlay.ReasonFull:
			s.full = true // a fault only if its redirects lead nowhere
		case overlay.ReasonNetwork, overlay.ReasonProtocol, overlay.ReasonTimeout:
			// Not ReasonUnreachable: that may be a dial to an identity the seed had
			// before, and Find says better what is wrong with the address.
			d.seedFailed(now, i, refusal(o.Peer, o.Reason, d.cfg.Network, o.Network))
		}
	}
}

// seedFailed tells the user why a seed cannot be used, when that changes.
func (d *Driver) seedFailed(now time.Time, i int, err error) {
	s := d.seeds[i]
	s.err = err
	cause := err.Error()
	if s.told == cause {
		return
	}
	s.told = cause
	e := &SeedError{Seed: s.seed.String(), Err: err}
	if next := d.state.SeedNext(i); !s.self && !next.IsZero() {
		e.Next = next
	}
	d.log.Warn("cannot use seed", "seed", e.Seed, "err", err, "next", e.Next)
	if d.cfg.Hooks.SeedError != nil {
		d.cfg.Hooks.SeedError(e)
	}
}

// refusal puts into words why a node that was reached did not link to us.
func refusal(p peer.ID, why overlay.Reason, ours, theirs string) error {
	if why == overlay.ReasonNetwork {
		return otherNetwork(theirs, ours)
	}
	return &LinkError{Peer: p, Reason: why}
}

// SeedLost says that the seed is not heard any more through the overlay: it is
// then tried until SeedHeard, and linked to even if there are enough links.
func (d *Driver) SeedLost(seed string) {
	d.run(func() {
		for i, s := range d.seeds {
			if s.seed.String() == seed {
				d.step(overlay.SeedLost{Seed: i})
			}
		}
	})
}

// SeedHeard ends what SeedLost began.
func (d *Driver) SeedHeard(seed string) {
	d.run(func() {
		for i, s := range d.seeds {
			if s.seed.String() == seed {
				s.err, s.told = nil, ""
				d.step(overlay.SeedHeard{Seed: i})
			}
		}
	})
}

// Seeds returns the state of all seeds in the order they were given.
func (d *Driver) Seeds() (list []SeedStatus) {
	d.ask(context.Background(), func() {
		now := time.Now()
		for i, s := range d.seeds {
			status := SeedStatus{Seed: s.seed.String(), ID: s.id, Err: s.err, Self: s.self}
			if next := d.state.SeedNext(i); next.After(now) {
				status.Next = next
			}
			list = append(list, status)
		}
	})
	return list
}
