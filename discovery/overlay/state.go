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

// received handles a message of a peer.
func (s *State) received(now time.Time, from Contact, m Message) {
	if from.ID == s.cfg.Self {
		return
	}
	l := s.link(from.ID)
	if l != nil {
		l.heard = now
		if len(from.Addrs) > 0 {
			l.Addrs = from.Addrs
		}
	}
	switch m := m.(type) {
	case Request:
		from.Record = m.Record
		s.judge(now, from, l, m)
	case Accept:
		s.contacts(m.Contacts)
		if l == nil || l.phase != asking {
			if l == nil {
				s.send(from, Leave{Reason: ReasonTimeout})
			}
			return
		}
		l.Record, l.session, l.degree = m.Record, m.Session, m.Degree
		l.rtt = now.Sub(l.since)
		enough := s.used() > s.cfg.Min && !l.keep && len(l.tokens) == 0
		if !l.beyond && (enough || !s.room(0)) || !s.room(over) {
			s.forget(l)
			s.book.add(l.Contact)
			s.send(l.Contact, Leave{Reason: ReasonEnough})
			return
		}
		s.agree(now, l)
	case Reject:
		s.contacts(m.Contacts)
		if l != nil && l.phase == asking {
			s.refused(now, l, m.Reason, m.Network)
		}
	case Ready:
		if l == nil || l.phase == asking {
			s.send(from, Leave{Reason: ReasonUnknown})
			return
		}
		l.degree = m.Degree
		if l.ready == nil {
			l.ready = &m
			s.complete(now, l)
		}
	case Keepalive:
		switch {
		case l == nil:
			s.send(from, Leave{Reason: ReasonUnknown})
		case l.phase == up:
			l.degree, l.stamp, l.stampAt = m.Degree, m.Stamp, now
			if rtt := now.Sub(s.epoch) - m.Echo - m.Hold; m.Echo > 0 && rtt > 0 {
				l.rtt = rtt
			}
		}
	case Leave:
		s.contacts(m.Contacts)
		if l != nil {
			s.left(now, l, m.Reason)
		}
	case Walk:
		if l != nil && l.phase == up && l.allowWalk(now) {
			s.walk(now, l, m)
		}
	case Handover:
		if l != nil && l.phase == up {
			s.takeOver(now, l, m.To)
		}
	}
}

// judge answers the wish of a peer to be linked.
func (s *State) judge(now time.Time, from Contact, l *link, m Request) {
	if m.Network != s.cfg.Network {
		s.send(from, Reject{Reason: ReasonNetwork, Network: s.cfg.Network})
		return
	}
	if l != nil && l.phase != asking {
		if l.session == m.Session && l.phase == accepted {
			s.send(from, s.accept(from.ID)) // our first answer was lost, or requests crossed
			return
		}
		// It does not know our link any more: what we have is half of one.
		s.end(now, l, ReasonRestarted)
		l = nil
	}
	lone := m.Degree == 0 || m.Urgent
	switch k := s.book.get(from.ID); {
	case l != nil && s.room(over): // requests crossed: both want it
	case k != nil && now.Sub(k.apartAt) < apart && !lone && !m.Manual && s.used() > 0:
		s.send(from, Reject{Reason: ReasonRecent, Contacts: s.some(redirects, from.ID)})
		return
	case s.room(0):
	case lone && s.room(over):
	default:
		s.send(from, Reject{Reason: ReasonFull, Contacts: s.some(redirects, from.ID)})
		return
	}
	if l == nil {
		l = &link{Contact: from}
		s.links = append(s.links, l)
	} else {
		l.Record, l.Addrs = from.Record, from.Addrs
	}
	l.session, l.degree = m.Session, m.Degree
	s.agree(now, l)
	s.send(from, s.accept(from.ID))
}

func (s *State) accept(to peer.ID) Accept {
	return Accept{Session: s.cfg.Session, Record: s.record, Degree: s.count(up), Contacts: s.some(redirects, to)}
}

// agree moves a link on to where both let each other onto the topic.
func (s *State) agree(now time.Time, l *link) {
	l.phase, l.since, l.heard = accepted, now, now
	l.probeAt = now.Add(probeInterval)
	s.book.add(l.Contact).fails = 0
	s.emit(Pending{Peer: l.ID})
}

func (s *State) onTopic(now time.Time, id peer.ID, present bool) {
	l := s.link(id)
	if l == nil || l.phase == asking || l.onTopic == present {
		return
	}
	l.onTopic = present
	switch {
	case !present && l.phase == up:
		l.deafSince = now
	case present:
		l.deafSince = time.Time{}
		if !l.readySent {
			l.readySent = true
			s.send(l.Contact, Ready{Degree: s.count(up)})
		}
		s.complete(now, l)
	}
}

