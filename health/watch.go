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
	// defaultInterval paces forwarding and answering on a node whose own watchdog is
	// off.
	defaultInterval = 10 * time.Second
	// minSpacing bounds how often a ping that names a tiny interval makes others act.
	minSpacing = 10 * time.Millisecond
	// usualLateness is how late timers can fire without anything being wrong: a
	// millisecond on an idle machine, tens of them on a busy one or on Windows.
	// Lateness up to here changes no verdict, however short interval and timeout are.
	usualLateness = 100 * time.Millisecond
	// maxSeen bounds the signals that are remembered in order to forward each once.
	maxSeen = 4096
	// maxAsked bounds the targets whose last ping is remembered.
	maxAsked = 1024
)

// An effect is something that the driver has to do: a flood or a netsplitChange.
type effect interface{ effect() }

// A flood is sent to all neighbors but one.
type flood struct {
	msg    []byte
	except peer.ID
}

// A netsplitChange is the beginning or the end of a netsplit.
type netsplitChange struct {
	seed   string
	lost   bool
	silent time.Duration // how long a lost seed has not been heard
}

func (flood) effect()          {}
func (netsplitChange) effect() {}

// A watchCore decides when seeds are lost and when they are back, and does this
// node's share of the pinging. It performs no I/O and reads no clock. One goroutine at
// a time may use it.
type watchCore struct {
	// Set once.
	key      crypto.PrivKey
	id       peer.ID
	interval time.Duration // 0: this node watches no seed, but forwards and answers
	timeout  time.Duration
	rand     *rand.Rand

	// The network as this node knows it.
	seeds     []*seedRecord
	ownAddrs  []netip.AddrPort // of this node, sorted
	neighbors []peer.ID

	// Signals.
	nextStamp stamp                             // of the next own signal
	seen      *simplelru.LRU[seenKey, struct{}] // verified signals
	asked     *simplelru.LRU[string, time.Time] // when a ping for a target was last sent or forwarded
	answered  time.Time                         // when this node last answered a ping

	// Verdicts.
	due             time.Time // when advance asked to be called; zero for never
	noVerdictBefore time.Time // because this machine was late

	stats Stats
}

// A seenKey names a signal. Pings and pongs share the counters of their sender.
type seenKey struct {
	stamp
	pong bool
}

