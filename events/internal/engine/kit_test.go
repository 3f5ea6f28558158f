package engine

import (
	"cmp"
	"container/heap"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/events/internal/order"
	"github.com/go-smokesignal/smokesignal/events/internal/repair"
	"github.com/go-smokesignal/smokesignal/events/internal/store"
)

// A sim is a network of engines in virtual time: pubsub that floods over links and
// drops, streams that tell marks and answer questions, links that come and go,
// nodes that freeze, die and return. Each node drives its engine as the room
// events does.
type sim struct {
	t     testing.TB
	rnd   *rand.Rand
	opts  scenario
	start time.Time
	now   time.Time
	queue queue
	seq   int
	nodes []*node
	edges []*edge
	lives uint64 // sessions begun
	sent  map[session]*sent
	count struct{ asks, marks, drops, full, outputs, busiest int }
}

// A scenario is what happens in a sim.
type scenario struct {
	name       string
	nodes      int
	graph      string // line, ring, regular
	publishers int    // nodes that publish, from the first on
	batches    int    // of each
	every      time.Duration
	size       int     // of most batches, in bytes
	drop       float64 // the part of pubsub's messages that is lost
	failTell   float64 // the part of the marks that are not told, or not known to be
	failAsk    float64 // the part of the questions that fail in between
	answer     int     // bytes of an answer
	detect     time.Duration
	faults     func(s *sim)
	lossless   bool // nothing may be reported as lost
	complete   bool // whoever is there has everything from the first event on
	liar       func(s *sim, marks []Mark) []Mark
}

// session names one life of a sender.
type session struct {
	sender peer.ID
	order.SessionKey
}

// sent is what a session has published.
type sent struct {
	end     uint64
	batches []*msg
}

type msg struct {
	session
	first, end uint64
	size       int
}

// Pubsub's queue of messages to one neighbor.
const queueLen = 32

// A node is a place in the network.
type node struct {
	i      int
	life   *life // the running program; nil: none
	frozen time.Time
	lies   bool
}

// A life is one start of a node's program.
type life struct {
	s       *sim
	n       *node
	id      peer.ID
	session order.SessionKey
	e       *Engine[*msg]
	dead    bool
	seen    map[*msg]bool
	out     map[peer.ID]*pipe   // pubsub's streams
	links   map[peer.ID]*teller // neighbors
	pending int                 // batches to be published
	flying  bool                // one is not yet through pubsub's event loop
	tracks  map[session]*track
	first   map[session]uint64 // where a session began by the first mark that was told
	latest  map[peer.ID]order.SessionKey
	due     time.Time
	fired   map[int64]int // outputs in each second
}

// track is what became of a session at one receiver.
type track struct {
	begin, next     uint64
	last            uint64 // the number after the last that was delivered
	delivered, lost uint64
	got             map[uint64]bool // only where a neighbor lies
}

// pipe is a stream of pubsub.
type pipe struct {
	from, to *life
	link     *link
	queue    []*msg
	busy     bool
}

// A link joins two lives.
type link struct {
	up       bool
	ends     [2]*life
	ready    [2]bool
	greeting [2][]Mark // that the end has got
	greeted  [2]bool
	gone     [2]bool // the end has noticed that the link is down
}

func (l *link) side(x *life) int {
	if l.ends[0] == x {
		return 0
	}
	return 1
}

func (l *link) other(x *life) *life { return l.ends[1-l.side(x)] }

// An edge is where there is to be a link.
type edge struct {
	a, b   *node
	link   *link
	forbid bool
}

// A teller is the goroutine that tells a neighbor marks.
type teller struct {
	p          *life
	link       *link
	busy, wake bool
	pause      time.Duration
}

type event struct {
	at  time.Time
	seq int
	f   func()
}

type queue []event

func (q queue) Len() int { return len(q) }
func (q queue) Less(i, j int) bool {
	return cmp.Or(q[i].at.Compare(q[j].at), cmp.Compare(q[i].seq, q[j].seq)) < 0
}
func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)   { *q = append(*q, x.(event)) }
func (q *queue) Pop() any {
	old := *q
	e := old[len(old)-1]
	*q = old[:len(old)-1]
	return e
}

