package overlay

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

const (
	// keepaliveInterval is half of what a half link may live, ten seconds.
	keepaliveInterval = 5 * time.Second
	// silenceTimeout ends a link: two keepalives missed, and half an interval of patience.
	silenceTimeout = 12500 * time.Millisecond
	// requestTimeout bounds a request: a dial of five seconds and the answer.
	requestTimeout = 7 * time.Second
	// suspectTimeout is the silence after which a neighbour no longer counts when others
	// are looked for: one keepalive missed, and half an interval of patience. The
	// link itself stays.
	suspectTimeout = 7500 * time.Millisecond
	// hedgeDelay is how long a request holds back the next one: a node that lives has
	// answered by then, one that is gone takes the five seconds of a dial.
	hedgeDelay = time.Second
	// maxDials bounds the nodes asked at once (the overlay research, section B).
	maxDials = 8
	// MaxDials is how many a node without links asks at once, until it has asked
	// everybody it knows: where nineteen in twenty of a thousand have died in silence,
	// eight at a time, of which each may take five seconds, leave nodes alone for two
	// minutes.
	MaxDials = 24
	// acceptTimeout bounds what follows an Accept. Less than the ten seconds of
	// promise 1, as the other side may have just begun to count.
	acceptTimeout = 5 * time.Second
	// probeInterval is how often pubsub is asked for a peer whose joining it has
	// not reported.
	probeInterval = 300 * time.Millisecond
	// offTopicTimeout is how long a linked peer may be off the topic.
	offTopicTimeout = 3 * time.Second
	// relinkCooldown is how long a pair that parted without a fault stays apart.
	relinkCooldown = 30 * time.Second
	// maxOverflow is how far beyond max a lone node is taken in.
	maxOverflow = 2
	// handoverDelay is half of the longest time that passes before a node which is
	// over max sheds a link, so that its neighbours do not all do so at once.
	handoverDelay = 500 * time.Millisecond
	// handoverInterval is how long one neighbour has to follow a handover before
	// another is asked; after handoverLimit any that can spare the link may leave, and
	// after four times that one is left.
	handoverInterval = 2 * time.Second
	handoverPatience = 5 * time.Second
	// degreeDelay is how soon neighbours are told of a new number of links.
	degreeDelay = 100 * time.Millisecond
	// sleepThreshold is how late our own timer must be before we think that we, not they,
	// were away; grace is what the others then get to be heard.
	sleepThreshold = 6 * time.Second
	wakeGrace      = keepaliveInterval + time.Second
	// redirectSize is how many addresses a refusal names (Cyclon and the overlay
	// research use 8 as the length of an exchange).
	redirectSize = 8
	// walkTTL is the active random walk length of HyParView, walks how many are
	// sent at once.
	walkTTL       = 6
	walksPerRound = 2
	// maxVainRounds is how many rounds of walks may find nothing before the end of a
	// walk has to make room.
	maxVainRounds = 2
	// maxVainRequests is the same for requests that full nodes refused.
	maxVainRequests = 4
	// One neighbour may have us pass on walkRate walks a second and walkBurst at
	// once; a lookup counts as lookupCost of one.
	walkRate   = 8
	walkBurst  = 16
	lookupCost = 0.25
	// After maxRefusals by full nodes the next one is asked after refusalPause
	// (threats T13), by a node without links after refusalPauseLone.
	maxRefusals          = 8
	refusalPause         = 2 * time.Second
	isolatedRefusalPause = 250 * time.Millisecond
)

// Config is what a State needs to know. All fields but Min, Max and Seeds are
// required.
type Config struct {
	Self    peer.ID
	Session Session
	Network string
	// Min and Max bound the number of links. A negative Max means no bound.
	Min, Max int
	// Seeds is the number of seeds, which are known by their index.
	Seeds int
	Rand  *rand.Rand
}

