package health

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// MaxInterval bounds intervals and timeouts, those that a ping of others names too.
const MaxInterval = 24 * time.Hour

const (
	// defaultInterval paces forwarding and answering where the own watchdog is off.
	defaultInterval = 10 * time.Second
	// minSpacing bounds what a ping with a tiny interval can make others do.
	minSpacing = 10 * time.Millisecond
	// maxSeen bounds the signals remembered to forward none twice, maxAsked the
	// targets whose last ping is remembered.
	maxSeen  = 4096
	maxAsked = 1024
)

// An output is something the driver has to do: a flood or a change.
type output interface{ output() }

// A flood goes to all neighbors but one.
type flood struct {
	msg    []byte
	except peer.ID
}

// A change is the beginning or the end of a netsplit.
type change struct {
	seed   string
	lost   bool
	silent time.Duration // how long it was not heard when it was lost
}

func (flood) output()  {}
func (change) output() {}

// watch turns what is heard of the seeds into netsplits and their ends, and
// plays this node's part in asking for them. It performs no I/O and reads no
// clock. One goroutine at a time may use it.
type watch struct {
	key      crypto.PrivKey
	id       peer.ID
	interval time.Duration // 0: this node watches nobody, but still helps others
	timeout  time.Duration
	rand     *rand.Rand
	next     stamp // of the next own signal

	seeds     []*seed
	own       []netip.AddrPort
	neighbors []peer.ID

	seen     *recent[seenKey, struct{}]
	asked    *recent[string, time.Time] // when a ping for a target was last passed on
	answered time.Time

	due   time.Time // when advance asked to be called
	hold  time.Time // no verdict before
	stats Stats
}

type seenKey struct {
	stamp
	pong bool
}

// seed is one seed watched.
type seed struct {
	text    string
	pinned  bool // only id is accepted there
	literal bool // at is what the user wrote
	id      peer.ID
	at      []netip.AddrPort
	self    bool // by what the driver was told; see isSelf

	known     bool // heard at least once, so it can be lost
	lost      bool
	lastHeard time.Time

	since time.Time // silence counts from here: it was heard, or we began to listen
	asked time.Time // of the first ping since then, anybody's; zero for none
	next  time.Time // of the next own ping
	ping  uint64    // counter of the last own ping
	mark  uint64    // counter of the last answer of id
}

func newSeed(given Seed) *seed {
	return &seed{text: given.Text, id: given.ID, pinned: given.ID != "", at: given.Addrs, literal: len(given.Addrs) > 0}
}

func newWatch(key crypto.PrivKey, id peer.ID, sess session, counter uint64, interval, timeout time.Duration, seeds []Seed, r *rand.Rand) *watch {
	w := &watch{
		key: key, id: id, interval: interval, timeout: timeout, rand: r,
		next:  stamp{id, sess, counter},
		seen:  newRecent[seenKey, struct{}](maxSeen),
		asked: newRecent[string, time.Time](maxAsked),
	}
	for _, given := range seeds {
		if w.seed(given.Text) == nil { // a seed that was given twice is watched once
			w.seeds = append(w.seeds, newSeed(given))
		}
	}
	return w
}

func (w *watch) seed(text string) *seed {
	for _, s := range w.seeds {
		if s.text == text {
			return s
		}
	}
	return nil
}

// target returns whom to ask for: a pinned seed by its id alone; otherwise
// whoever has the address, or else is known to be the seed.
func (s *seed) target() target {
	if s.pinned {
		return target{id: s.id}
	}
	return target{id: s.id, at: s.at}
}

// isSelf reports whether the seed is this node: by its id, by what discovery
// found, or by an address of ours.
func (w *watch) isSelf(s *seed) bool {
	if s.self || s.id == w.id {
		return true
	}
	return !s.pinned && s.literal && slices.ContainsFunc(s.at, w.have)
}

func (w *watch) have(ap netip.AddrPort) bool {
	_, ok := slices.BinarySearchFunc(w.own, ap, netip.AddrPort.Compare)
	return ok
}

// setOwn says at which addresses this node is reached; sorted.
func (w *watch) setOwn(own []netip.AddrPort) { w.own = own }

// setNeighbors says who is linked now. When the first comes, every seed gets a
// full round before any verdict.
func (w *watch) setNeighbors(now time.Time, list []peer.ID) (out []output) {
	if len(w.neighbors) == 0 && len(list) > 0 {
		w.restart(now, w.interval/2, w.interval/2)
	}
	for _, id := range list {
		if !slices.Contains(w.neighbors, id) {
			out = append(out, w.heardFrom(now, id)...) // a link takes two
		}
	}
	w.neighbors = slices.Clone(list)
	return out
}