func newSim(t testing.TB, seed uint64, o scenario) *sim {
	s := &sim{t: t, rnd: rand.New(rand.NewPCG(seed, 1)), opts: o, start: time.Unix(1_000_000, 0), sent: make(map[session]*sent)}
	s.now = s.start
	for i := range o.nodes {
		n := &node{i: i}
		s.nodes = append(s.nodes, n)
		s.begin(n, fmt.Sprintf("node %02d", i))
	}
	if o.liar != nil {
		s.nodes[o.nodes-1].lies = true
	}
	have := make(map[[2]int]bool)
	join := func(i, j int) {
		if i != j && !have[[2]int{min(i, j), max(i, j)}] {
			have[[2]int{min(i, j), max(i, j)}] = true
			e := &edge{a: s.nodes[i], b: s.nodes[j]}
			s.edges = append(s.edges, e)
			s.connect(e)
		}
	}
	for i := 1; i < o.nodes; i++ {
		join(i-1, i)
	}
	if o.graph != "line" && o.nodes > 2 {
		join(o.nodes-1, 0)
	}
	if o.graph == "regular" {
		// A second ring, in random order, gives each four neighbors.
		order := s.rnd.Perm(o.nodes)
		for i := range order {
			join(order[i], order[(i+1)%len(order)])
		}
	}
	return s
}

// after calls f later.
func (s *sim) after(d time.Duration, f func()) {
	s.seq++
	heap.Push(&s.queue, event{s.now.Add(d), s.seq, f})
}

// on calls f in the program p, if it still runs, when it is not frozen.
func (s *sim) on(p *life, d time.Duration, f func()) {
	s.after(d, func() {
		switch {
		case p.dead:
		case p.n.frozen.After(s.now):
			s.on(p, p.n.frozen.Sub(s.now), f)
		default:
			f()
		}
	})
}

// run lets time pass.
func (s *sim) run(d time.Duration) {
	end := s.now.Add(d)
	for len(s.queue) > 0 && !s.queue[0].at.After(end) && !s.t.Failed() {
		e := heap.Pop(&s.queue).(event)
		s.now = e.at
		e.f()
	}
	s.now = end
}

// between returns a random duration.
func (s *sim) between(a, b time.Duration) time.Duration {
	return a + time.Duration(s.rnd.Int64N(int64(b-a)+1))
}

func (s *sim) chance(p float64) bool { return p > 0 && s.rnd.Float64() < p }

// begin starts the program of a node.
func (s *sim) begin(n *node, id string) {
	s.lives++
	p := &life{
		s: s, n: n, id: peer.ID(id), session: order.SessionKey{ID: [8]byte{byte(s.rnd.Uint32())}, Start: s.lives},
		seen: make(map[*msg]bool), out: make(map[peer.ID]*pipe), links: make(map[peer.ID]*teller),
		tracks: make(map[session]*track), first: make(map[session]uint64), latest: make(map[peer.ID]order.SessionKey),
		fired: make(map[int64]int),
	}
	// As the room events configures it.
	p.e = New[*msg](p.id, p.session, Config{
		Order: order.Config{GapTimeout: 70 * time.Second, SettleTimeout: 5 * time.Second, MaxHeldPerSender: 8 << 20, MaxHeld: 16 << 20},
	})
	n.life = p
	s.sent[session{p.id, p.session}] = &sent{end: 1}
}

// kill ends the program of a node without a word.
func (s *sim) kill(n *node) {
	p := n.life
	p.dead = true
	n.life = nil
	for _, e := range s.edges {
		if e.link != nil && (e.link.ends[0] == p || e.link.ends[1] == p) {
			s.cut(e)
		}
	}
}

// restart starts it again soon, as the same peer or another.
func (s *sim) restart(n *node, same bool) {
	id := string(n.life.id)
	if !same {
		id = fmt.Sprintf("node %02d after %d", n.i, s.lives)
	}
	s.kill(n)
	s.after(s.between(50*time.Millisecond, 2*time.Second), func() { s.begin(n, id) })
}

func (s *sim) freeze(n *node, d time.Duration) { n.frozen = s.now.Add(d) }

// connect makes the link of an edge: each end sees the other on the topic, says so
// with its marks, and has a neighbor when it has heard the same.
func (s *sim) connect(e *edge) {
	if e.a.life == nil || e.b.life == nil || e.forbid {
		s.after(200*time.Millisecond, func() { s.connect(e) })
		return
	}
	l := &link{up: true, ends: [2]*life{e.a.life, e.b.life}}
	e.link = l
	for i, x := range l.ends {
		y := l.ends[1-i]
		s.on(x, s.between(1, 50*time.Millisecond), func() {
			if !l.up {
				return
			}
			x.out[y.id] = &pipe{from: x, to: y, link: l}
			marks := x.lie(x.e.Greeting(1024))
			l.ready[i] = true
			s.on(y, s.between(1, 50*time.Millisecond), func() {
				l.greeting[1-i], l.greeted[1-i] = marks, true
				y.meet(l)
			})
			x.meet(l)
		})
	}
}

