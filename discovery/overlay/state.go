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
	// silence ends a link: two keepalives missed, and half an interval of patience.
	silence = 12500 * time.Millisecond
	// askTimeout bounds a request: a dial of five seconds and the answer.
	askTimeout = 7 * time.Second
	// acceptTimeout bounds what follows an Accept. Less than the ten seconds of
	// promise 1, as the other side may have just begun to count.
	acceptTimeout = 5 * time.Second
	// probeInterval is how often pubsub is asked for a peer whose joining it has
	// not reported.
	probeInterval = 300 * time.Millisecond
	// deafTimeout is how long a linked peer may be off the topic.
	deafTimeout = 3 * time.Second
	// apart is how long a pair that parted without a fault stays apart.
	apart = 30 * time.Second
	// over is how far beyond max a lone node is taken in.
	over = 2
	// handoverPause is half of the longest time that passes before a node which is
	// over max sheds a link, so that its neighbours do not all do so at once.
	handoverPause = 500 * time.Millisecond
	// handoverEvery is how long one neighbour has to follow a handover before
	// another is asked; after handoverLimit the link is dropped instead.
	handoverEvery = 2 * time.Second
	handoverLimit = 20 * time.Second
	// degreePause is how soon neighbours are told of a new number of links.
	degreePause = 100 * time.Millisecond
	// slept is how late our own timer must be before we think that we, not they,
	// were away; grace is what the others then get to be heard.
	slept = 6 * time.Second
	grace = keepaliveInterval + time.Second
	// redirects is how many addresses a refusal names (Cyclon and the overlay
	// research use 8 as the length of an exchange).
	redirects = 8
	// walkTTL is the active random walk length of HyParView, walks how many are
	// sent at once; walksPerSecond bounds what one neighbour may send through us.
	walkTTL        = 6
	walks          = 2
	walksPerSecond = 8
	// vainRounds is how many rounds of walks may find nothing before the end of a
	// walk has to make room.
	vainRounds = 2
)

// seedBackoff is the pauses between attempts to join while alone, ± 20 %.
var seedBackoff = []time.Duration{1 * time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second}

// Config is what a State needs to know. All fields but Min and Max are required.
type Config struct {
	Self    peer.ID
	Session Session
	Network string
	// Min and Max bound the number of links. A negative Max means no bound.
	Min, Max int
	Rand     *rand.Rand
}

// A State is the membership protocol of one node. It performs no I/O and reads
// no clock. One goroutine at a time may use it.
type State struct {
	cfg    Config
	record []byte // own signed peer record
	epoch  time.Time
	due    time.Time // when the next step was due
	closed bool

	links []*link // in the order of the handshakes
	book  book

	seedTry  int       // attempts since alone
	seedsAt  time.Time // next AskSeeds; zero while not alone
	walkAt   time.Time // next round of walks
	walkVain int       // rounds since the last new link
	overAt   time.Time // since when there are more than max links
	handAt   time.Time // next handover
	handed   []peer.ID // who was asked to take over in this round
	out      []Output
}

// phase of a link.
type phase uint8

const (
	asking   phase = iota // we sent a request
	accepted              // both agreed; waiting for the topic
	up                    // linked
)

type link struct {
	Contact
	phase  phase
	since  time.Time // of the phase
	keep   bool      // wanted beyond min
	beyond bool      // wanted beyond max

	session   Session
	degree    int
	heard     time.Time
	keepAt    time.Time // next keepalive
	stamp     time.Duration
	stampAt   time.Time // when stamp came
	rtt       time.Duration
	onTopic   bool
	deafSince time.Time
	probeAt   time.Time
	readySent bool
	ready     *Ready   // the peer's, once it came
	tokens    []uint64 // of Adds that wait for this link
	instead   peer.ID  // whom to leave when this link is up: a handover
	walkTimes []time.Time
}

// New returns a State that has seen nothing yet. Call Step with a Tick to begin.
func New(cfg Config) *State {
	return &State{cfg: cfg}
}

// SetRecord sets the node's own signed peer record, which others are given.
func (s *State) SetRecord(record []byte) { s.record = record }

// Degree returns the number of links.
func (s *State) Degree() int { return s.count(up) }

// RTT returns the last round trip time measured on the link to id, or zero.
func (s *State) RTT(id peer.ID) time.Duration {
	if l := s.link(id); l != nil {
		return l.rtt
	}
	return 0
}

// Known returns the known addresses, in no particular order.
func (s *State) Known() []Contact {
	list := make([]Contact, 0, len(s.book.entries))
	for _, k := range s.book.entries {
		list = append(list, k.Contact)
	}
	return list
}

// Step feeds one input to the protocol and returns what has to be done. now must
// not go back. The result is valid until the next call.
func (s *State) Step(now time.Time, in Input) []Output {
	s.out = s.out[:0]
	if s.closed {
		if add, ok := in.(Add); ok {
			s.emit(Added{Token: add.Token, Peer: add.Contact.ID, Reason: ReasonClosed})
		}
		return s.out
	}
	if s.epoch.IsZero() {
		s.epoch = now
	}
	if !s.due.IsZero() && now.Sub(s.due) > slept {
		s.awake(now)
	}
	s.handle(now, in)
	s.due = s.Next(now)
	return s.out
}

