package overlay

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

const (
	// A timer of this node that fires sleepThreshold too late means that this machine was
	// asleep, so the silence of its neighbors does not mean that they are dead.
	sleepThreshold = 6 * time.Second
	// wakeGrace is the time that each neighbor has, after this machine was asleep, to send
	// a message before its link ends.
	wakeGrace = keepaliveInterval + time.Second
	// redirectSize is the number of contacts of other nodes in an answer to a request for a
	// link. In the protocol Cyclon, 8 contacts are exchanged.
	redirectSize = 8
)

// Config configures a State. Min, Max and Seeds may be zero; all other fields are required.
type Config struct {
	Self    peer.ID
	Session protocol.Session
	Network string
	// The node seeks Min links and accepts at most Max. If Min is zero, it requests no
	// links; if Max is zero, it has none. A negative Max means that there is no upper bound.
	Min, Max int
	// Seeds is the number of seeds. Inputs and outputs name a seed by its index, from 0
	// to Seeds-1.
	Seeds int
	Rand  *rand.Rand
}

// A State is the membership protocol of one node. It performs no I/O and reads no
// clock. One goroutine at a time may use it.
type State struct {
	cfg     Config
	record  []byte    // this node's signed peer record
	started time.Time // the time of the first step
	now     time.Time // the time of the present step
	nextDue time.Time // the latest time for the next step
	closed  bool
	outputs []Output // the outputs of the present step

	// Links, and the addresses of other nodes.
	links      []*link // all links, complete or not, in the order in which their handshakes began
	book       book
	endedLinks []endedLink // for the cooldown, see startCooldown

	// The state of the parts of the protocol that have files of their own: seeds, beacons,
	// shuffles of addresses, swaps of links, and searches for addresses.
	seeds    []*seedState
	beacon   partTag
	shuffles shuffleState
	swaps    swapState
	searches []*findState

	// A node without links tries to reach all its seeds, in rounds, until it has a link.
	seedRound     int       // rounds since the last link ended
	nextSeedRound time.Time // zero before the first round

	// The search for more links. A new link sets failedWalkRounds, refusals and refusalsInRow
	// to zero.
	nextWalks        time.Time // when random walks may be sent again
	failedWalkRounds int       // rounds of random walks since the last new link
	refusals         float64   // refused requests at lastRefusal, see activeRefusals
	lastRefusal      time.Time
	refusalsInRow    int // refused requests since the last new link

	// A node with more than Max links asks neighbors to leave it; see shedLinks.
	overSince    time.Time // when the number of links exceeded Max; zero while it does not
	nextHandover time.Time
	// handoverAsked has the neighbors that were asked to link to another node and then to leave
	// this node.
	handoverAsked []peer.ID
}

// An endedLink is a link that one of its two nodes ended by decision, without a fault. For
// relinkCooldown, the two nodes make no new link.
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

// Degree returns the number of complete links, which is the number of neighbors.
func (s *State) Degree() int { return s.count(linked) }

// RTT returns the round trip time last measured on the link to id. It returns zero if
// there is no link to id, or if nothing was measured yet.
func (s *State) RTT(id peer.ID) time.Duration {
	if l := s.link(id); l != nil {
		return l.rtt
	}
	return 0
}

// Known returns the contacts of the neighbors and of all other nodes that this node
// believes to be alive.
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

// A PartView says what a node knows of its part of the network. A part is a set of nodes
// that are connected by links; a network that is cut has several.
type PartView struct {
	Links int       // neighbors
	Known int       // nodes believed to be alive, neighbors included
	Lost  int       // nodes that did not answer; this node tries to reach them again now and then
	Tag   Tag       // the tag, which is the name of this node's part of the network
	Since time.Time // when the node that owns the tag last changed, as far as this node knows
}

// View returns what this node knows of its part of the network.
func (s *State) View() PartView {
	return PartView{Links: s.Degree(), Known: len(s.Known()), Lost: len(s.book.lost), Tag: s.Tag(), Since: s.beacon.since}
}

// Step feeds one input to the protocol and returns what the driver has to do. The time
// now must not be earlier than at the previous call. The result is valid until the next
// call.
func (s *State) Step(now time.Time, in Input) []Output {
	s.outputs = s.outputs[:0]
	if s.closed {
		// The driver waits for an Added after every Add, even after Close.
		if add, ok := in.(Add); ok {
			s.emit(Added{Token: add.Token, Peer: add.Contact.ID, Reason: ReasonClosed})
		}
		return s.outputs
	}
	if s.started.IsZero() {
		s.started = now
		s.becomeOwner(now) // a node without links is a part of the network of its own, and owns its tag
	}
	// The driver must call Step at the time nextDue at the latest. If it calls much later, this
	// process was suspended, and the silence of other nodes does not mean that they are dead.
	if !s.nextDue.IsZero() && now.Sub(s.nextDue) > sleepThreshold {
		s.forgiveSilence(now)
	}
	s.now = now
	s.handle(now, in)
	s.nextDue = s.Next(now)
	return s.outputs
}

