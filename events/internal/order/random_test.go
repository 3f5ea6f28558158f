package order

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

var seed = flag.Uint64("seed", 0, "run only this seed of the random tests")

// seeds runs f with n seeds, or with the one of -seed.
func seeds(t *testing.T, n uint64, f func(t *testing.T, rnd *rand.Rand)) {
	first := uint64(1)
	if *seed != 0 {
		first, n = *seed, 1
	}
	for s := first; s < first+n && !t.Failed(); s++ {
		f(t, rand.New(rand.NewPCG(s, 0)))
		if t.Failed() {
			t.Logf("repeat with -seed %d", s)
		}
	}
}

// twin does what Core does in the most obvious way: number by number, looking
// at everything again after each input. It has no bounds.
type twin struct {
	timeout time.Duration
	senders map[peer.ID]*twinSender
	hints   map[peer.ID]Progress
}

type twinSender struct {
	sessions []*twinSession
	log      []Step
}

type twinSession struct {
	SessionKey
	next  uint64
	got   map[uint64]time.Time // first arrival
	told  map[uint64]time.Time // when the sender first said that it sent this
	born  time.Time
	moved time.Time // when a batch arrived in its turn
}

func (tw *twin) sender(id peer.ID) *twinSender {
	if tw.senders[id] == nil {
		tw.senders[id] = new(twinSender)
	}
	return tw.senders[id]
}

func (s *twinSender) find(id SessionKey) *twinSession {
	for _, ses := range s.sessions {
		if ses.SessionKey == id {
			return ses
		}
	}
	return nil
}

func (s *twinSender) open(id SessionKey, next uint64, now time.Time) *twinSession {
	ses := &twinSession{SessionKey: id, next: next, got: make(map[uint64]time.Time), told: make(map[uint64]time.Time), born: now}
	s.sessions = append(s.sessions, ses)
	slices.SortFunc(s.sessions, func(a, b *twinSession) int { return a.Compare(b.SessionKey) })
	return ses
}

func (tw *twin) receive(now time.Time, id peer.ID, session SessionKey, first uint64, count int) {
	s := tw.sender(id)
	ses := s.find(session)
	if ses == nil {
		next := first
		known := len(s.sessions) > 0
		if known && session.Compare(s.sessions[0].SessionKey) < 0 {
			return
		}
		if h, ok := tw.hints[id]; ok && h.Session == session {
			next = min(next, h.Next)
		} else if known {
			next = 1
		}
		delete(tw.hints, id)
		ses = s.open(session, next, now)
	}
	if ses == s.sessions[0] && first <= ses.next && first+uint64(count) > ses.next {
		ses.moved = now
	}
	for n := first; n < first+uint64(count); n++ {
		if _, ok := ses.got[n]; !ok && n >= ses.next {
			ses.got[n] = now
		}
	}
	tw.settle(s)
}

func (tw *twin) learn(now time.Time, m Progress, own bool) {
	s := tw.sender(m.Sender)
	if ses := s.find(m.Session); ses != nil {
		if own {
			ses.tell(m.Next, now)
		}
		return
	}
	if len(s.sessions) > 0 && m.Session.Compare(s.sessions[0].SessionKey) < 0 {
		return
	}
	h, hinted := tw.hints[m.Sender]
	if !own {
		if c := m.Session.Compare(h.Session); !hinted || c > 0 || c == 0 && m.Next < h.Next {
			tw.hints[m.Sender] = m
		}
		return
	}
	next := m.Next
	if hinted && h.Session == m.Session {
		next = min(next, h.Next)
	}
	delete(tw.hints, m.Sender)
	s.open(m.Session, next, now).tell(m.Next, now)
	tw.settle(s)
}

func (ses *twinSession) tell(to uint64, now time.Time) {
	for n := ses.next; n < to; n++ {
		if _, ok := ses.told[n]; !ok {
			ses.told[n] = now
		}
	}
}

// since returns when the next number was noticed to be missing.
func (ses *twinSession) since() (since time.Time, missing bool) {
	for _, times := range []map[uint64]time.Time{ses.got, ses.told} {
		for n, at := range times {
			if n >= ses.next && (!missing || at.Before(since)) {
				since, missing = at, true
			}
		}
	}
	return since, missing
}