// meet makes a neighbor of the other end when both are ready.
func (p *life) meet(l *link) {
	i := l.side(p)
	q := l.other(p)
	if !l.up || !l.ready[i] || !l.greeted[i] || p.links[q.id] != nil {
		return
	}
	p.links[q.id] = &teller{p: p, link: l}
	p.e.AddNeighbor(q.id)
	p.heard(l.greeting[i], true)
	p.e.ReceiveGreeting(p.s.now, q.id, l.greeting[i])
	p.perform()
}

// cut ends a link: what is on its way is lost, and the ends notice some time later.
func (s *sim) cut(e *edge) {
	l := e.link
	if l == nil || !l.up {
		return
	}
	l.up = false
	for i, x := range l.ends {
		q := l.ends[1-i]
		if p := x.out[q.id]; p != nil && p.link == l {
			delete(x.out, q.id)
		}
		if x.dead {
			l.gone[i] = true
			continue
		}
		s.on(x, s.between(1, max(1, s.opts.detect)), func() {
			l.gone[i] = true
			if t := x.links[q.id]; t != nil && t.link == l {
				delete(x.links, q.id)
				x.e.RemoveNeighbor(s.now, q.id)
				x.perform()
			}
		})
	}
	s.again(e, l)
}

// again links the ends of an edge anew when both have noticed that the link is down.
func (s *sim) again(e *edge, l *link) {
	s.after(s.between(100*time.Millisecond, time.Second), func() {
		for i := range l.ends {
			if !l.gone[i] && !l.ends[i].dead {
				s.again(e, l)
				return
			}
		}
		s.connect(e)
	})
}

func (p *life) String() string { return fmt.Sprintf("%s (%d)", string(p.id), p.session.Start) }

func (k session) String() string { return fmt.Sprintf("%s (%d)", string(k.sender), k.Start) }

func (t *track) String() string {
	if t == nil {
		return "nothing"
	}
	return fmt.Sprintf("%d from %d to %d, of which %d lost", t.delivered+t.lost, t.begin, t.next, t.lost)
}

func (p *life) key() session { return session{p.id, p.session} }

// publish says that n more batches are to be published, as soon as there is room.
func (p *life) publish(n int) {
	p.pending += n
	p.perform()
}

func (p *life) publishOne() {
	p.pending--
	p.flying = true
	p.s.on(p, p.s.between(100*time.Microsecond, time.Millisecond), func() {
		p.flying = false
		p.perform()
	})
	sent := p.s.sent[p.key()]
	size := p.s.opts.size
	m := &msg{session: p.key(), first: sent.end, end: sent.end + 1 + p.s.rnd.Uint64N(5), size: size/2 + p.s.rnd.IntN(size+1)}
	sent.end = m.end
	sent.batches = append(sent.batches, m)
	p.seen[m] = true
	p.e.AddOwn(p.s.now, m.batch())
	p.forward(m, "")
}

func (m *msg) batch() Batch[*msg] {
	return Batch[*msg]{Session: m.SessionKey, First: m.first, Count: int(m.end - m.first), Size: m.size, Value: m}
}

// forward floods a message.
func (p *life) forward(m *msg, from peer.ID) {
	for _, id := range slices.Sorted(maps.Keys(p.out)) {
		if id != from && id != m.sender {
			p.out[id].push(m)
		}
	}
}

func (x *pipe) push(m *msg) {
	s := x.from.s
	switch {
	case s.chance(s.opts.drop):
		s.count.drops++
	case len(x.queue) >= queueLen:
		s.count.full++
	default:
		x.queue = append(x.queue, m)
		if !x.busy {
			x.busy = true
			x.serve()
		}
	}
}

// serve brings the first message of the queue to the other end.
func (x *pipe) serve() {
	s := x.from.s
	s.on(x.to, s.between(time.Millisecond, 10*time.Millisecond), func() {
		if !x.link.up {
			return
		}
		m := x.queue[0]
		x.queue = x.queue[1:]
		if x.busy = len(x.queue) > 0; x.busy {
			x.serve()
		}
		x.to.take(m, x.from.id)
	})
}

// take is what pubsub does with a message that arrives.
func (p *life) take(m *msg, from peer.ID) {
	if p.seen[m] || m.sender == p.id {
		return
	}
	p.seen[m] = true
	p.e.Receive(p.s.now, m.sender, m.batch(), from)
	p.perform()
	p.forward(m, from)
}