// handle applies one input, and then does everything that is due at the time now.
func (s *State) handle(now time.Time, in Input) {
	switch in := in.(type) {
	case Tick:
	case Received:
		s.handleMessage(now, in.From, in.Message)
	case Unreachable:
		s.handleUnreachable(now, in.Peer, in.Reason)
	case Disconnected:
		// A request for a link needs no connection: to send it, the driver dials the peer, and
		// the request has a timeout of its own.
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

// Next returns the time at which the driver has to call Step with a Tick if no other input
// comes before. now is the time of the last step. Zero means that no Tick is needed.
func (s *State) Next(now time.Time) (t time.Time) {
	if s.closed {
		return t
	}
	for _, l := range s.links {
		t = earlier(t, l.due(now))
	}
	t = earlier(t, s.seedsDue())
	t = earlier(t, s.requestsDue(now))
	// Only a node with more than Max links asks its neighbors to leave it.
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

// forgiveSilence is called after this machine was asleep. It gives every neighbor some time
// to send a message before its link ends, and ends the pauses before all further attempts.
func (s *State) forgiveSilence(now time.Time) {
	for _, l := range s.links {
		// The link to the neighbor ends after wakeGrace unless the neighbor sends something by
		// then.
		if limit := now.Add(wakeGrace - silenceTimeout); l.heard.Before(limit) {
			l.heard = limit
		}
		l.nextKeepalive = now
		// The timeouts of a handshake, and of a neighbor that is not on the pubsub topic, begin
		// again, since no answer could arrive during the sleep.
		if l.phase != linked {
			l.since = now
		}
		if !l.offTopicSince.IsZero() {
			l.offTopicSince = now
		}
	}
	// A node without links tries all addresses and seeds now, and not after a pause that
	// earlier failures have made long. For a node with links, this only changes when a later
	// series of attempts begins.
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
	// The node that owns the tag, and floods beacons, has one beacon interval and wakeGrace to
	// flood a beacon before another node becomes the owner in its place.
	if limit := now.Add(beaconInterval + wakeGrace - beaconTimeout); s.beacon.heard.Before(limit) {
		s.beacon.heard = limit
	}
}

func (s *State) emit(o Output) { s.outputs = append(s.outputs, o) }

func (s *State) send(to Contact, m Message) { s.emit(Send{To: to, Message: m}) }

// link returns the link to the peer id, in any phase of its handshake, or nil if there is none.
func (s *State) link(id peer.ID) *link {
	for _, l := range s.links {
		if l.ID == id {
			return l
		}
	}
	return nil
}

// count returns the number of links whose handshake is in the phase p.
func (s *State) count(p phase) (n int) {
	for _, l := range s.links {
		if l.phase == p {
			n++
		}
	}
	return n
}

// healthy returns the number of links to neighbors that are not suspect, which means that
// they were heard recently.
func (s *State) healthy() (n int) {
	for _, l := range s.links {
		if l.phase == linked && !l.suspect(s.now) {
			n++
		}
	}
	return n
}

// occupied returns the number of links that count toward Min and Max: healthy links, and
// links whose handshake the peer or this node has accepted. Suspect neighbors, which have
// been silent for long, do not count.
func (s *State) occupied() int { return s.healthy() + s.count(accepted) }

// hasRoom reports whether this node may have one more link: then at most Max+extra links may
// count toward Max, and at most Max+maxOverflow links may exist together with those to suspect
// neighbors, which may be dead.
func (s *State) hasRoom(extra int) bool {
	if s.cfg.Max < 0 {
		return true
	}
	// If Max is zero, the user wants no links, not even to nodes that have no other.
	if s.cfg.Max == 0 {
		return false
	}
	return s.occupied() < s.cfg.Max+extra && s.Degree()+s.count(accepted) < s.cfg.Max+maxOverflow
}

// isolated reports whether this node is allowed to have links but has no healthy one.
func (s *State) isolated() bool { return s.cfg.Max != 0 && s.healthy() == 0 }

// pickNeighbor returns a random neighbor for which accept returns true, or nil.
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

// sampleContacts returns the contacts of up to n random nodes that have a signed record:
// neighbors, and nodes believed to be alive. The node except is left out.
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

// spread returns a random duration that differs from d by at most 20 %, so that nodes do not
// act in step.
func (s *State) spread(d time.Duration) time.Duration {
	return d*4/5 + time.Duration(s.cfg.Rand.Int64N(int64(d)*2/5))
}