// settle delivers what is next and ends sessions that have nothing missing.
func (tw *twin) settle(s *twinSender) {
	for {
		head := s.sessions[0]
		if _, ok := head.got[head.next]; ok {
			s.log = append(s.log, Step{Session: head.SessionKey, From: head.next, To: head.next + 1})
			delete(head.got, head.next)
			head.next++
			continue
		}
		_, missing := head.since()
		if !missing && len(s.sessions) > 1 {
			s.sessions = s.sessions[1:]
			continue
		}
		if len(s.sessions) > maxSessions {
			tw.lose(s)
			continue
		}
		return
	}
}

// lose gives up one number.
func (tw *twin) lose(s *twinSender) {
	head := s.sessions[0]
	s.log = append(s.log, Step{Session: head.SessionKey, From: head.next, To: head.next + 1, Lost: true})
	head.next++
}

func (tw *twin) advance(now time.Time) {
	for _, s := range tw.senders {
		for len(s.sessions) > 0 {
			since, missing := s.sessions[0].since()
			if !missing {
				break
			}
			if since.Before(s.sessions[0].moved) {
				since = s.sessions[0].moved
			}
			if len(s.sessions) > 1 && s.sessions[1].born.Before(since) {
				since = s.sessions[1].born
			}
			if since.Add(tw.timeout).After(now) {
				break
			}
			tw.lose(s)
			tw.settle(s)
		}
	}
}

// The fast core and the slow twin deliver and lose the same numbers at the same
// moments, whatever comes.
func TestSlowTwin(t *testing.T) {
	seeds(t, 500, func(t *testing.T, rnd *rand.Rand) {
		core := New(Config{})
		tw := &twin{timeout: 2 * time.Second, senders: map[peer.ID]*twinSender{}, hints: map[peer.ID]Progress{}}
		now := time.Unix(0, 0)
		got := make(map[peer.ID][]Step)
		for op := range 120 {
			now = now.Add(time.Duration(rnd.IntN(4)) * 250 * time.Millisecond)
			id := peer.ID("ab"[rnd.IntN(2):][:1])
			session := life(1 + min(rnd.IntN(3)+op/40, 6))
			number := 1 + rnd.Uint64N(25)
			steps := core.Advance(now, nil)
			tw.advance(now)
			switch rnd.IntN(10) {
			case 0:
				m := Progress{Sender: id, Session: session, Next: number}
				own := rnd.IntN(2) == 0
				if own {
					steps = core.ReceiveOwnMark(now, m, Firm, steps)
				} else {
					core.AddHint(m, Firm)
				}
				tw.learn(now, m, own)
			default:
				count := 1 + rnd.IntN(4)
				_, steps = core.Receive(now, id, Arrival{Session: session, First: number, Count: count, Size: 1}, steps)
				tw.receive(now, id, session, number, count)
			}
			for _, st := range steps {
				id := st.Sender
				st.Sender = ""
				got[id] = append(got[id], st)
			}
			for id, s := range tw.senders {
				if g, w := render(got[id]), render(s.log); g != w {
					t.Fatalf("op %d, sender %s:\n got %s\nwant %s", op, id, g, w)
				}
			}
		}
		if core.Next().IsZero() != (core.HeldBytes() == 0 && len(core.byDeadline) == 0) {
			t.Fatalf("next %v with %d held", core.Next(), core.HeldBytes())
		}
	})
}

// Over a network that loses, doubles and delays, what is delivered and what is
// lost add up to what was sent, in order, and nothing waits for long.
func TestDeliveredAndLostAddUp(t *testing.T) {
	seeds(t, 300, func(t *testing.T, rnd *rand.Rand) {
		const events = 400
		core := New(Config{MaxHeldPerSender: 2000 + rnd.IntN(100_000)})
		type arrival struct {
			at    time.Time
			batch Arrival
		}
		var arrivals []arrival
		now := time.Unix(0, 0)
		for first := uint64(1); first <= events; {
			count := 1 + rnd.IntN(5)
			b := Arrival{Session: life(1), First: first, Count: count, Size: 100 * count}
			first += uint64(count)
			now = now.Add(time.Duration(rnd.IntN(50)) * time.Millisecond)
			for range []int{0, 1, 1, 1, 1, 2}[rnd.IntN(6)] {
				late := time.Duration(rnd.IntN(100)) * time.Millisecond
				if rnd.IntN(20) == 0 {
					late *= 40
				}
				arrivals = append(arrivals, arrival{now.Add(late), b})
			}
		}
		slices.SortStableFunc(arrivals, func(a, b arrival) int { return a.at.Compare(b.at) })
		arrived := make(map[uint64]bool)
		next := arrivals[0].batch.First
		check := func(steps []Step, now time.Time) {
			for _, st := range steps {
				if st.From != next || st.To <= st.From {
					t.Fatalf("step %+v after %d", st, next)
				}
				for n := st.From; !st.Lost && n < st.To; n++ {
					if !arrived[n] {
						t.Fatalf("%d was delivered and never came", n)
					}
				}
				next = st.To
			}
		}
		for _, a := range arrivals {
			for at := core.Next(); !at.IsZero() && !at.After(a.at); at = core.Next() {
				check(core.Advance(at, nil), at)
			}
			for n := a.batch.First; n < a.batch.limit(); n++ {
				arrived[n] = true
			}
			_, steps := core.Receive(a.at, "s", a.batch, nil)
			check(steps, a.at)
		}
		end := arrivals[len(arrivals)-1].at
		check(core.Advance(end.Add(2*time.Second), nil), end)
		if core.HeldBytes() != 0 || !core.Next().IsZero() {
			t.Fatalf("%d bytes still held after the timeout", core.HeldBytes())
		}
		var last uint64
		for n := range arrived {
			last = max(last, n)
		}
		if next != last+1 {
			t.Fatalf("ended at %d, want %d", next, last+1)
		}
	})
}

