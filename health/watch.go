package health

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

const (
	// defaultInterval is used in place of the ping interval on a node whose own watchdog is
	// off. Such a node still forwards and answers the pings of others.
	defaultInterval = 10 * time.Second
	// minSpacing is the shortest time between two pings for one target that a node forwards
	// or answers, even if the pings name a shorter interval.
	minSpacing = 10 * time.Millisecond
	// usualLateness is how late timers may fire on a machine that works normally: one
	// millisecond on an idle machine, tens of milliseconds on a busy one or on Windows.
	// The watchdog ignores lateness up to usualLateness, however short the ping
	// interval and the ping timeout are.
	usualLateness = 100 * time.Millisecond
	// maxSeen is the number of signals that a node remembers, so that it forwards each only
	// once.
	maxSeen = 4096
	// maxAsked is the number of targets for which a node remembers when they were last
	// pinged.
	maxAsked = 1024
)

// An effect is an action that the watchCore asks the Watchdog to perform: a flood or a
// netsplitChange.
type effect interface{ effect() }

// A flood is a signal that the Watchdog has to send to all neighbors but one.
type flood struct {
	msg    []byte
	except peer.ID
}

// A netsplitChange is the beginning or the end of a netsplit.
type netsplitChange struct {
	seed   string
	lost   bool
	silent time.Duration // if the seed is lost, the time for which it was not heard; otherwise zero
}

func (flood) effect()          {}
func (netsplitChange) effect() {}

// A watchCore decides when seeds are lost and when they are back, and when this node sends,
// forwards and answers pings. It performs no I/O and reads no clock. One goroutine at a time
// may use it.
type watchCore struct {
	// Set once.
	key      crypto.PrivKey
	id       peer.ID
	interval time.Duration // the ping interval; 0 if this node sends no pings and only forwards and answers those of others
	timeout  time.Duration
	rand     *rand.Rand

	// The network as this node knows it.
	seeds     []*seedRecord
	ownAddrs  []netip.AddrPort // of this node, sorted
	neighbors []peer.ID

	// Signals.
	nextStamp stamp                             // of the next own signal
	seen      *simplelru.LRU[seenKey, struct{}] // verified signals
	asked     *simplelru.LRU[string, time.Time] // for each target, when this node last sent or forwarded a ping for it
	answered  time.Time                         // when this node last answered a ping

	// Verdicts.
	due             time.Time // when advance has to be called next; zero means never
	noVerdictBefore time.Time // before this time no seed is reported as lost, because this machine did not run in time

	counts signalCounts
}

// signalCounts counts signals for [Watchdog.Stats].
type signalCounts struct {
	received, malformed, forged, replayed, duplicate, spared, unsigned uint64
}

// A seenKey identifies a signal among the signals that this node has seen: by its stamp,
// and by whether it is a ping or a pong.
type seenKey struct {
	stamp
	pong bool
}

// A seedRecord is the state of one seed.
type seedRecord struct {
	// As configured.
	text    string
	pinned  bool // the seed was given with an id, and only the node with that id is accepted as the seed
	literal bool // the text of the seed contains its addresses, so they never change

	// As found out by discovery.
	id    peer.ID
	addrs []netip.AddrPort
	self  bool // discovery found this node there; see watchCore.isSelf

	// Heard or lost.
	known     bool // the seed was heard at least once; only then can it be lost
	lost      bool
	lastHeard time.Time
	since     time.Time // when the present silence of the seed began: the seed was heard last, or this node got its first neighbor
	asked     time.Time // when any node sent the first ping for the seed in the present silence; zero if none did

	// Own pings, and answers.
	nextPing    time.Time
	lastPing    uint64 // counter of the last own ping
	lastCounter uint64 // counter of the last answer by id
}

func newSeedRecord(given WatchedSeed) *seedRecord {
	return &seedRecord{text: given.Text, id: given.ID, pinned: given.ID != "", addrs: given.Addrs, literal: len(given.Addrs) > 0}
}

func newWatchCore(key crypto.PrivKey, id peer.ID, session protocol.Session, counter uint64, interval, timeout time.Duration, seeds []WatchedSeed, r *rand.Rand) *watchCore {
	w := &watchCore{
		key: key, id: id, interval: interval, timeout: timeout, rand: r,
		nextStamp: stamp{id, session, counter},
	}
	w.seen, _ = simplelru.NewLRU[seenKey, struct{}](maxSeen, nil)   // fails for a size of 0 only
	w.asked, _ = simplelru.NewLRU[string, time.Time](maxAsked, nil) // the same
	for _, given := range seeds {
		if w.findSeed(given.Text) == nil { // a seed that was given twice is watched once
			w.seeds = append(w.seeds, newSeedRecord(given))
		}
	}
	return w
}

func (w *watchCore) findSeed(text string) *seedRecord {
	for _, s := range w.seeds {
		if s.text == text {
			return s
		}
	}
	return nil
}

// target returns the pingTarget for a ping to the seed s. If the seed was given with an id,
// the target is that id. Otherwise the target is the seed's addresses, with the id of the
// node that was found there.
func (s *seedRecord) target() pingTarget {
	if s.pinned {
		return pingTarget{id: s.id}
	}
	return pingTarget{id: s.id, addrs: s.addrs}
}

