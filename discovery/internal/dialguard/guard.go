package dialguard

import (
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/internal/addr"
)

const (
	// MaxUnproved bounds the dials to one address within Window, as long as no peer was
	// reached there. It counts the dials to all peers that are said to be at the
	// address together.
	MaxUnproved = 3
	// MaxBehindRelay bounds the dials to one address behind a relay within Window. All nodes
	// behind the relay share such an address, so the bound is higher than MaxUnproved.
	MaxBehindRelay = 64
	// Window is the time after which the dials to an address are counted anew.
	Window = 10 * time.Minute
	// maxAddrs bounds the addresses that a Guard remembers.
	maxAddrs = 4096
)

// A Guard limits the dials to each address. Without it, somebody could state the address of
// a third party as that of many nodes, and so make a network dial it all the time. An
// address is proved for a peer once the peer was reached at that address, or once it was
// linked while its connection came from the same machine. Dials to the peer for which an
// address is proved are not limited. All other dials to the address share one count.
//
// The zero value is ready for use. All methods may be called from several goroutines.
type Guard struct {
	mu    sync.Mutex
	dials map[string]*dialCount // the key is an address without /p2p/ID
}

// A dialCount counts the dials to one address.
type dialCount struct {
	since time.Time // when the present window began
	count int       // dials in the present window to peers for which the address is not proved
	owner peer.ID   // the peer for which the address is proved, or empty
	// claimed means that the owner, the peer for which the address is proved, was never
	// reached there: it is a neighbor that stated the address, and its connection came
	// from the same machine. disputed means that several neighbors stated the address
	// so, and it is proved for none of them.
	claimed, disputed bool
}

// Allow returns the addresses in addrs at which p may be dialed now, and counts those dials.
func (g *Guard) Allow(p peer.ID, addrs []ma.Multiaddr, now time.Time) (allowed []ma.Multiaddr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, a := range addrs {
		ok := false
		if relay, at, relayed := addr.SplitRelay(a); relayed {
			// The dial sends packets to the address of the relay, so that one is counted, too.
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

// AllowBehindRelay is like Allow for one address behind a relay to which this node is already
// connected. So the address of the relay itself is not dialed and not counted.
func (g *Guard) AllowBehindRelay(p peer.ID, a ma.Multiaddr, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.count(a, p, MaxBehindRelay, now)
}

// count reports whether p may be dialed at the address a, and counts the dial. At most
// limit dials are allowed in one window. If a is proved for p, the dial is allowed and not
// counted.
func (g *Guard) count(a ma.Multiaddr, p peer.ID, limit int, now time.Time) bool {
	x := g.entry(a, now)
	if x.owner == p {
		return true // the address is proved for p, so the dial hits no third party
	}
	if x.count >= limit {
		return false
	}
	x.count++
	return true
}

// Reached notes that p was reached at the address a, which is now proved for p.
func (g *Guard) Reached(p peer.ID, a ma.Multiaddr, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	x := g.entry(a, now)
	*x = dialCount{since: x.since, owner: p}
	// The relay was reached on the way, so its address is proved for the relay.
	if relay, at, ok := addr.SplitRelay(a); ok {
		x = g.entry(at, now)
		*x = dialCount{since: x.since, owner: relay}
	}
}

// Claim notes that p, a neighbor, states the address a, and that its connection comes from
// the machine with that address. linked reports whether a peer is a neighbor. Two neighbors
// cannot both be at one address, so if both state it, it is proved for neither.
func (g *Guard) Claim(p peer.ID, a ma.Multiaddr, now time.Time, linked func(peer.ID) bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch x := g.entry(a, now); {
	case x.owner == p, x.disputed:
	case x.owner != "" && !x.claimed:
		// Another peer was reached at this address. That proves more than the
		// statement of p.
	case x.owner != "" && linked(x.owner):
		x.owner, x.claimed, x.disputed = "", false, true
	default:
		// The address was proved for no peer, or for one that is no longer a
		// neighbor. In the second case, that peer was perhaps restarted with
		// another identity, as p.
		x.owner, x.claimed = p, true
	}
}

// entry returns the dialCount of an address. If its window is over, a new one begins.
func (g *Guard) entry(a ma.Multiaddr, now time.Time) *dialCount {
	base, _ := peer.SplitAddr(a)
	key := string(base.Bytes())
	x := g.dials[key]
	if x == nil {
		if len(g.dials) >= maxAddrs { // other peers choose the addresses, so bound the memory
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

// purge frees space for new addresses. It removes all addresses whose window is over. If the
// table is still full, it was probably filled on purpose, so purge removes all addresses.
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