// Whatever strangers send: no panic, all bounds kept, steps that join.
func FuzzCore(f *testing.F) {
	f.Add([]byte("\x00\x01\x01\x00\x03\x01\x05\x00\x00"))
	f.Add([]byte{0, 1, 1, 0, 3, 1, 0, 5, 1, 3, 20, 0, 0, 2, 1})
	f.Add([]byte{8, 200, 9, 0, 1, 1, 16, 4, 4, 1, 200, 0, 2, 9, 0, 3, 255, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		cfg := Config{MaxSenders: 3, MaxHints: 2, MaxHeldPerSender: 600, MaxHeld: 1000}
		core := New(cfg)
		now := time.Unix(0, 0)
		for ; len(in) >= 3; in = in[3:] {
			op, a, b := in[0], in[1], in[2]
			id := peer.ID(fmt.Sprint(op >> 3 & 7))
			session := life(int(op >> 6))
			number := uint64(a)
			if b == 255 {
				number <<= 55
			}
			var steps []Step
			switch op & 7 {
			case 0, 1, 2, 3:
				count := int(b & 15)
				_, steps = core.Receive(now, id, Arrival{Session: session, First: number, Count: count, Size: 20 * count}, nil)
			case 4:
				steps = core.ReceiveOwnMark(now, Progress{Sender: id, Session: session, Next: number, Above: number + uint64(b)}, Firm, nil)
			case 5:
				core.AddHint(Progress{Sender: id, Session: session, Next: number}, Firm)
			default:
				now = now.Add(time.Duration(a) * 20 * time.Millisecond)
				steps = core.Advance(now, nil)
				if at := core.Next(); !at.IsZero() && !at.After(now) {
					t.Fatalf("next %v at %v", at, now)
				}
			}
			for _, st := range steps {
				if st.From >= st.To {
					t.Fatalf("step %+v", st)
				}
			}
			if core.HeldBytes() < 0 || core.HeldBytes() > cfg.MaxHeld || core.SenderCount() > cfg.MaxSenders || core.hints.len() > cfg.MaxHints {
				t.Fatalf("held %d, senders %d, hints %d", core.HeldBytes(), core.SenderCount(), core.hints.len())
			}
			if n := len(core.AllProgress(100)); n > cfg.MaxSenders+cfg.MaxHints {
				t.Fatalf("%d marks", n)
			}
		}
	})
}

func BenchmarkReceiveInSequence(b *testing.B) {
	core := New(Config{})
	now := time.Unix(0, 0)
	var steps []Step
	n := uint64(0)
	b.ReportAllocs()
	for b.Loop() {
		n++
		_, steps = core.Receive(now, "s", Arrival{Session: life(1), First: n, Count: 1, Size: 1}, steps[:0])
	}
}

// The first is missing, ten thousand wait behind it.
func BenchmarkReceiveBehindAGap(b *testing.B) {
	now := time.Unix(0, 0)
	var steps []Step
	b.ReportAllocs()
	for b.Loop() {
		core := New(Config{})
		core.ReceiveOwnMark(now, Progress{Sender: "s", Session: life(1), Next: 1}, Firm, nil)
		for n := uint64(2); n <= 10_000; n++ {
			_, steps = core.Receive(now, "s", Arrival{Session: life(1), First: n, Count: 1, Size: 1}, steps[:0])
		}
		core.Receive(now, "s", Arrival{Session: life(1), First: 1, Count: 1, Size: 1}, steps[:0])
	}
}
