package overlay

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

const (
	// sleepThreshold is how late a timer of this node must be for the node to assume
	// that it was away itself, and not the others. wakeGrace is how long the others
	// then have to be heard.
	sleepThreshold = 6 * time.Second
	wakeGrace      = keepaliveInterval + time.Second
	// redirectSize is how many contacts an answer names (Cyclon exchanges 8).
	redirectSize = 8
)

// Config configures a State. All fields but Min, Max and Seeds are required.
type Config struct {
	Self    peer.ID
	Session protocol.Session
	Network string
	// Min and Max bound the number of links. Zero means none. A negative Max means
	// that there is no upper bound.
	Min, Max int
	// Seeds is the number of seeds. Inputs and outputs name a seed by its index.
	Seeds int
	Rand  *rand.Rand
}

// A State is the membership protocol of one node. It performs no I/O and reads no
// clock. One goroutine at a time may use it.
type State struct {
	cfg     Config
	record  []byte    // this node's signed peer record
	started time.Time // the first step
	now     time.Time // the present step
	nextDue time.Time // when the next step was due
	closed  bool
	outputs []Output // of the present step

	// Links, and the addresses of other nodes.
	links    []*link // in the order of their handshakes
	book     book
	partings []endedLink

	// Each of these has its own file.
	seeds    []*seedState
	beacon   partTag
	shuffles shuffleState
	swaps    swapState
	searches []*findState

	// The way back of a node without links.
	seedRound     int       // attempts at all seeds since the last link ended
	nextSeedRound time.Time // zero while the node has links

	// The search for more links. All but the times are reset by a new link.
	nextWalks     time.Time
	vainRounds    int     // rounds of walks that found nothing
	refusals      float64 // less those that are old enough to be forgiven
	lastRefusal   time.Time
	refusalsInRow int

	// Too many links; see shedLinks.
	overSince     time.Time // zero while there are at most Max links
	nextHandover  time.Time
	handoverAsked []peer.ID // the neighbors asked in this round
}

// An endedLink is a link that ended without a fault.
type endedLink struct {
	id peer.ID
	at time.Time
}

// New returns a State without links. To begin, call Step with a Tick.
func New(cfg Config) *State {
	s := &State{cfg: cfg, book: book{self: cfg.Self, rand: cfg.Rand}}
	for range cfg.Seeds {
		s.seeds = append(s.seeds, &seedState{})
	}
	s.beacon.ownRank = rank(cfg.Self)
	s.shuffles.checkPause = firstCheckPause
	s.swaps.pause = minSwapPause
	return s
}

// Degree returns the number of links.
func (s *State) Degree() int { return s.count(linked) }

// RTT returns the last round trip time measured on the link to id. It is zero if there
// is no such link, or no measurement yet.
func (s *State) RTT(id peer.ID) time.Duration {
	if l := s.link(id); l != nil {
		return l.rtt
	}
	return 0
}

// Known returns the contacts of the neighbors and of the nodes believed to live.
func (s *State) Known() (list []Contact) {
	for _, l := range s.links {
		if l.phase == linked && s.book.findKnown(l.ID) == nil {
			list = append(list, l.Contact)
		}
	}
	for _, e := range s.book.known {
		list = append(list, e.Contact)
	}
	return list
}

// A PartView is what a node knows of its part of the network.
type PartView struct {
	Links int // neighbors
	Known int // nodes believed to live, neighbors included
	Lost  int // nodes that did not answer; they are tried now and then
	Tag   Tag
	Since time.Time // when the present owner of the tag was first heard
}

// View returns what this node knows of its part of the network.
func (s *State) View() PartView {
	return PartView{Links: s.Degree(), Known: len(s.Known()), Lost: len(s.book.lost), Tag: s.Tag(), Since: s.beacon.since}
}