// A State is the membership protocol of one node. It performs no I/O and reads
// no clock. One goroutine at a time may use it.
type State struct {
	cfg     Config
	record  []byte // own signed peer record
	started time.Time
	now     time.Time // of the present step
	nextDue time.Time // when the next step was due
	closed  bool

	links    []*link // in the order of the handshakes
	book     book
	partings []parting
	seeds    []*seedState
	beacon   beacon
	shuffles shuffleState
	swaps    swapState
	searches []*findState

	seedRound     int       // attempts since alone
	nextSeedRound time.Time // next attempt at all seeds; zero while not alone
	nextWalks     time.Time // next round of walks
	vainRounds    int       // rounds since the last new link
	refusals      float64   // since the last new link, less what time has forgiven
	lastRefusal   time.Time // the last
	refusalsInRow int       // since the last new link
	overSince     time.Time // since when there are more than max links
	nextHandover  time.Time // next handover
	handoverAsked []peer.ID // who was asked to take over in this round
	outputs       []Output
}

// A parting is a pair that parted without a fault.
type parting struct {
	id peer.ID
	at time.Time
}

// phase of a link.
type phase uint8

const (
	requested phase = iota // we sent a request
	accepted               // both agreed; waiting for the topic
	linked                 // linked
)

type link struct {
	Contact
	phase    phase
	since    time.Time // of the phase
	wanted   bool      // wanted beyond min
	overflow bool      // wanted beyond max
	dialed   bool      // we asked, so it can be reached
	urgent   bool      // asked for so
	manual   bool      // the user wants it

	session         Session
	degree          int
	heard           time.Time
	nextKeepalive   time.Time // next keepalive
	peerStamp       time.Duration
	peerStampAt     time.Time // when stamp came
	rtt             time.Duration
	onTopic         bool
	offTopicSince   time.Time
	nextProbe       time.Time
	readySent       bool
	peerReady       *Ready    // the peer's, once it came
	tokens          []uint64  // of Adds that wait for this link
	replaces        peer.ID   // whom to leave when this link is up: a handover
	leavingReplaced bool      // leaving gets another neighbour
	swap            bool      // part of a swap: leaving is left for this link, or gets another in return
	leaving         Contact   // of who was asked: the neighbour that the asker leaves
	beaconSentAt    time.Time // when it was last told of a better beacon
	passed          float64   // walks passed on for it, less what time has forgiven
	passedAt        time.Time
}

// New returns a State that has seen nothing yet. Call Step with a Tick to begin.
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

// RTT returns the last round trip time measured on the link to id, or zero.
func (s *State) RTT(id peer.ID) time.Duration {
	if l := s.link(id); l != nil {
		return l.rtt
	}
	return 0
}

// Known returns the contacts of neighbours and the known addresses.
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

// NetworkView is what a node knows of the part of the network it is in.
type NetworkView struct {
	Links int // neighbours
	Known int // nodes known and believed to live, neighbours among them
	Lost  int // nodes that did not answer, and are tried now and then
	Tag   Tag
	Since time.Time // since when the tag is that node's
}

// View returns what is known of the network.
func (s *State) View() NetworkView {
	return NetworkView{Links: s.Degree(), Known: len(s.Known()), Lost: len(s.book.lost), Tag: s.Tag(), Since: s.beacon.since}
}

