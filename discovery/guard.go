package discovery

import (
	"errors"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/internal/addr"
)

// An address that others told us, and at which we have never reached the node it is said
// to belong to, nor been linked to it when it spoke from there, is dialled at most
// unprovedDials times in unprovedWindow, whatever identities claim it: so that a stranger
// cannot make a network hammer a third party (the original dialled it once per request).
const (
	unprovedDials  = 3
	unprovedWindow = 10 * time.Minute
	maxGuarded     = 4096
	// unprovedBehind bounds the dials through one relay in that time: it is many
	// nodes' address, and they all claim it with right.
	unprovedBehind = 64
)

var errNoAddress = errors.New("discovery: no address that may be dialled")

// A dialGuard counts dials per address. It is safe for concurrent use.
type dialGuard struct {
	mu    sync.Mutex
	dials map[string]*dialled
}

type dialled struct {
	since time.Time
	count int     // dials since then, while nobody was proved
	owner peer.ID // who was reached at the address, or has claimed it
	// claimed says that the owner was not reached there: it was linked, and spoke from
	// that machine. disputed says that several did so at the same time, so nobody's
	// word counts.
	claimed, disputed bool
}

// allow returns those of addrs which may be dialled now to reach p, and counts
// them.
func (g *dialGuard) allow(p peer.ID, addrs []ma.Multiaddr, now time.Time) (list []ma.Multiaddr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, a := range addrs {
		ok := false
		if relay, at, relayed := addr.SplitRelay(a); relayed { // what is dialled is the relay
			ok = g.count(a, p, unprovedBehind, now) && g.count(at, relay, unprovedDials, now)
		} else {
			ok = g.count(a, p, unprovedDials, now)
		}
		if ok {
			list = append(list, a)
		}
	}
	return list
}

// allowBehind is allow for one address behind a relay that is connected, so that no
// dial is made to the relay's address.
func (g *dialGuard) allowBehind(p peer.ID, addr ma.Multiaddr, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.count(addr, p, unprovedBehind, now)
}

// count counts a dial to p at addr, unless that is proved, and reports whether it may
// be made.
func (g *dialGuard) count(addr ma.Multiaddr, p peer.ID, most int, now time.Time) bool {
	x := g.entry(addr, now)
	if x.owner != p {
		if x.count >= most {
			return false
		}
		x.count++
	}
	return true
}

// proved notes that p was reached at the address.
func (g *dialGuard) proved(p peer.ID, a ma.Multiaddr, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	x := g.entry(a, now)
	*x = dialled{since: x.since, owner: p}
	if relay, at, ok := addr.SplitRelay(a); ok {
		x = g.entry(at, now)
		*x = dialled{since: x.since, owner: relay}
	}
}

// claim notes that p, which is linked, says to be reached at an address on the machine
// from which it speaks. Two that are linked at once cannot both be there; linked tells
// who is.
func (g *dialGuard) claim(p peer.ID, addr ma.Multiaddr, now time.Time, linked func(peer.ID) bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch x := g.entry(addr, now); {
	case x.owner == p, x.disputed, x.owner != "" && !x.claimed:
	case x.owner != "" && linked(x.owner):
		x.owner, x.claimed, x.disputed = "", false, true
	default:
		x.owner, x.claimed = p, true
	}
}

func (g *dialGuard) entry(addr ma.Multiaddr, now time.Time) *dialled {
	base, _ := peer.SplitAddr(addr)
	key := string(base.Bytes())
	x := g.dials[key]
	if x == nil {
		if len(g.dials) >= maxGuarded {
			g.purge(now)
		}
		x = &dialled{since: now}
		g.dials[key] = x
	}
	if now.Sub(x.since) >= unprovedWindow {
		x.since, x.count, x.disputed = now, 0, false
	}
	return x
}

// purge makes room: what is past its window goes, and if that is nothing, then
// everything, since a table that strangers filled is worth nothing.
func (g *dialGuard) purge(now time.Time) {
	for key, x := range g.dials {
		if now.Sub(x.since) >= unprovedWindow {
			delete(g.dials, key)
		}
	}
	if len(g.dials) >= maxGuarded {
		clear(g.dials)
	}
}