// perform carries out what the engine decided, and sets the timer.
func (p *life) perform() {
	s := p.s
	for range 20 {
		out := p.e.Advance(s.now)
		s.count.outputs++
		second := s.now.Unix()
		p.fired[second]++
		s.count.busiest = max(s.count.busiest, p.fired[second])
		for _, st := range out.Steps {
			p.step(st)
		}
		slices.SortFunc(out.Asks, func(a, b repair.Ask) int {
			return cmp.Or(cmp.Compare(a.Sender, b.Sender), a.Session.Compare(b.Session), cmp.Compare(a.Peer, b.Peer))
		})
		for _, a := range out.Asks {
			p.ask(a)
		}
		slices.Sort(out.MarksDue)
		for _, id := range out.MarksDue {
			if t := p.links[id]; t != nil {
				t.signal()
			}
		}
		if p.pending > 0 && !p.flying && p.e.CanPublish() {
			p.publishOne()
			continue
		}
		if next := p.e.Next(); next.IsZero() || next.After(s.now) {
			p.wait(next)
			return
		}
	}
	s.t.Fatalf("at %v %s has always something more to do: next is %v", s.now.Sub(s.start), p, p.e.Next().Sub(s.start))
}

// wait sets the timer.
func (p *life) wait(next time.Time) {
	if next.Equal(p.due) {
		return
	}
	p.due = next
	if next.IsZero() {
		return
	}
	p.s.on(p, next.Sub(p.s.now), func() {
		if p.due.Equal(next) {
			p.due = time.Time{}
			p.perform()
		}
	})
}

// step takes a step and handles its events at once.
func (p *life) step(st order.Step) {
	s := p.s
	key := session{st.Sender, st.Session}
	t := p.tracks[key]
	if t == nil {
		t = &track{begin: st.From, next: st.From, got: make(map[uint64]bool)}
		p.tracks[key] = t
	}
	if st.To <= st.From || st.From != t.next && s.opts.liar == nil {
		s.t.Fatalf("at %v %s got %+v, which does not join: session is at %d", s.now.Sub(s.start), p, st, t.next)
	}
	if old, ok := p.latest[st.Sender]; ok && st.Session.Compare(old) < 0 {
		s.t.Fatalf("%s got %+v after a later session", p, st)
	}
	if !st.Lost || s.opts.liar == nil {
		p.latest[st.Sender] = st.Session
	}
	t.next = st.To
	if st.Lost {
		t.lost += st.To - st.From
		if s.opts.lossless {
			s.t.Fatalf("at %v %s lost %d to %d of %v", s.now.Sub(s.start), p, st.From, st.To, key)
		}
		return
	}
	t.delivered += st.To - st.From
	t.last = st.To
	for n := st.From; n < st.To; {
		b, ok := p.e.NextEntry(st.Sender, st.Session, n, st.To)
		if !ok || b.First > n || b.End <= n {
			s.t.Fatalf("at %v %s cannot read %d of %+v", s.now.Sub(s.start), p, n, st)
		}
		if m := b.Value; m.session != key || m.first != b.First || m.end != b.End {
			s.t.Fatalf("%s reads %+v for %+v", p, m, st)
		}
		for ; n < min(b.End, st.To); n++ {
			if s.opts.liar != nil && t.got[n] {
				s.t.Fatalf("%s got %d of %v twice", p, n, key)
			}
			t.got[n] = true
		}
		p.e.MarkHandled(st.Sender, st.Session, n)
	}
}

// heard notes where sessions begin by the first mark of them.
func (p *life) heard(marks []Mark, greeting bool) {
	for _, m := range marks {
		key := session{m.Sender, m.Session}
		if _, ok := p.first[key]; !ok {
			p.first[key] = m.Begin
			if greeting {
				p.first[key] = max(m.Above, m.Next)
			}
		}
	}
}

func (p *life) lie(marks []Mark) []Mark {
	if p.n.lies {
		return p.s.opts.liar(p.s, slices.Clone(marks))
	}
	return marks
}

func (t *teller) signal() {
	t.wake = true
	if !t.busy {
		t.tell()
	}
}