// heardFrom records that something came over the link to a neighbor. That the link
// stands says less: one that was cut stands until its keepalives are missed.
func (w *watch) heardFrom(now time.Time, id peer.ID) (out []output) {
	for _, s := range w.seeds {
		if s.id == id {
			out = append(out, w.heard(now, s)...)
		}
	}
	return out
}

// restart lets the silence of every seed begin now, and plans the next ping
// after the pause and up to jitter more.
func (w *watch) restart(now time.Time, pause, jitter time.Duration) {
	for _, s := range w.seeds {
		s.since, s.asked = now, time.Time{}
		s.next = now.Add(pause + w.upTo(jitter))
	}
	w.due = time.Time{}
}

func (w *watch) upTo(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return time.Duration(w.rand.Int64N(int64(d)))
}

// heard records that the seed is there.
func (w *watch) heard(now time.Time, s *seed) []output {
	s.known, s.lastHeard = true, now
	s.since, s.asked = now, time.Time{}
	s.next = now.Add(w.interval + w.upTo(w.interval/2))
	if !s.lost {
		return nil
	}
	s.lost = false
	return []output{change{seed: s.text}}
}

// found says that discovery reached the seed, who it is and where.
func (w *watch) found(now time.Time, text string, id peer.ID, addrs []ma.Multiaddr) []output {
	s := w.seed(text)
	if s == nil || s.pinned && s.id != id {
		return nil
	}
	if id == w.id {
		return w.foundSelf(text)
	}
	s.self = false
	if s.id != id {
		s.id, s.mark = id, 0
	}
	if !s.literal {
		at := endpoints(addrs)
		s.at = at[:min(len(at), maxSignalAddrs)]
	}
	return w.heard(now, s)
}

// foundSelf says that the seed is this node.
func (w *watch) foundSelf(text string) []output {
	s := w.seed(text)
	if s == nil {
		return nil
	}
	s.self = true
	if !s.lost {
		return nil
	}
	s.lost = false
	return []output{change{seed: s.text}}
}

// advance applies what is due at now and returns when to call it again; the
// zero time means not before a neighbor comes. drift is by how much more the
// wall clock went on than the monotonic one since the last call: the monotonic
// one stands still while a machine sleeps.
func (w *watch) advance(now time.Time, drift time.Duration) (out []output, next time.Time) {
	if w.interval == 0 || len(w.neighbors) == 0 {
		w.due = time.Time{}
		return nil, w.due
	}
	late := time.Duration(0)
	if !w.due.IsZero() {
		late = now.Sub(w.due)
	}
	switch {
	case late > w.interval, drift.Abs() > w.interval:
		// We were asleep, or too busy: the silence is ours, not the seeds'.
		w.restart(now, 0, w.interval/2)
	case late > w.timeout/2:
		// What was sent to us meanwhile may still be on its way through this machine.
		w.hold = now.Add(w.timeout)
	}
	// Often enough to notice lateness.
	next = now.Add(w.interval / 2)
	for _, s := range w.seeds {
		if w.isSelf(s) || s.target().empty() {
			continue
		}
		out = append(out, w.ask(now, s)...)
		verdict := w.verdictAt(s)
		if !verdict.IsZero() && !now.Before(verdict) {
			s.lost = true
			out = append(out, change{seed: s.text, lost: true, silent: now.Sub(s.lastHeard)})
			verdict = time.Time{}
		}
		for _, t := range []time.Time{s.next, verdict} {
			if !t.IsZero() && t.Before(next) {
				next = t
			}
		}
	}
	w.due = next
	return out, next
}

// verdictAt returns when the seed is lost if it is not heard before; zero for
// never. Somebody must have asked for it, and have had the time for an answer.
func (w *watch) verdictAt(s *seed) time.Time {
	if !s.known || s.lost || s.asked.IsZero() {
		return time.Time{}
	}
	at := s.since.Add(2*w.interval + w.timeout)
	for _, t := range []time.Time{s.asked.Add(w.timeout), w.hold} {
		if t.After(at) {
			at = t
		}
	}
	return at
}

// ask sends a ping for s if that is due.
func (w *watch) ask(now time.Time, s *seed) []output {
	if now.Before(s.next) {
		return nil
	}
	t := s.target()
	key := t.key()
	spacing := w.interval / 2
	if last, ok := w.asked.get(key); ok && now.Sub(last) < spacing {
		// Neighbors would not pass it on yet.
		s.next = last.Add(spacing)
		return nil
	}
	p := ping{stamp: w.stamp(), target: t, interval: w.interval}
	msg, err := p.seal(w.key)
	if err != nil {
		w.stats.Unsigned++
		s.next = now.Add(w.interval)
		return nil
	}
	w.noteAsked(now, &p)
	return []output{flood{msg: msg}}
}

