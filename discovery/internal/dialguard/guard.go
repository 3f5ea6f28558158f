package dialguard

import (
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/internal/addr"
)

const (
	// MaxUnproved is how often an address may be dialed within Window, over all the
	// peers that are said to be there, before one of them has been reached there.
	MaxUnproved = 3
	// MaxBehindRelay is the same for addresses behind one relay. Many nodes rightly
	// share such an address.
	MaxBehindRelay = 64
	// Window is the time in which dials are counted.
	Window = 10 * time.Minute
	// maxAddrs bounds the addresses that a Guard remembers.
	maxAddrs = 4096
)

// A Guard counts dials per address, so that a stranger cannot make a network hammer a third
// party by naming its address. An address is proved for a peer once the peer was reached
// there, or was linked while it spoke from the address's machine. Dials to the peer that an
// address is proved for are not counted. All other dials share the address's count,
// whatever identities claim it.
//
// The zero value is ready for use. All methods may be called from several goroutines.
type Guard struct {
	mu    sync.Mutex
	dials map[string]*dialCount // by address without /p2p/ID
}

// A dialCount holds the dials to one address.
type dialCount struct {
	since time.Time
	count int     // dials since then to peers that the address is not proved for
	owner peer.ID // the peer it is proved for, or empty
	// claimed means that the owner was linked and spoke from that machine, but was not
	// reached there. disputed means that several linked peers did so at the same time,
	// so the word of none counts.
	claimed, disputed bool
}

// Allow returns the addresses at which p may be dialed now, and counts the dials.
func (g *Guard) Allow(p peer.ID, addrs []ma.Multiaddr, now time.Time) (allowed []ma.Multiaddr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, a := range addrs {
		ok := false
		if relay, at, relayed := addr.SplitRelay(a); relayed {
			// The packets go to the relay, so its own address is counted as well.
			ok = g.count(a, p, MaxBehindRelay, now) && g.count(at, relay, MaxUnproved, now)
		} else {
			ok = g.count(a, p, MaxUnproved, now)
		}
		if ok {
			allowed = append(allowed, a)
		}
	}
	return allowed
}

// AllowBehindRelay is Allow for one address behind a relay that is connected. Nothing is
// dialed at the relay's address then.
func (g *Guard) AllowBehindRelay(p peer.ID, a ma.Multiaddr, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.count(a, p, MaxBehindRelay, now)
}

// count reports whether p may be dialed at a, and counts the dial unless a is proved for p.
func (g *Guard) count(a ma.Multiaddr, p peer.ID, limit int, now time.Time) bool {
	x := g.entry(a, now)
	if x.owner == p {
		return true
	}
	if x.count >= limit {
		return false
	}
	x.count++
	return true
}

// Reached records that p was reached at the address.
func (g *Guard) Reached(p peer.ID, a ma.Multiaddr, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	x := g.entry(a, now)
	*x = dialCount{since: x.since, owner: p}
	// The relay was reached on the way, so its address is proved for it.
	if relay, at, ok := addr.SplitRelay(a); ok {
		x = g.entry(at, now)
		*x = dialCount{since: x.since, owner: relay}
	}
}

// Claim records that p, which is linked, claims an address on the machine from which it
// speaks. linked reports whether a peer is linked: two that are linked at once cannot both
// be at one address.
func (g *Guard) Claim(p peer.ID, a ma.Multiaddr, now time.Time, linked func(peer.ID) bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch x := g.entry(a, now); {
	case x.owner == p, x.disputed:
	case x.owner != "" && !x.claimed:
		// Somebody was really reached there, which says more than any claim.
	case x.owner != "" && linked(x.owner):
		x.owner, x.claimed, x.disputed = "", false, true
	default:
		// The former owner is not linked any more: it was restarted with another
		// identity, say.
		x.owner, x.claimed = p, true
	}
}

// entry returns the count of an address, a new one if the last window is over.
func (g *Guard) entry(a ma.Multiaddr, now time.Time) *dialCount {
	base, _ := peer.SplitAddr(a)
	key := string(base.Bytes())
	x := g.dials[key]
	if x == nil {
		if len(g.dials) >= maxAddrs {
			g.purge(now)
		}
		if g.dials == nil {
			g.dials = map[string]*dialCount{}
		}
		x = &dialCount{since: now}
		g.dials[key] = x
	}
	if now.Sub(x.since) >= Window {
		x.since, x.count, x.disputed = now, 0, false
	}
	return x
}

// purge frees memory for new addresses: those whose window is over are forgotten. If there
// are none, all are forgotten, since a table that strangers have filled is worth nothing.
func (g *Guard) purge(now time.Time) {
	for key, x := range g.dials {
		if now.Sub(x.since) >= Window {
			delete(g.dials, key)
		}
	}
	if len(g.dials) >= maxAddrs {
		clear(g.dials)
	}
}