// Step feeds one input to the protocol and returns what the driver has to do. The time
// now must not go back. The result is valid until the next call.
func (s *State) Step(now time.Time, in Input) []Output {
	s.outputs = s.outputs[:0]
	if s.closed {
		// Every Add is promised an Added, even after Close.
		if add, ok := in.(Add); ok {
			s.emit(Added{Token: add.Token, Peer: add.Contact.ID, Reason: ReasonClosed})
		}
		return s.outputs
	}
	if s.started.IsZero() {
		s.started = now
		s.becomeOwner(now) // a node that knows nobody is a part of its own
	}
	// The driver calls at nextDue at the latest. If it is much later than that, this
	// process was suspended, and the silence of the others does not mean that they are dead.
	if !s.nextDue.IsZero() && now.Sub(s.nextDue) > sleepThreshold {
		s.forgiveSilence(now)
	}
	s.now = now
	s.handle(now, in)
	s.nextDue = s.Next(now)
	return s.outputs
}

func (s *State) handle(now time.Time, in Input) {
	switch in := in.(type) {
	case Tick:
	case Received:
		s.handleMessage(now, in.From, in.Message)
	case Unreachable:
		s.handleUnreachable(now, in.Peer, in.Reason)
	case Disconnected:
		// A request that is under way dials by itself and has its own timeout.
		if l := s.link(in.Peer); l != nil && l.phase != requested {
			s.endLink(now, l, ReasonGone)
		}
	case OnTopic:
		s.handleOnTopic(now, in.Peer, in.Present)
	case SeedFound:
		s.handleSeedFound(now, in)
	case SeedFailed:
		s.seeds[in.Seed].asked = false
	case SeedSelf:
		s.seeds[in.Seed].asked, s.seeds[in.Seed].self = false, true
	case SeedLost:
		s.setSeedLost(now, in.Seed, true)
	case SeedHeard:
		s.setSeedLost(now, in.Seed, false)
	case Learned:
		s.book.learn(in.Contact)
	case RecordRenewed:
		s.handleRecordRenewed(now, in)
	case Find:
		s.startFind(now, in)
	case EndFind:
		s.endFind(in.Token)
	case Woke:
		s.forgiveSilence(now)
	case Add:
		s.handleAdd(now, in)
	case Drop:
		if l := s.link(in.Peer); l != nil {
			s.leaveLink(now, l, ReasonDropped)
		}
	case Close:
		for _, l := range slices.Clone(s.links) {
			s.leaveLink(now, l, ReasonClosed)
		}
		s.closed = true
		return
	}
	s.checkLinkTimers(now)
	s.askSeeds(now)
	s.requestLinks(now)
	s.shedLinks(now)
	s.runShuffles(now)
	s.startSwap(now)
	s.refreshBeacon(now)
	s.sendLookups(now)
}

// Next returns when Step has to be called with a Tick at the latest, given the time of
// the last step. Zero means never.
func (s *State) Next(now time.Time) (t time.Time) {
	if s.closed {
		return t
	}
	for _, l := range s.links {
		t = earlier(t, l.due(now))
	}
	t = earlier(t, s.seedsDue())
	t = earlier(t, s.requestsDue(now))
	if !s.overSince.IsZero() {
		t = earlier(t, s.nextHandover)
	}
	t = earlier(t, s.shufflesDue())
	if s.Degree() > 0 {
		t = earlier(t, s.swaps.next) // without links there is nothing to swap
	}
	t = earlier(t, s.beaconDue())
	return earlier(t, s.lookupsDue())
}

// forgiveSilence is called after this machine was asleep: the others get time to be
// heard, and all pauses begin anew.
func (s *State) forgiveSilence(now time.Time) {
	for _, l := range s.links {
		// Each link ends wakeGrace from now unless the neighbor is heard.
		if limit := now.Add(wakeGrace - silenceTimeout); l.heard.Before(limit) {
			l.heard = limit
		}
		l.nextKeepalive = now
		if l.phase != linked {
			l.since = now
		}
		if !l.offTopicSince.IsZero() {
			l.offTopicSince = now
		}
	}
	if !s.nextSeedRound.IsZero() {
		s.startRejoin(now)
	}
	for i := range s.shuffles.checks {
		s.shuffles.checks[i].at = now
	}
	for _, list := range [][]*candidate{s.book.known, s.book.lost} {
		for _, e := range list {
			e.retryAt = now
		}
	}
	for _, x := range s.seeds {
		x.tries, x.next = 0, now
	}
	// The owner of the tag gets one interval to be heard before others follow it.
	if limit := now.Add(beaconInterval + wakeGrace - beaconLife); s.beacon.heard.Before(limit) {
		s.beacon.heard = limit
	}
}