// A seedRecord is the state of one seed.
type seedRecord struct {
	// As configured.
	text    string
	pinned  bool // only the node with this id is accepted as the seed
	literal bool // addrs are in the text, so they never change

	// As found out by discovery.
	id    peer.ID
	addrs []netip.AddrPort
	self  bool // discovery found this node there; see watchCore.isSelf

	// Heard or lost.
	known     bool // it was heard at least once, so it can be lost
	lost      bool
	lastHeard time.Time
	since     time.Time // the silence is counted from here: the seed was heard, or we began to listen
	asked     time.Time // of the first ping since then, whoever sent it; zero for none

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

// target returns the target of a ping for the seed. A pinned seed is named by its id
// alone; any other by its addresses, and by the id that was found there.
func (s *seedRecord) target() pingTarget {
	if s.pinned {
		return pingTarget{id: s.id}
	}
	return pingTarget{id: s.id, addrs: s.addrs}
}

// isSelf reports whether the seed is this node: by its id, by what discovery found, or
// by an address of this node.
func (w *watchCore) isSelf(s *seedRecord) bool {
	if s.self || s.id == w.id {
		return true
	}
	// Names are looked up by discovery, which reports when it finds this node there.
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
	// Alone, this node could hear nobody. Every seed gets a full round from now on
	// before it can be lost.
	if len(w.neighbors) == 0 && len(list) > 0 {
		w.restartSilence(now, w.interval/2, w.interval/2)
	}
	for _, id := range list {
		// Both ends have agreed to a new link, so the peer is there.
		if !slices.Contains(w.neighbors, id) {
			out = append(out, w.heardPeer(now, id)...)
		}
	}
	w.neighbors = slices.Clone(list)
	return out
}

// heardPeer records that something arrived over the link to a neighbor. The existence
// of the link says less: one that was cut exists until its keepalives are missed.
func (w *watchCore) heardPeer(now time.Time, id peer.ID) (out []effect) {
	for _, s := range w.seeds {
		if s.id == id {
			out = append(out, w.heard(now, s)...)
		}
	}
	return out
}

// restartSilence counts the silence of every seed from now on, and plans the next own
// ping after the pause and a random time up to jitter.
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

// heard records that the seed was reached through the overlay at now.
func (w *watchCore) heard(now time.Time, s *seedRecord) []effect {
	s.known, s.lastHeard = true, now
	s.since, s.asked = now, time.Time{}
	// A random time, so that one node pings and the others, which see that ping, do
	// not.
	s.nextPing = now.Add(w.interval + w.randomUpTo(w.interval/2))
	return s.resolve()
}

// resolve ends the netsplit of the seed, if there is one.
func (s *seedRecord) resolve() []effect {
	if !s.lost {
		return nil
	}
	s.lost = false
	return []effect{netsplitChange{seed: s.text}}
}

// seedFound records that discovery reached the seed, with its id and addresses.
func (w *watchCore) seedFound(now time.Time, text string, id peer.ID, addrs []ma.Multiaddr) []effect {
	if id == w.id {
		return w.seedIsSelf(text)
	}
	s := w.findSeed(text)
	// Another node at the address of a pinned seed is not the seed.
	if s == nil || s.pinned && s.id != id {
		return nil
	}
	s.self = false
	// The seed came back with a new identity, whose counters begin anew.
	if s.id != id {
		s.id, s.lastCounter = id, 0
	}
	// The addresses of a name are those where discovery found it last.
	if !s.literal {
		found := endpoints(addrs)
		s.addrs = found[:min(len(found), maxSignalAddrs)]
	}
	return w.heard(now, s)
}

// seedIsSelf records that the seed is this node, which is not watched.
func (w *watchCore) seedIsSelf(text string) []effect {
	s := w.findSeed(text)
	if s == nil {
		return nil
	}
	s.self = true
	return s.resolve()
}

// advance sends the pings and gives the verdicts that are due at now, and returns when
// to call it again; the zero time means not before a neighbor comes. drift is how much
// further than the monotonic clock the wall clock went since the last call: the
// monotonic one stands still while a machine sleeps.
func (w *watchCore) advance(now time.Time, drift time.Duration) (out []effect, next time.Time) {
	// A node without neighbors is alone, which is not a netsplit: it hears nobody.
	if w.interval == 0 || len(w.neighbors) == 0 {
		w.due = time.Time{}
		return nil, w.due
	}
	w.allowForLateness(now, drift)
	// Often enough to notice lateness.
	next = now.Add(w.interval / 2)
	for _, s := range w.seeds {
		// This node is not watched. A seed that is a name has no address to ask for until
		// discovery has resolved it.
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

// allowForLateness keeps the seeds from being lost because this machine was asleep or
// busy. The two bounds are at least what timers are usually late by: below that, every
// call would be late, and no verdict would ever be given.
func (w *watchCore) allowForLateness(now time.Time, drift time.Duration) {
	late := time.Duration(0)
	if !w.due.IsZero() {
		late = now.Sub(w.due)
	}
	asleep := max(w.interval, usualLateness)
	grace := max(w.timeout, 2*usualLateness)
	switch {
	case late > asleep, drift.Abs() > asleep:
		// The silence is this machine's, not the seeds'.
		w.restartSilence(now, 0, w.interval/2)
	case late > grace/2:
		// Signals that arrived meanwhile may still be on their way through this machine.
		w.noVerdictBefore = now.Add(grace)
	}
}

// verdictAt returns when the seed is lost unless it is heard before; the zero time
// means never.
func (w *watchCore) verdictAt(s *seedRecord) time.Time {
	// Only a seed that was heard can be lost. And a seed that nobody has asked for had no
	// reason to answer.
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

// pingIfDue sends a ping for the seed if one is due.
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
		w.stats.Unsigned++
		s.nextPing = now.Add(w.interval)
		return nil
	}
	w.notePing(now, &p)
	return []effect{flood{msg: msg}}
}

// notePing records that a ping, ours or another's, is on its way. It serves all nodes,
// so for the seeds that it covers an own ping is due only if no answer comes.
func (w *watchCore) notePing(now time.Time, p *ping) {
	w.asked.Add(p.target.key(), now)
	for _, s := range w.seeds {
		if t := s.target(); t.empty() || !p.target.covers(t) {
			continue
		}
		// Its answer, or the one to another ping, was faster than the ping itself.
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

// answerPatience returns how long to wait for the answer to a ping before the next
// ping: as long as an answer may take, and as neighbors forward no other ping. Two or
// three pings fit in before the verdict.
func (w *watchCore) answerPatience(s *seedRecord) time.Duration {
	jitter := w.interval / 16
	// There is no hurry any more, so the nodes may take turns.
	if s.lost {
		jitter = w.interval / 2
	}
	return max(w.timeout, w.interval*33/64) + w.randomUpTo(jitter)
}

// stampNext returns the stamp of a new signal.
func (w *watchCore) stampNext() stamp {
	s := w.nextStamp
	w.nextStamp.counter++
	return s
}