// noteAsked records that p, ours or another's, is on its way: for the seeds it
// asks for, an own ping is due only if it was in vain.
func (w *watch) noteAsked(now time.Time, p *ping) {
	w.asked.set(p.target.key(), now)
	for _, s := range w.seeds {
		if t := s.target(); t.empty() || !p.target.covers(t) {
			continue
		}
		if p.sender != w.id && s.known && now.Sub(s.lastHeard) < w.interval/2 {
			continue // overtaken by its answer, or by that to another ping
		}
		if s.asked.IsZero() {
			s.asked = now
		}
		if p.sender == w.id {
			s.ping = p.counter
		}
		s.next = now.Add(w.patience(s))
	}
}

// patience returns how long to wait for the answer to a ping before the next:
// as long as it may take, and as neighbors pass no other on. Two or three pings
// fit in before the verdict; after it, nodes take turns at leisure.
func (w *watch) patience(s *seed) time.Duration {
	jitter := w.interval / 16
	if s.lost {
		jitter = w.interval / 2
	}
	return max(w.timeout, w.interval*33/64) + w.upTo(jitter)
}

func (w *watch) stamp() stamp {
	s := w.next
	w.next.counter++
	return s
}

// receive takes a signal from a neighbor.
func (w *watch) receive(now time.Time, from peer.ID, msg []byte) []output {
	w.stats.Received++
	s, err := parseSignal(msg)
	if err != nil {
		w.stats.Malformed++
		return nil
	}
	key := seenKey{s.stamp(), s.pong != nil}
	if _, dup := w.seen.get(key); dup || key.sender == w.id {
		w.stats.Duplicate++
		return nil
	}
	if s.ping != nil {
		return w.receivePing(now, from, msg, s, key)
	}
	return w.receivePong(now, from, msg, s, key)
}

// accept verifies s. Only then it is remembered: a forgery must not keep the
// true signal out.
func (w *watch) accept(s *signal, key seenKey) bool {
	if !s.verified() {
		w.stats.Forged++
		return false
	}
	w.seen.set(key, struct{}{})
	return true
}

// spacing returns the least time between two pings of one target that are
// passed on: half the interval of who asks or of this node, the shorter one.
func (w *watch) spacing(p *ping) time.Duration {
	interval := w.interval
	if interval == 0 {
		interval = defaultInterval
	}
	if p.interval > 0 {
		interval = min(interval, p.interval)
	}
	return max(interval/2, minSpacing)
}

func (w *watch) receivePing(now time.Time, from peer.ID, msg []byte, s *signal, key seenKey) []output {
	p := s.ping
	spacing := w.spacing(p)
	meant := p.target.id == w.id || slices.ContainsFunc(p.target.at, w.have)
	last, ok := w.asked.get(p.target.key())
	if meant {
		last, ok = w.answered, !w.answered.IsZero()
	}
	if ok && now.Sub(last) < spacing {
		w.stats.Spared++ // the answer to the one before serves all
		return nil
	}
	if !w.accept(s, key) {
		return nil
	}
	if meant {
		return w.answer(now, p)
	}
	w.noteAsked(now, p)
	return []output{flood{msg: slices.Clone(msg), except: from}}
}

// answer says that this node is here. The addresses asked for come first, as
// there is room for 16.
func (w *watch) answer(now time.Time, p *ping) []output {
	w.answered = now
	at := slices.DeleteFunc(slices.Clone(p.target.at), func(ap netip.AddrPort) bool { return !w.have(ap) })
	for _, ap := range w.own {
		if len(at) < maxSignalAddrs && !slices.Contains(at, ap) {
			at = append(at, ap)
		}
	}
	msg, err := pong{stamp: w.stamp(), at: at, answers: p.stamp}.seal(w.key)
	if err != nil {
		w.stats.Unsigned++
		return nil
	}
	return []output{flood{msg: msg}}
}

func (w *watch) receivePong(now time.Time, from peer.ID, msg []byte, s *signal, key seenKey) []output {
	p := s.pong
	if !w.accept(s, key) {
		return nil
	}
	var out []output
	replayed := false
	for _, s := range w.seeds {
		if w.isSelf(s) {
			continue
		}
		switch {
		case s.id == p.sender:
			// Counters rise, so a lower one is an old answer played again; unless it
			// answers our own last ping: then only the seed's clock went back.
			ours := p.answers == stamp{w.id, w.next.session, s.ping} && s.ping != 0
			if p.counter <= s.mark && !ours {
				replayed = true
				continue
			}
			s.mark = p.counter
			out = append(out, w.heard(now, s)...)
		case !s.pinned && slices.ContainsFunc(s.at, func(ap netip.AddrPort) bool { return slices.Contains(p.at, ap) }):
			out = append(out, w.heard(now, s)...)
		}
	}
	if replayed {
		w.stats.Replayed++
		return out
	}
	return append(out, flood{msg: slices.Clone(msg), except: from})
}