// tell tells marks until there are none.
func (t *teller) tell() {
	s, p, q := t.p.s, t.p, t.link.other(t.p)
	t.busy, t.wake = true, false
	done := func() {
		t.busy = false
		if t.wake {
			t.tell()
		}
	}
	marks := p.e.CollectMarks(s.now, q.id, 400)
	p.perform()
	if len(marks) == 0 {
		done()
		return
	}
	s.count.marks++
	s.on(p, s.between(time.Millisecond, 20*time.Millisecond), func() {
		if p.links[q.id] != t {
			return
		}
		fails := !t.link.up || s.chance(s.opts.failTell)
		if !fails || t.link.up && s.rnd.IntN(2) == 0 {
			q.told(p, t.link, p.lie(marks), 50)
		}
		if !fails {
			t.pause = 0
			done()
			return
		}
		t.pause = min(max(50*time.Millisecond, 2*t.pause), 5*time.Second)
		s.on(p, t.pause, func() {
			if p.links[q.id] == t {
				p.e.RequeueMarks(s.now, q.id, marks)
				p.perform()
				done()
			}
		})
	})
}

// told takes marks that arrive, after waiting for the link if need be.
func (p *life) told(from *life, l *link, marks []Mark, tries int) {
	s := p.s
	s.on(p, 0, func() {
		switch t := p.links[from.id]; {
		case t != nil && t.link == l:
			p.heard(marks, false)
			p.e.ReceiveMarks(s.now, from.id, marks)
			p.perform()
		case l.up && tries > 0:
			s.after(100*time.Millisecond, func() { p.told(from, l, marks, tries-1) })
		}
	})
}

// ask carries out a question of the engine.
func (p *life) ask(a repair.Ask) {
	p.fetch(a, !a.Backfill, func(got uint64, ok bool) {
		answer := repair.Found
		switch {
		case !ok:
			answer = repair.Failed
		case got == 0:
			answer = repair.NotFound
		}
		p.e.FinishAsk(p.s.now, a, got, answer)
		p.perform()
	})
}

// fetch asks a neighbor and takes what it gives.
func (p *life) fetch(a repair.Ask, passOn bool, done func(got uint64, ok bool)) {
	s := p.s
	var got uint64
	over := false
	end := func(ok bool) {
		if !over {
			over = true
			done(got, ok)
		}
	}
	t := p.links[a.Peer]
	if t == nil || !t.link.up || s.chance(s.opts.failAsk/2) {
		s.on(p, s.between(time.Millisecond, 5*time.Second), func() { end(false) })
		return
	}
	s.on(p, 5*time.Second, func() { end(false) })
	l, q := t.link, t.link.other(p)
	if !q.n.lies {
		s.count.asks++
	}
	s.on(q, s.between(time.Millisecond, 20*time.Millisecond), func() {
		q.answer(p.id, a, passOn, func(list []store.Entry[*msg], marks []Mark) {
			s.on(p, s.between(time.Millisecond, 20*time.Millisecond), func() {
				for _, b := range list {
					if over || !l.up || s.chance(s.opts.failAsk/2) {
						end(false)
						return
					}
					m := b.Value
					if m.SessionKey != a.Session || m.end <= a.From || m.first >= a.To {
						s.t.Fatalf("%s was given %+v for %+v", p, m, a)
					}
					got = max(got, m.end)
					p.e.ReceiveRepair(s.now, a, m.batch())
					p.perform()
				}
				if x := p.links[q.id]; !over && x != nil && x.link == l {
					p.heard(marks, false)
					p.e.ReceiveMarks(s.now, q.id, marks)
					p.perform()
				}
				end(true)
			})
		})
	})
}

// answer answers a neighbor, which may mean to ask others first.
func (p *life) answer(from peer.ID, a repair.Ask, passOn bool, reply func([]store.Entry[*msg], []Mark)) {
	if p.n.lies {
		reply(nil, p.lie(nil))
		return
	}
	stored := func() []store.Entry[*msg] {
		return p.e.StoredEntries(a.Sender, a.Session, a.From, a.To, p.s.opts.answer)
	}
	has := func() bool { list := stored(); return len(list) > 0 && list[0].First <= a.From }
	finish := func() {
		var marks []Mark
		if m, ok := p.e.Mark(a.Sender); ok {
			marks = append(marks, m)
		}
		reply(stored(), marks)
	}
	others := p.e.OtherNeighbors(from)
	slices.Sort(others)
	until := p.s.now.Add(2 * time.Second)
	var next func(i int)
	next = func(i int) {
		if !passOn || has() || i >= len(others) || p.s.now.After(until) {
			finish()
			return
		}
		p.fetch(repair.Ask{Peer: others[i], Subject: a.Subject, From: a.From, To: a.To}, false, func(uint64, bool) { next(i + 1) })
	}
	next(0)
}
