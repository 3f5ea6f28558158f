// Package store keeps the latest batches of every sender for a while: handlers
// read them from here, and neighbours that lack some are given them. It performs
// no I/O and reads no clock.
//
// A batch leaves when it is older than [Config.MaxAge] and nobody is going to read
// it, or when all batches together weigh more than [Config.MaxBytes]: then the
// oldest of the sender that has most here goes, read or not. So a sender that
// floods displaces itself and not the others.
package store

import (
	"cmp"
	"container/heap"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/events/internal/order"
)

// Config holds the bounds of a store. Zero means the default in brackets.
type Config struct {
	MaxAge   time.Duration // how long a batch is kept at least, if there is room [60 s]
	MaxBytes int           // of all batches together [16 MiB]
}

// A Batch is a run of consecutive events [First, End) of one session.
type Batch[V any] struct {
	First, End uint64
	Size       int // bytes that it keeps alive
	Value      V

	at time.Time
}

// A Store is not safe for concurrent use.
type Store[V any] struct {
	cfg     Config
	senders map[peer.ID]*sender[V]
	heavy   heaviest[V]
	bytes   int
}

// maxOverlap is how many batches are looked at for a number that a sender gave to
// several events, which honest ones do not.
const maxOverlap = 8

// maxSessions is how many sessions of a sender are kept.
const maxSessions = 4

type sender[V any] struct {
	sessions []*session[V] // the earliest first
	bytes    int
	index    int // in heavy
}

type session[V any] struct {
	order.Session
	batches []Batch[V] // by First; no two begin alike
	read    uint64     // everything below was read,
	kept    uint64     // and everything below is going to be
}

// New returns an empty store.
func New[V any](cfg Config) *Store[V] {
	cfg.MaxAge = cmp.Or(cfg.MaxAge, time.Minute)
	cfg.MaxBytes = cmp.Or(cfg.MaxBytes, 16<<20)
	return &Store[V]{cfg: cfg, senders: make(map[peer.ID]*sender[V])}
}

// Put keeps a batch that arrived at now. It reports whether the batch was kept,
// which it is not if it is here already, or larger than everything may be, or of a
// session before the latest few of its sender.
func (s *Store[V]) Put(now time.Time, id peer.ID, ses order.Session, b Batch[V]) bool {
	if b.Size > s.cfg.MaxBytes || !s.put(now, id, ses, b) {
		return false
	}
	for s.bytes > s.cfg.MaxBytes {
		s.evict()
	}
	return true
}

// Fill is Put for a batch of the past: it displaces nothing, and takes up no more
// than half of the room.
func (s *Store[V]) Fill(now time.Time, id peer.ID, ses order.Session, b Batch[V]) bool {
	return s.bytes+b.Size <= s.cfg.MaxBytes/2 && s.put(now, id, ses, b)
}

func (s *Store[V]) put(now time.Time, id peer.ID, key order.Session, b Batch[V]) bool {
	snd := s.senders[id]
	if snd == nil {
		snd = &sender[V]{}
		s.senders[id] = snd
		heap.Push(&s.heavy, snd)
	}
	ses := snd.session(key)
	i, found := ses.search(b.First)
	b.at = now
	switch {
	case found && ses.batches[i].End < b.End: // the sender gave the numbers twice
		s.weigh(snd, b.Size-ses.batches[i].Size)
		ses.batches[i] = b
	case found || i > 0 && ses.batches[i-1].End >= b.End:
		s.tidy(id, snd)
		return false
	default:
		ses.batches = slices.Insert(ses.batches, i, b)
		s.weigh(snd, b.Size)
	}
	if len(snd.sessions) > maxSessions {
		s.drop(snd, snd.sessions[0], len(snd.sessions[0].batches))
		snd.sessions = slices.Delete(snd.sessions, 0, 1)
	}
	return snd.sessions[0].Compare(key) <= 0
}

// Find returns the batch that holds number n of a session.
func (s *Store[V]) Find(id peer.ID, key order.Session, n uint64) (Batch[V], bool) {
	ses := s.find(id, key)
	if ses == nil {
		return Batch[V]{}, false
	}
	i, found := ses.search(n)
	if found {
		return ses.batches[i], true
	}
	// It is the one before, unless the sender gave numbers twice.
	for _, b := range slices.Backward(ses.batches[max(0, i-maxOverlap):i]) {
		if b.End > n {
			return b, true
		}
	}
	return Batch[V]{}, false
}

// Range returns the batches that hold numbers of [from, to), at most so many that
// their sizes do not exceed bytes, but at least one if there is any.
func (s *Store[V]) Range(id peer.ID, key order.Session, from, to uint64, bytes int) []Batch[V] {
	ses := s.find(id, key)
	if ses == nil {
		return nil
	}
	i, found := ses.search(from)
	if !found && i > 0 && ses.batches[i-1].End > from {
		i--
	}
	end := i
	for ; end < len(ses.batches) && ses.batches[end].First < to; end++ {
		if bytes -= ses.batches[end].Size; bytes < 0 && end > i {
			break
		}
	}
	return slices.Clone(ses.batches[i:end])
}