func (s *State) emit(o Output) { s.outputs = append(s.outputs, o) }

func (s *State) send(to Contact, m Message) { s.emit(Send{To: to, Message: m}) }

// link returns the link to id in any phase, or nil.
func (s *State) link(id peer.ID) *link {
	for _, l := range s.links {
		if l.ID == id {
			return l
		}
	}
	return nil
}

func (s *State) count(p phase) (n int) {
	for _, l := range s.links {
		if l.phase == p {
			n++
		}
	}
	return n
}

// healthy returns the number of links that are not suspect.
func (s *State) healthy() (n int) {
	for _, l := range s.links {
		if l.phase == linked && !l.suspect(s.now) {
			n++
		}
	}
	return n
}

// occupied returns the number of places taken: links and accepted links. Links to
// suspects do not count.
func (s *State) occupied() int { return s.healthy() + s.count(accepted) }

// hasRoom reports whether a place is free, counted up to Max+extra. A link to a suspect
// counts as free as long as all links together stay within Max+maxOverflow.
func (s *State) hasRoom(extra int) bool {
	if s.cfg.Max < 0 {
		return true
	}
	// A user who asks for no links gets none, not even for an isolated node.
	if s.cfg.Max == 0 {
		return false
	}
	return s.occupied() < s.cfg.Max+extra && s.Degree()+s.count(accepted) < s.cfg.Max+maxOverflow
}

// isolated reports whether the node has no link, although it may have one.
func (s *State) isolated() bool { return s.cfg.Max != 0 && s.healthy() == 0 }

// pickNeighbor returns a random neighbor that accept accepts, or nil.
func (s *State) pickNeighbor(accept func(*link) bool) *link {
	var list []*link
	for _, l := range s.links {
		if l.phase == linked && accept(l) {
			list = append(list, l)
		}
	}
	if len(list) == 0 {
		return nil
	}
	return list[s.cfg.Rand.IntN(len(list))]
}

// randomNeighbor returns a random neighbor other than those in except, or nil.
func (s *State) randomNeighbor(except ...peer.ID) *link {
	return s.pickNeighbor(func(l *link) bool { return !slices.Contains(except, l.ID) })
}

// sampleContacts returns up to n contacts that have a record, of neighbors and known
// nodes alike, in random order. The node except is left out.
func (s *State) sampleContacts(n int, except peer.ID) []Contact {
	var list []Contact
	for _, l := range s.links {
		if l.phase != requested && l.ID != except && len(l.Record) > 0 && !l.suspect(s.now) {
			list = append(list, l.Contact)
		}
	}
	for _, e := range s.book.known {
		if e.ID != except && len(e.Record) > 0 && s.link(e.ID) == nil {
			list = append(list, e.Contact)
		}
	}
	n = min(n, len(list))
	for i := range n {
		j := i + s.cfg.Rand.IntN(len(list)-i)
		list[i], list[j] = list[j], list[i]
	}
	return list[:n]
}

func (s *State) learnContacts(list []Contact) {
	for _, c := range list {
		s.book.learn(c)
	}
}

// jitter returns a random duration in [d, 2d).
func (s *State) jitter(d time.Duration) time.Duration {
	return d + time.Duration(s.cfg.Rand.Int64N(int64(d)))
}

// spread returns d ± 20 %.
func (s *State) spread(d time.Duration) time.Duration {
	return d*4/5 + time.Duration(s.cfg.Rand.Int64N(int64(d)*2/5))
}
