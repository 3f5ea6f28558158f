package discovery

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/go-smokesignal/smokesignal/discovery/overlay"
)

// protocolID is how multistream names what it negotiated for libp2p.
type protocolID = protocol.ID

// A seed that cannot be reached is tried again after 1, 2, 4, 8, 8 ... seconds
// while the node is alone or the seed was lost (promise 5), and otherwise after
// at most lastSeedPause, since it is then only a way to merge two networks.
const (
	firstSeedPause = time.Second
	maxSeedPause   = 8 * time.Second
	lastSeedPause  = 30 * time.Second
)

// SeedStatus is what is known of a seed.
type SeedStatus struct {
	Seed string    // as the user wrote it
	ID   peer.ID   // empty until it was reached
	Err  error     // why it cannot be used at present, or nil
	Next time.Time // of the next attempt; zero if none is planned
	Self bool      // it is this node
}

// seedState is owned by the loop.
type seedState struct {
	seed *Seed
	id   peer.ID
	self bool
	busy bool // an attempt is under way
	met  bool // it was reached and did not turn us down
	lost bool // the watchdog does not hear it any more
	gone bool // the link to it has ended, and it was not reached since
	full bool // it turned us down for want of room

	try    int
	nextAt time.Time
	err    error
	told   string // the last cause told to the user
}

// askSeeds tries all seeds, since the node is alone; next is the pause until it
// is called again.
func (d *Driver) askSeeds(now time.Time, next time.Duration) {
	for _, s := range d.seeds {
		if s.self {
			continue
		}
		if s.full { // turned down, and nobody else took us in meanwhile
			d.seedFailed(now, s, ErrFull)
		}
		s.nextAt = now.Add(next)
		d.trySeed(s)
	}
}

// trySeeds tries those seeds whose time has come while the node has links.
func (d *Driver) trySeeds(now time.Time) {
	for _, s := range d.seeds {
		if s.wanted() && d.state.Degree() > 0 && !now.Before(s.nextAt) {
			pause := lastSeedPause
			if s.lost {
				pause = maxSeedPause
			}
			pause = min(firstSeedPause<<min(s.try, 10), pause)
			s.try++
			s.nextAt = now.Add(pause*4/5 + rand.N(pause*2/5))
			d.trySeed(s)
		}
	}
}

func (s *seedState) wanted() bool { return !s.self && !s.busy && (!s.met || s.lost) }

func (d *Driver) nextSeed() (t time.Time) {
	if d.state.Degree() == 0 {
		return t
	}
	for _, s := range d.seeds {
		if s.wanted() && (t.IsZero() || s.nextAt.Before(t)) {
			t = s.nextAt
		}
	}
	return t
}

// trySeed looks for the seed on a goroutine of its own.
func (d *Driver) trySeed(s *seedState) {
	if s.busy || d.ctx.Err() != nil {
		return
	}
	s.busy = true
	d.tasks.Go(func() {
		ctx, cancel := context.WithTimeout(d.ctx, dialTimeout)
		defer cancel()
		info, err := s.seed.Find(ctx, d.host)
		d.run(func() {
			s.busy = false
			now := time.Now()
			switch {
			case errors.Is(err, ErrSelf):
				s.self, s.nextAt = true, time.Time{}
				d.seedFailed(now, s, err)
				if d.cfg.Hooks.SeedIsSelf != nil {
					d.cfg.Hooks.SeedIsSelf(s.seed.String())
				}
			case err != nil:
				if d.ctx.Err() == nil {
					d.seedFailed(now, s, err)
				}
			default:
				d.seedFound(s, info)
			}
		})
	})
}

func (d *Driver) seedFound(s *seedState, info peer.AddrInfo) {
	if s.id != "" && s.id != info.ID {
		d.log.Warn("seed has a new identity", "seed", s.seed, "was", s.id, "is", info.ID)
	}
	merge := s.lost || s.gone
	s.id, s.met, s.gone = info.ID, true, false
	if d.cfg.Hooks.SeedFound != nil {
		d.cfg.Hooks.SeedFound(s.seed.String(), info)
	}
	d.step(overlay.SeedFound{Seed: overlay.Contact{ID: info.ID, Addrs: info.Addrs}, Merge: merge})
}

// seedLinked clears the fault of the seed that p is.
func (d *Driver) seedLinked(p peer.ID) {
	for _, s := range d.seeds {
		if s.id == p {
			s.err, s.told, s.try = nil, "", 0
		}
		// Somebody took us in, so that one seed is full is no fault.
		s.full = false
		if errors.Is(s.err, ErrFull) {
			s.err, s.told = nil, ""
		}
	}
}

// seedUnlinked looks for a seed that was a neighbour and has ceased to be one other
// than on purpose: a seed without seeds of its own depends on others to call it
// when it was restarted.
func (d *Driver) seedUnlinked(now time.Time, o overlay.Unlinked) {
	if reason := (&LinkError{Reason: o.Reason}); !o.Was || reason.OnPurpose() || d.state.Degree() == 0 {
		return
	}
	for _, s := range d.seeds {
		if s.id == o.Peer {
			s.met, s.gone, s.try, s.nextAt = false, true, 0, now.Add(firstSeedPause)
		}
	}
}

// seedRefused records why a seed that was reached turned us down.
func (d *Driver) seedRefused(now time.Time, o overlay.Refused) {
	for _, s := range d.seeds {
		if s.id != o.Peer || s.id == "" {
			continue
		}
		switch o.Reason {
		case overlay.ReasonFull:
			s.full = true // a fault only if its redirects lead nowhere
		case overlay.ReasonNetwork, overlay.ReasonProtocol, overlay.ReasonTimeout:
			// Not ReasonUnreachable: that may be a dial to an identity the seed had
			// before, and Find says better what is wrong with the address.
			s.met = false
			d.seedFailed(now, s, refusal(o.Peer, o.Reason, d.cfg.Network, o.Network))
		}
	}
}

// seedFailed tells the user why a seed cannot be used, when that changes.
func (d *Driver) seedFailed(now time.Time, s *seedState, err error) {
	s.err = err
	cause := err.Error()
	if s.told == cause {
		return
	}
	s.told = cause
	e := &SeedError{Seed: s.seed.String(), Err: err}
	if !s.nextAt.IsZero() {
		e.Next = max(s.nextAt.Sub(now), 0)
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
	d.run(func() { d.setLost(seed, true) })
}

// SeedHeard ends what SeedLost began.
func (d *Driver) SeedHeard(seed string) {
	d.run(func() { d.setLost(seed, false) })
}

func (d *Driver) setLost(seed string, lost bool) {
	for _, s := range d.seeds {
		if s.seed.String() == seed && s.lost != lost {
			s.lost, s.try, s.nextAt = lost, 0, time.Now()
			if !lost {
				s.met, s.err, s.told = true, nil, ""
			}
		}
	}
}

// Seeds returns the state of all seeds in the order they were given.
func (d *Driver) Seeds() (list []SeedStatus) {
	d.ask(context.Background(), func() {
		now := time.Now()
		for _, s := range d.seeds {
			status := SeedStatus{Seed: s.seed.String(), ID: s.id, Err: s.err, Self: s.self}
			if s.nextAt.After(now) && (s.wanted() || d.state.Degree() == 0) && !s.self {
				status.Next = s.nextAt
			}
			list = append(list, status)
		}
	})
	return list
}