// Floor returns the lowest number of a session that is here; zero: none.
func (s *Store[V]) Floor(id peer.ID, key order.Session) uint64 {
	if ses := s.find(id, key); ses != nil && len(ses.batches) > 0 {
		return ses.batches[0].First
	}
	return 0
}

// Keep says that everything of a session below to is going to be read, so that
// nothing of it leaves for its age before. It does nothing if nothing of the session
// is here.
func (s *Store[V]) Keep(id peer.ID, key order.Session, to uint64) {
	if ses := s.find(id, key); ses != nil {
		ses.kept = max(ses.kept, to)
	}
}

// Read says that everything of a session below to was read. It does nothing if
// nothing of the session is here.
func (s *Store[V]) Read(id peer.ID, key order.Session, to uint64) {
	if ses := s.find(id, key); ses != nil {
		ses.read = max(ses.read, to)
	}
}

// Begin says that reading begins at from, unless it has begun: what is before that is
// here for others.
func (s *Store[V]) Begin(id peer.ID, key order.Session, from uint64) {
	if ses := s.find(id, key); ses != nil && ses.read == 0 {
		ses.read = from
	}
}

// Advance removes what is too old at now. It takes time in proportion to the
// senders, so it should be called about once a second.
func (s *Store[V]) Advance(now time.Time) {
	for id, snd := range s.senders {
		for _, ses := range snd.sessions {
			n := 0
			for n < len(ses.batches) {
				b := &ses.batches[n]
				if now.Sub(b.at) < s.cfg.MaxAge || b.End > ses.read && b.First < ses.kept {
					break
				}
				n++
			}
			s.drop(snd, ses, n)
		}
		s.tidy(id, snd)
	}
}

// Bytes returns the size of all batches.
func (s *Store[V]) Bytes() int { return s.bytes }

func (s *Store[V]) find(id peer.ID, key order.Session) *session[V] {
	snd := s.senders[id]
	if snd == nil {
		return nil
	}
	for _, ses := range snd.sessions {
		if ses.Session == key {
			return ses
		}
	}
	return nil
}

// session returns a sender's session, which it makes if need be.
func (snd *sender[V]) session(key order.Session) *session[V] {
	i, found := slices.BinarySearchFunc(snd.sessions, key, func(ses *session[V], key order.Session) int { return ses.Compare(key) })
	if !found {
		snd.sessions = slices.Insert(snd.sessions, i, &session[V]{Session: key})
	}
	return snd.sessions[i]
}

// search returns where the batch is that begins with n, or would be.
func (ses *session[V]) search(n uint64) (int, bool) {
	if last := len(ses.batches); last > 0 && ses.batches[last-1].First < n {
		return last, false // as nearly always
	}
	return slices.BinarySearchFunc(ses.batches, n, func(b Batch[V], n uint64) int { return cmp.Compare(b.First, n) })
}

// evict removes the oldest batch of the sender that has most.
func (s *Store[V]) evict() {
	snd := s.heavy[0]
	for _, ses := range snd.sessions {
		if len(ses.batches) > 0 {
			s.drop(snd, ses, 1)
			return
		}
	}
}

// drop removes the first n batches of a session.
func (s *Store[V]) drop(snd *sender[V], ses *session[V], n int) {
	if n == 0 {
		return
	}
	size := 0
	for i := range ses.batches[:n] {
		size += ses.batches[i].Size
	}
	clear(ses.batches[:n])
	ses.batches = ses.batches[n:]
	s.weigh(snd, -size)
}

func (s *Store[V]) weigh(snd *sender[V], size int) {
	s.bytes += size
	snd.bytes += size
	heap.Fix(&s.heavy, snd.index)
}

// tidy forgets a sender of which nothing is left.
func (s *Store[V]) tidy(id peer.ID, snd *sender[V]) {
	snd.sessions = slices.DeleteFunc(snd.sessions, func(ses *session[V]) bool {
		return len(ses.batches) == 0
	})
	if len(snd.sessions) == 0 {
		delete(s.senders, id)
		heap.Remove(&s.heavy, snd.index)
	}
}

// heaviest has the sender with most bytes in front.
type heaviest[V any] []*sender[V]

func (h heaviest[V]) Len() int           { return len(h) }
func (h heaviest[V]) Less(i, j int) bool { return h[i].bytes > h[j].bytes }
func (h heaviest[V]) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *heaviest[V]) Push(x any) {
	snd := x.(*sender[V])
	snd.index = len(*h)
	*h = append(*h, snd)
}

func (h *heaviest[V]) Pop() any {
	old := *h
	snd := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return snd
}