// Step feeds one input to the protocol and returns what has to be done. now must
// not go back. The result is valid until the next call.
func (s *State) Step(now time.Time, in Input) []Output {
	s.outputs = s.outputs[:0]
	if s.closed {
		if add, ok := in.(Add); ok {
			s.emit(Added{Token: add.Token, Peer: add.Contact.ID, Reason: ReasonClosed})
		}
		return s.outputs
	}
	if s.started.IsZero() {
		s.started = now
		s.becomeOwner(now)
	}
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

// Next returns when Step has to be called with a Tick at the latest, given the
// time of the last step. Zero means never.
func (s *State) Next(now time.Time) (t time.Time) {
	if s.closed {
		return t
	}
	for _, l := range s.links {
		switch l.phase {
		case requested:
			t = earlier(t, l.since.Add(requestTimeout))
		case accepted:
			t = earlier(t, l.since.Add(acceptTimeout))
			if !l.onTopic {
				t = earlier(t, l.nextProbe)
			}
		case linked:
			t = earlier(t, earlier(l.nextKeepalive, l.heard.Add(silenceTimeout)))
			if !l.suspect(now) {
				t = earlier(t, l.heard.Add(suspectTimeout))
			}
			if !l.offTopicSince.IsZero() {
				t = earlier(t, l.offTopicSince.Add(offTopicTimeout))
			}
		}
	}
	t = earlier(t, s.seedsDue())
	t = earlier(t, s.requestsDue(now))
	if !s.overSince.IsZero() {
		t = earlier(t, s.nextHandover)
	}
	t = earlier(t, s.shufflesDue())
	if s.Degree() > 0 {
		t = earlier(t, s.swaps.next)
	}
	t = earlier(t, s.beaconDue())
	return earlier(t, s.lookupsDue())
}

func (s *State) emit(o Output) { s.outputs = append(s.outputs, o) }

func (s *State) send(to Contact, m Message) { s.emit(Send{To: to, Message: m}) }

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

// suspect tells whether the neighbour has been silent for so long that it may be
// gone.
func (l *link) suspect(now time.Time) bool {
	return l.phase == linked && now.Sub(l.heard) >= suspectTimeout
}

// healthy is the number of links that are not suspect.
func (s *State) healthy() (n int) {
	for _, l := range s.links {
		if l.phase == linked && !l.suspect(s.now) {
			n++
		}
	}
	return n
}

// occupied is the number of places taken: links and those about to be, but not links to
// suspects.
func (s *State) occupied() int { return s.healthy() + s.count(accepted) }

// pickNeighbor returns a random neighbour of those that f accepts, or nil.
func (s *State) pickNeighbor(f func(*link) bool) *link {
	var list []*link
	for _, l := range s.links {
		if l.phase == linked && f(l) {
			list = append(list, l)
		}
	}
	if len(list) == 0 {
		return nil
	}
	return list[s.cfg.Rand.IntN(len(list))]
}

// hasRoom tells whether a place is free, counted up to max+extra. Those that
// suspects take count as free as long as all together stay within max+over.
func (s *State) hasRoom(extra int) bool {
	if s.cfg.Max < 0 {
		return true
	}
	if s.cfg.Max == 0 {
		return false // zero means zero, also for lone nodes
	}
	return s.occupied() < s.cfg.Max+extra && s.Degree()+s.count(accepted) < s.cfg.Max+maxOverflow
}

// handleAdd asks for a link on the user's wish.
func (s *State) handleAdd(now time.Time, in Add) {
	fail := func(why Reason) { s.emit(Added{Token: in.Token, Peer: in.Contact.ID, Reason: why}) }
	if in.Contact.ID == s.cfg.Self {
		fail(ReasonSelf)
		return
	}
	l := s.link(in.Contact.ID)
	switch {
	case l != nil && l.phase == linked:
		fail(ReasonNone)
	case l != nil:
		l.tokens = append(l.tokens, in.Token)
	case !s.hasRoom(0):
		fail(ReasonFull)
	default:
		s.book.learn(in.Contact)
		l = s.sendRequest(now, in.Contact, Request{Manual: true})
		l.manual = true
		l.tokens = append(l.tokens, in.Token)
	}
}

// requestLink sends a request for a link.
func (s *State) requestLink(now time.Time, to Contact, urgent bool) *link {
	return s.sendRequest(now, to, Request{Urgent: urgent})
}

// sendRequest sends m with what every request has.
func (s *State) sendRequest(now time.Time, to Contact, m Request) *link {
	if e := s.book.find(to.ID); e != nil {
		e.lastTry = now
	}
	l := &link{Contact: to, phase: requested, since: now, dialed: true, urgent: m.Urgent}
	s.links = append(s.links, l)
	m.Session, m.Network, m.Record, m.Degree, m.Tag = s.cfg.Session, s.cfg.Network, s.record, s.occupied(), s.advertisedTag()
	s.send(to, m)
	return l
}

// sampleContacts returns up to n contacts that have a record, of neighbours and known nodes
// alike, in random order.
func (s *State) sampleContacts(n int, not peer.ID) []Contact {
	var list []Contact
	for _, l := range s.links {
		if l.phase != requested && l.ID != not && len(l.Record) > 0 && !l.suspect(s.now) {
			list = append(list, l.Contact)
		}
	}
	for _, e := range s.book.known {
		if e.ID != not && len(e.Record) > 0 && s.link(e.ID) == nil {
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