// isSelf reports whether the seed s is this node: because the seed has the id of this node,
// because discovery found this node at the seed, or because the seed's address is one of
// this node.
func (w *watchCore) isSelf(s *seedRecord) bool {
	if s.self || s.id == w.id {
		return true
	}
	// Addresses are compared only if the seed's text contains them. If the text is a
	// name, discovery reports when it finds this node at the addresses of the name.
	return !s.pinned && s.literal && slices.ContainsFunc(s.addrs, w.hasAddr)
}

// hasAddr reports whether this node is reached at an address.
func (w *watchCore) hasAddr(at netip.AddrPort) bool {
	_, ok := slices.BinarySearchFunc(w.ownAddrs, at, netip.AddrPort.Compare)
	return ok
}

// setOwnAddrs sets the addresses of this node, which are sorted.
func (w *watchCore) setOwnAddrs(addrs []netip.AddrPort) { w.ownAddrs = addrs }

// setNeighbors sets the linked peers.
func (w *watchCore) setNeighbors(now time.Time, list []peer.ID) (out []effect) {
	// This node had no neighbor until now, so it could not hear any seed. The time for
	// which each seed was not heard is counted from now on.
	if len(w.neighbors) == 0 && len(list) > 0 {
		w.restartSilence(now, w.interval/2, w.interval/2)
	}
	for _, id := range list {
		// A link is made only if the peer answers, so the peer of a new link was
		// heard.
		if !slices.Contains(w.neighbors, id) {
			out = append(out, w.heardPeer(now, id)...)
		}
	}
	w.neighbors = slices.Clone(list)
	return out
}

// heardPeer records that a message of the neighbor id arrived at the time now over the link
// to it. That a link exists is not enough for this: after a cut, a link still exists until
// its keepalives are missed.
func (w *watchCore) heardPeer(now time.Time, id peer.ID) (out []effect) {
	for _, s := range w.seeds {
		if s.id == id {
			out = append(out, w.heard(now, s)...)
		}
	}
	return out
}

// restartSilence counts the time for which each seed was not heard from now on. It plans
// this node's next ping for each seed for the time now plus pause plus a random time of
// less than jitter.
func (w *watchCore) restartSilence(now time.Time, pause, jitter time.Duration) {
	for _, s := range w.seeds {
		s.since, s.asked = now, time.Time{}
		s.nextPing = now.Add(pause + w.randomUpTo(jitter))
	}
	w.due = time.Time{}
}

// randomUpTo returns a random duration less than d, or 0 if d is not positive.
func (w *watchCore) randomUpTo(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return time.Duration(w.rand.Int64N(int64(d)))
}

// heard records that the seed s was heard at the time now. It returns the end of the seed's
// netsplit, if there was one.
func (w *watchCore) heard(now time.Time, s *seedRecord) []effect {
	s.known, s.lastHeard = true, now
	s.since, s.asked = now, time.Time{}
	// The time of the next ping has a random part. So usually one node pings first, and
	// the others see that ping and do not ping.
	s.nextPing = now.Add(w.interval + w.randomUpTo(w.interval/2))
	return s.resolve()
}

// resolve ends the netsplit of the seed s. It returns that change, or nothing if s was not
// lost.
func (s *seedRecord) resolve() []effect {
	if !s.lost {
		return nil
	}
	s.lost = false
	return []effect{netsplitChange{seed: s.text}}
}

// seedFound records that discovery reached the seed with the given text at the time now,
// and found the node id with the addresses addrs there.
func (w *watchCore) seedFound(now time.Time, text string, id peer.ID, addrs []ma.Multiaddr) []effect {
	if id == w.id {
		return w.seedIsSelf(text)
	}
	s := w.findSeed(text)
	// A text that does not name a watched seed is ignored. If the seed was given with an id, a
	// node with another id at its address is not the seed.
	if s == nil || s.pinned && s.id != id {
		return nil
	}
	s.self = false
	// If the seed has restarted with a new id, the counters of the former id do not
	// apply to it.
	if s.id != id {
		s.id, s.lastCounter = id, 0
	}
	// If the seed is a name, its addresses are those at which discovery found it last.
	if !s.literal {
		found := endpoints(addrs)
		s.addrs = found[:min(len(found), maxSignalAddrs)]
	}
	return w.heard(now, s)
}

// seedIsSelf records that the seed with the given text is this node, so that it is not
// watched. It returns the end of the seed's netsplit, if there was one.
func (w *watchCore) seedIsSelf(text string) []effect {
	s := w.findSeed(text)
	if s == nil {
		return nil
	}
	s.self = true
	return s.resolve()
}