// complete makes the link stand once both sides said that they are ready.
func (s *State) complete(now time.Time, l *link) {
	if l.phase != accepted || !l.readySent || l.ready == nil || !l.onTopic {
		return
	}
	l.phase, l.since, l.heard = up, now, now
	// The first keepalive follows soon, as it measures the round trip; the others
	// are spread over the interval.
	l.keepAt = now.Add(s.jitter(keepaliveInterval / 4))
	s.walkVain = 0
	s.seedTry, s.seedsAt = 0, time.Time{}
	s.emit(Linked{Peer: l.ID, Greeting: l.ready.Greeting})
	for _, token := range l.tokens {
		s.emit(Added{Token: token, Peer: l.ID})
	}
	l.tokens = nil
	s.degreeChanged(now)
	if old := s.link(l.instead); old != nil && old.phase == up {
		s.leave(now, old, ReasonMoved)
	}
	l.instead = ""
}

// forget takes the link out of the list.
func (s *State) forget(l *link) {
	s.links = slices.DeleteFunc(s.links, func(x *link) bool { return x == l })
}

// end drops a link because of a fault: it may be set up again at once.
func (s *State) end(now time.Time, l *link, why Reason) {
	s.forget(l)
	for _, token := range l.tokens {
		s.emit(Added{Token: token, Peer: l.ID, Reason: why})
	}
	if l.phase == asking {
		return
	}
	k := s.book.add(l.Contact)
	if k.retryAt.Before(now) {
		k.retryAt = now.Add(s.jitter(firstRetry))
	}
	s.emit(Unlinked{Peer: l.ID, Reason: why, Was: l.phase == up})
	for _, x := range slices.Clone(s.links) {
		if x.instead == l.ID { // what x was to take the place of is gone already
			x.instead, x.beyond = "", false
			if x.phase == accepted && !s.room(1) {
				s.leave(now, x, ReasonEnough)
			}
		}
	}
	if l.phase == up {
		s.degreeChanged(now)
		if s.Degree() == 0 {
			s.alone(now)
		}
	}
}

// leave ends a link on purpose and tells the peer.
func (s *State) leave(now time.Time, l *link, why Reason) {
	m := Leave{Reason: why}
	if why == ReasonMoved || why == ReasonFull {
		m.Contacts = s.some(redirects, l.ID)
	}
	s.send(l.Contact, m)
	if l.phase == up && !why.fault() {
		s.book.add(l.Contact).apartAt = now
	}
	s.end(now, l, why)
}

// left handles the peer's wish to end the link.
func (s *State) left(now time.Time, l *link, why Reason) {
	if l.phase == asking {
		s.refused(now, l, why, "")
		return
	}
	k := s.book.add(l.Contact)
	switch {
	case why == ReasonClosed:
		k.retryAt = now.Add(lastRetry / 4) // it may be restarted
	case l.phase == up && !why.fault():
		k.apartAt = now
	}
	s.end(now, l, why)
}

// fault tells whether a link that ended so may be set up again at once.
func (r Reason) fault() bool {
	return r != ReasonMoved && r != ReasonFull && r != ReasonEnough && r != ReasonDropped && r != ReasonClosed
}

// refused ends a request of ours that was answered with no.
func (s *State) refused(now time.Time, l *link, why Reason, network string) {
	s.forget(l)
	if why == ReasonNetwork || why == ReasonSelf || why == ReasonProtocol {
		s.book.remove(l.ID)
	} else if k := s.book.get(l.ID); k != nil {
		pause := 4 * firstRetry
		if why == ReasonRecent {
			pause = apart / 3
		}
		k.retryAt = now.Add(s.jitter(pause))
	}
	s.emit(Refused{Peer: l.ID, Reason: why, Network: network})
	for _, token := range l.tokens {
		s.emit(Added{Token: token, Peer: l.ID, Reason: why, Network: network})
	}
}

func (s *State) unreachable(now time.Time, id peer.ID, why Reason) {
	l := s.link(id)
	s.book.failed(id, now)
	switch {
	case l == nil:
	case l.phase == asking:
		s.forget(l)
		if why == ReasonProtocol {
			s.book.remove(id)
		}
		s.emit(Refused{Peer: id, Reason: why})
		for _, token := range l.tokens {
			s.emit(Added{Token: token, Peer: id, Reason: why})
		}
	default:
		s.end(now, l, why)
	}
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
