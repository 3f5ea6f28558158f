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
	Seed string    // as the user wrote it
	ID   peer.ID   // empty until it was reached
	Err  error     // why it cannot be used at present, or nil
	Next time.Time // of the next attempt; zero if none is planned
	Self bool      // it is this node
}

// A seedProgress is the driver's state of a seed. The state machine decides when to try the seed.
// The loop owns it.
type seedProgress struct {
	seed *seed.Seed
	id   peer.ID // empty until it was reached
	self bool    // it is this node
	full bool    // it refused a link because it has too many

	err      error
	reported string // the text of the last error that was reported
}

func (s *seedProgress) clearError() { s.err, s.reported = nil, "" }

// Seeds returns the state of all seeds in the order in which they were given, and none once
// the driver is closed.
func (d *Driver) Seeds() (list []SeedStatus) {
	d.ask(context.Background(), func() {
		now := time.Now()
		for i, s := range d.seeds {
			status := SeedStatus{Seed: s.seed.String(), ID: s.id, Err: s.err, Self: s.self}
			// A time that has passed means that the attempt is under way.
			if next := d.state.SeedNext(i); next.After(now) {
				status.Next = next
			}
			list = append(list, status)
		}
	})
	return list
}

// seedLost tells the driver that the seed is not heard through the overlay any more. The
// driver tries the seed until seedHeard, and makes a link to it even if it has enough.
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

// withSeed calls f on the loop for the seed of that text.
func (d *Driver) withSeed(seed string, f func(i int, s *seedProgress)) {
	d.run(func() {
		for i, s := range d.seeds {
			if s.seed.String() == seed {
				f(i, s)
			}
		}
	})
}

// askSeed finds out which node is at the seed's address, on a goroutine of its own.
func (d *Driver) askSeed(o overlay.AskSeed) {
	s := d.seeds[o.Seed]
	// A full seed names other nodes to ask. It is a fault only if all of them refused, too.
	if s.full && d.state.Degree() == 0 {
		d.seedFailed(o.Seed, withText(ErrFull))
	}
	if d.ctx.Err() != nil {
		return // nothing may be added to tasks any more
	}
	d.tasks.Go(func() {
		ctx, cancel := context.WithTimeout(d.ctx, dialTimeout)
		defer cancel()
		info, err := d.findSeed(ctx, s.seed)
		d.run(func() { d.seedAnswered(o, info, err) })
	})
}

// seedAnswered tells the state machine what askSeed has found out.
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
		// Close ends the dials, which is not a fault of the seed.
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
	// Whatever kept the seed from being found is over. If it was found before and refused a
	// link, it may well do so again.
	if _, refused := errors.AsType[*linkError](s.err); !refused && !errors.Is(s.err, ErrFull) && !errors.Is(s.err, ErrOtherNetwork) {
		s.clearError()
	}
	d.node.SeedFound(s.seed.String(), info)
	d.step(overlay.SeedFound{Seed: i, Contact: overlay.Contact{ID: info.ID, Addrs: info.Addrs}})
}

// seedLinked clears the errors that a new link to p proves wrong.
func (d *Driver) seedLinked(p peer.ID) {
	for _, s := range d.seeds {
		if s.id == p {
			s.clearError()
		}
		// Now that some node has accepted a link, it does not matter that this seed is full.
		s.full = false
		if errors.Is(s.err, ErrFull) {
			s.clearError()
		}
	}
}

// seedRefused records why a seed that was reached refused a link.
func (d *Driver) seedRefused(o overlay.Refused) {
	for i, s := range d.seeds {
		if s.id != o.Peer || s.id == "" {
			continue
		}
		switch o.Reason {
		case overlay.ReasonFull:
			s.full = true // see askSeed
		case overlay.ReasonNetwork, overlay.ReasonProtocol, overlay.ReasonTimeout:
			// ReasonUnreachable is not reported: the dial may have been to an identity that
			// the seed had before, and askSeed reports the fault of the address more exactly.
			d.seedFailed(i, refusal(o.Peer, o.Reason, d.cfg.Network, o.Network))
		}
	}
}

// seedFailed records why a seed cannot be used, and reports it if it is not the same as last
// time.
func (d *Driver) seedFailed(i int, err error) {
	s := d.seeds[i]
	s.err = err
	text := err.Error()
	if s.reported == text {
		return
	}
	s.reported = text
	e := &SeedError{Seed: s.seed.String(), Err: err}
	if !s.self { // which is not tried again
		e.Next = d.state.SeedNext(i)
	}
	d.log.Warn("cannot use a seed", "seed", s.seed.Short(), "error", err, "next", e.Next)
	if d.cfg.OnSeedError != nil {
		d.cfg.OnSeedError(e)
	}
}

// refusal puts into words why a node that was reached refused a link.
func refusal(p peer.ID, why overlay.Reason, ours, theirs string) error {
	if why == overlay.ReasonNetwork {
		return otherNetwork(theirs, ours)
	}
	return &linkError{Peer: p, Reason: why}
}