// advance returns the pings that are due at the time now and the seeds that are lost now,
// as effects in out. next is the time at which to call advance again; the zero time means
// not before this node has a neighbor. drift is the time by which the wall clock moved
// further than the monotonic clock since the last call. It shows that the machine was
// asleep, when the monotonic clock stands still.
func (w *watchCore) advance(now time.Time, drift time.Duration) (out []effect, next time.Time) {
	// A node without neighbors cannot hear anybody. That is a disconnect, not a netsplit.
	if w.interval == 0 || len(w.neighbors) == 0 {
		w.due = time.Time{}
		return nil, w.due
	}
	w.allowForLateness(now, drift)
	// Often enough to notice lateness.
	next = now.Add(w.interval / 2)
	for _, s := range w.seeds {
		// A seed that is this node is not watched. A seed that is a name cannot be pinged
		// until discovery has found its addresses.
		if w.isSelf(s) || s.target().empty() {
			continue
		}
		out = append(out, w.pingIfDue(now, s)...)
		verdict := w.verdictAt(s)
		if !verdict.IsZero() && !now.Before(verdict) {
			s.lost = true
			out = append(out, netsplitChange{seed: s.text, lost: true, silent: now.Sub(s.lastHeard)})
			verdict = time.Time{}
		}
		for _, t := range []time.Time{s.nextPing, verdict} {
			if !t.IsZero() && t.Before(next) {
				next = t
			}
		}
	}
	w.due = next
	return out, next
}

// allowForLateness keeps seeds from being reported as lost because this machine was asleep
// or busy. now and drift are those of advance. Both limits for lateness, asleep and
// grace/2, are at least usualLateness; if they were shorter, every call would count as
// late, and a seed could never be lost.
func (w *watchCore) allowForLateness(now time.Time, drift time.Duration) {
	late := time.Duration(0)
	if !w.due.IsZero() {
		late = now.Sub(w.due)
	}
	asleep := max(w.interval, usualLateness)
	grace := max(w.timeout, 2*usualLateness)
	switch {
	case late > asleep, drift.Abs() > asleep:
		// This machine did not run, so it could not hear the seeds. The time for
		// which each seed was not heard is counted from now on.
		w.restartSilence(now, 0, w.interval/2)
	case late > grace/2:
		// Signals that arrived while the machine was busy may not have been read
		// yet. So no seed is reported as lost for some time.
		w.noVerdictBefore = now.Add(grace)
	}
}

// verdictAt returns the time at which the seed s will be lost unless it is heard before.
// The zero time means that s cannot be lost now.
func (w *watchCore) verdictAt(s *seedRecord) time.Time {
	// Only a seed that was heard can be lost, and only once. And a seed that nobody has
	// pinged since it was last heard had no reason to answer.
	if !s.known || s.lost || s.asked.IsZero() {
		return time.Time{}
	}
	at := s.since.Add(2*w.interval + w.timeout)
	for _, t := range []time.Time{s.asked.Add(w.timeout), w.noVerdictBefore} {
		if t.After(at) {
			at = t
		}
	}
	return at
}

// pingIfDue returns the flood of a ping for the seed s if one is due at the time now.
func (w *watchCore) pingIfDue(now time.Time, s *seedRecord) []effect {
	if now.Before(s.nextPing) {
		return nil
	}
	t := s.target()
	spacing := w.interval / 2
	// Neighbors would not forward it yet.
	if last, ok := w.asked.Peek(t.key()); ok && now.Sub(last) < spacing {
		s.nextPing = last.Add(spacing)
		return nil
	}
	p := ping{stamp: w.stampNext(), target: t, interval: w.interval}
	msg, err := p.seal(w.key)
	if err != nil {
		w.counts.unsigned++
		s.nextPing = now.Add(w.interval)
		return nil
	}
	w.notePing(now, &p)
	return []effect{flood{msg: msg}}
}

// notePing records that this node or another one has sent the ping p. The answer to p
// reaches all nodes. So for the seeds that p asks for, this node sends a ping of its own
// only if no answer comes.
func (w *watchCore) notePing(now time.Time, p *ping) {
	w.asked.Add(p.target.key(), now)
	for _, s := range w.seeds {
		if t := s.target(); t.empty() || !p.target.covers(t) {
			continue
		}
		// The seed was heard a moment ago, so the answer to p or to another ping
		// arrived before p itself. Then this node waits for no answer.
		if p.sender != w.id && s.known && now.Sub(s.lastHeard) < w.interval/2 {
			continue
		}
		if s.asked.IsZero() {
			s.asked = now
		}
		if p.sender == w.id {
			s.lastPing = p.counter
		}
		s.nextPing = now.Add(w.answerPatience(s))
	}
}

// answerPatience returns how long this node waits for the answer to a ping for the seed s
// before it sends the next ping: at least the ping timeout, and at least the time in which
// neighbors forward no second ping for the same target. So two or three pings are sent
// before a seed is reported as lost.
func (w *watchCore) answerPatience(s *seedRecord) time.Duration {
	jitter := w.interval / 16
	// The netsplit is reported already, so the pings need not be frequent. The random
	// part lets the nodes take turns in sending them.
	if s.lost {
		jitter = w.interval / 2
	}
	return max(w.timeout, w.interval*33/64) + w.randomUpTo(jitter)
}

// stampNext returns the stamp (sender, session, counter) of the next signal that this node
// sends.
func (w *watchCore) stampNext() stamp {
	s := w.nextStamp
	w.nextStamp.counter++
	return s
}
