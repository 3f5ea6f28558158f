package discovery

import (
	"context"
	"errors"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/discovery/internal/overlay"
	"github.com/go-smokesignal/smokesignal/internal/seed"
)

// A SeedStatus is the state of a seed.
type SeedStatus struct {
	Seed string    // the seed as the user wrote it
	ID   peer.ID   // the id of the node that was last found at the seed; empty if none was found yet
	Err  error     // why the seed cannot be used at present, or nil
	Next time.Time // the time of the next attempt to use the seed; zero if none is planned
	Self bool      // the seed is an address of this node
}

// A seedProgress is what the driver knows of a seed. The state machine decides when to try the
// seed. Only the loop uses a seedProgress.
type seedProgress struct {
	seed *seed.Seed
	id   peer.ID // the id of the node that was last found at the seed; empty if none was found yet
	self bool    // the seed is an address of this node
	full bool    // the seed refused a link because it has its maximum number of links

	err      error
	reported string // the text of the error of this seed that was last reported to the user
}

func (s *seedProgress) clearError() { s.err, s.reported = nil, "" }

// Seeds returns the state of all seeds, in the order of the configuration. It returns nil once
// the driver is closed.
func (d *Driver) Seeds() (list []SeedStatus) {
	d.ask(context.Background(), func() {
		now := time.Now()
		for i, s := range d.seeds {
			status := SeedStatus{Seed: s.seed.String(), ID: s.id, Err: s.err, Self: s.self}
			// If this time is in the past, an attempt to use the seed is under
			// way, and status.Next stays zero.
			if next := d.state.SeedNext(i); next.After(now) {
				status.Next = next
			}
			list = append(list, status)
		}
	})
	return list
}

// seedLost tells the driver that the seed is no longer heard through the overlay. Until
// seedHeard is called, the driver tries to link to the seed, even if it has enough links.
func (d *Driver) seedLost(seed string) {
	d.withSeed(seed, func(i int, _ *seedProgress) { d.step(overlay.SeedLost{Seed: i}) })
}

// seedHeard ends the effect of seedLost.
func (d *Driver) seedHeard(seed string) {
	d.withSeed(seed, func(i int, s *seedProgress) {
		s.clearError()
		d.step(overlay.SeedHeard{Seed: i})
	})
}

// withSeed calls f on the loop for each seed of the driver whose text is seed. f gets the
// index of the seed and its seedProgress.
func (d *Driver) withSeed(seed string, f func(i int, s *seedProgress)) {
	d.run(func() {
		for i, s := range d.seeds {
			if s.seed.String() == seed {
				f(i, s)
			}
		}
	})
}

// askSeed finds out, on a new goroutine, which node is at a seed's address.
func (d *Driver) askSeed(o overlay.AskSeed) {
	s := d.seeds[o.Seed]
	// A full seed that refuses a link names other nodes. Only if none of them has accepted a
	// link either, the user is told.
	if s.full && d.state.Degree() == 0 {
		d.seedFailed(o.Seed, withText(ErrFull))
	}
	if d.ctx.Err() != nil {
		return // the driver is closing, so no goroutine may be added to tasks
	}
	d.tasks.Go(func() {
		ctx, cancel := context.WithTimeout(d.ctx, dialTimeout)
		defer cancel()
		info, err := d.findSeed(ctx, s.seed)
		d.run(func() { d.seedAnswered(o, info, err) })
	})
}

// seedAnswered tells the state machine the result of askSeed: info has the node at the
// seed, or err says why none was found.
func (d *Driver) seedAnswered(o overlay.AskSeed, info peer.AddrInfo, err error) {
	s := d.seeds[o.Seed]
	switch {
	case err == nil:
		d.seedFound(o.Seed, s, info)
	case errors.Is(err, ErrSelf):
		s.self = true
		d.seedFailed(o.Seed, err)
		d.node.SeedIsSelf(s.seed.String())
		d.step(overlay.SeedSelf(o))
	default:
		// If the driver is closing, it has canceled the dials itself, and the seed
		// is not at fault.
		if d.ctx.Err() == nil {
			d.seedFailed(o.Seed, err)
		}
		d.step(overlay.SeedFailed(o))
	}
}

func (d *Driver) seedFound(i int, s *seedProgress, info peer.AddrInfo) {
	if s.id != "" && s.id != info.ID {
		d.log.Warn("a seed has a new identity", "seed", s.seed, "before", s.id, "now", info.ID)
	}
	s.id = info.ID
	// The seed was reached, so an earlier error about reaching it is over. An error that says
	// that the seed refused a link stays, since it may refuse again.
	if _, refused := errors.AsType[*linkError](s.err); !refused && !errors.Is(s.err, ErrFull) && !errors.Is(s.err, ErrOtherNetwork) {
		s.clearError()
	}
	d.node.SeedFound(s.seed.String(), info)
	d.step(overlay.SeedFound{Seed: i, Contact: overlay.Contact{ID: info.ID, Addrs: info.Addrs}})
}

// seedLinked clears the errors of seeds that are out of date now that p is a neighbor.
func (d *Driver) seedLinked(p peer.ID) {
	for _, s := range d.seeds {
		if s.id == p {
			s.clearError()
		}
		// Another node has accepted a link, so it no longer matters that this seed is full.
		s.full = false
		if errors.Is(s.err, ErrFull) {
			s.clearError()
		}
	}
}

// seedRefused stores the reason for which a seed that was reached has refused a link.
func (d *Driver) seedRefused(o overlay.Refused) {
	for i, s := range d.seeds {
		if s.id != o.Peer || s.id == "" {
			continue
		}
		switch o.Reason {
		case overlay.ReasonFull:
			s.full = true // seedRefused does not report this; askSeed does later, if all other nodes refuse as well
		case overlay.ReasonNetwork, overlay.ReasonProtocol, overlay.ReasonTimeout:
			// ReasonUnreachable is missing here, since the dial may have been to an earlier
			// identity of the seed. If the address itself fails, askSeed reports that.
			d.seedFailed(i, refusal(o.Peer, o.Reason, d.cfg.Network, o.Network))
		}
	}
}

// seedFailed stores the error for which a seed cannot be used. It logs and reports the error
// unless the last report had the same text.
func (d *Driver) seedFailed(i int, err error) {
	s := d.seeds[i]
	s.err = err
	text := err.Error()
	if s.reported == text {
		return // the user knows this already
	}
	s.reported = text
	e := &SeedError{Seed: s.seed.String(), Err: err}
	if !s.self { // an address of this node is not tried again, so e.Next stays zero
		e.Next = d.state.SeedNext(i)
	}
	d.log.Warn("cannot use a seed", "seed", s.seed.Short(), "error", err, "next", e.Next)
	if d.cfg.OnSeedError != nil {
		d.cfg.OnSeedError(e)
	}
}

// refusal returns the error for a link that the node p has refused for the reason why. ours and
// theirs are the names of the networks of this node and of p.
func refusal(p peer.ID, why overlay.Reason, ours, theirs string) error {
	if why == overlay.ReasonNetwork {
		return otherNetwork(theirs, ours)
	}
	return &linkError{Peer: p, Reason: why}
}