func (s *State) handle(now time.Time, in Input) {
	switch in := in.(type) {
	case Tick:
	case Received:
		s.received(now, in.From, in.Message)
	case Unreachable:
		s.unreachable(now, in.Peer, in.Reason)
	case Gone:
		if l := s.link(in.Peer); l != nil && l.phase != asking {
			s.end(now, l, ReasonGone)
		}
	case OnTopic:
		s.onTopic(now, in.Peer, in.Present)
	case SeedFound:
		s.seedFound(now, in.Seed, in.Merge)
	case Found:
		if in.Contact.ID != s.cfg.Self {
			s.book.add(in.Contact)
		}
	case Add:
		s.add(now, in)
	case Drop:
		if l := s.link(in.Peer); l != nil {
			s.leave(now, l, ReasonDropped)
		}
	case Close:
		for _, l := range slices.Clone(s.links) {
			s.leave(now, l, ReasonClosed)
		}
		s.closed = true
		return
	}
	s.timers(now)
	s.gather(now)
	s.handover(now)
}

// Next returns when Step has to be called with a Tick at the latest, given the
// time of the last step. Zero means never.
func (s *State) Next(now time.Time) (t time.Time) {
	if s.closed {
		return t
	}
	for _, l := range s.links {
		switch l.phase {
		case asking:
			t = earlier(t, l.since.Add(askTimeout))
		case accepted:
			t = earlier(t, l.since.Add(acceptTimeout))
			if !l.onTopic {
				t = earlier(t, l.probeAt)
			}
		case up:
			t = earlier(t, earlier(l.keepAt, l.heard.Add(silence)))
			if !l.deafSince.IsZero() {
				t = earlier(t, l.deafSince.Add(deafTimeout))
			}
		}
	}
	if s.lonely() {
		t = earlier(t, s.seedsAt)
	}
	if s.used() < s.cfg.Min {
		t = earlier(t, s.book.next(now, s.usable(now)))
		if s.count(asking) == 0 && s.Degree() > 0 {
			t = earlier(t, s.walkAt)
		}
	}
	if !s.overAt.IsZero() {
		t = earlier(t, s.handAt)
	}
	return t
}

func (s *State) emit(o Output) { s.out = append(s.out, o) }

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

// used is the number of places taken: links and those about to be.
func (s *State) used() int { return s.count(up) + s.count(accepted) }

// room tells whether n more places are free, counted up to max+extra.
func (s *State) room(extra int) bool {
	if s.cfg.Max < 0 {
		return true
	}
	if s.cfg.Max == 0 {
		return false // zero means zero, also for lone nodes
	}
	return s.used() < s.cfg.Max+extra
}

// add asks for a link on the user's wish.
func (s *State) add(now time.Time, in Add) {
	fail := func(why Reason) { s.emit(Added{Token: in.Token, Peer: in.Contact.ID, Reason: why}) }
	if in.Contact.ID == s.cfg.Self {
		fail(ReasonSelf)
		return
	}
	l := s.link(in.Contact.ID)
	switch {
	case l != nil && l.phase == up:
		fail(ReasonNone)
	case l != nil:
		l.tokens = append(l.tokens, in.Token)
	case !s.room(0):
		fail(ReasonFull)
	default:
		s.book.add(in.Contact)
		l = s.request(now, in.Contact, Request{Manual: true})
		l.tokens = append(l.tokens, in.Token)
	}
}

func (s *State) seedFound(now time.Time, seed Contact, merge bool) {
	if seed.ID == s.cfg.Self {
		return
	}
	k := s.book.add(seed)
	if s.link(seed.ID) != nil {
		return
	}
	if merge || s.room(0) {
		l := s.ask(now, k.Contact, merge)
		l.keep, l.beyond = true, merge
	}
}

// ask sends a request for a link.
func (s *State) ask(now time.Time, to Contact, urgent bool) *link {
	return s.request(now, to, Request{Urgent: urgent})
}

// request sends m with what every request has.
func (s *State) request(now time.Time, to Contact, m Request) *link {
	l := &link{Contact: to, phase: asking, since: now}
	s.links = append(s.links, l)
	m.Session, m.Network, m.Record, m.Degree = s.cfg.Session, s.cfg.Network, s.record, s.count(up)
	s.send(to, m)
	return l
}

// some returns up to n contacts that have a record, linked ones first, each kind
// in random order.
func (s *State) some(n int, not peer.ID) []Contact {
	var linked, others []Contact
	for _, l := range s.links {
		if l.phase != asking && l.ID != not && len(l.Record) > 0 {
			linked = append(linked, l.Contact)
		}
	}
	for _, k := range s.book.entries {
		if k.ID != not && len(k.Record) > 0 && k.fails == 0 && s.link(k.ID) == nil {
			others = append(others, k.Contact)
		}
	}
	for _, list := range [][]Contact{linked, others} {
		s.cfg.Rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	}
	list := append(linked, others...)
	return list[:min(n, len(list))]
}

func (s *State) contacts(list []Contact) {
	for _, c := range list {
		if c.ID != s.cfg.Self && c.ID != "" {
			s.book.add(c)
		}
	}
}

// jitter returns a random duration in [d, 2d).
func (s *State) jitter(d time.Duration) time.Duration {
	return d + time.Duration(s.cfg.Rand.Int64N(int64(d)))
}

// vary returns d ± 20 %.
func (s *State) vary(d time.Duration) time.Duration {
	return d*4/5 + time.Duration(s.cfg.Rand.Int64N(int64(d)*2/5))
}
