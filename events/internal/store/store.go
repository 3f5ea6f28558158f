// Package store keeps the latest batches of every sender for a while. Handlers read them
// from here, and neighbors that lack some get them from here. It performs no I/O and
// reads no clock.
//
// A batch is removed when it is older than [Config.MaxAge] and no handler is going to
// read it. When all batches together are larger than [Config.MaxBytes], the oldest batch
// of the sender that uses the most space is removed, read or not. So a sender that
// floods the network displaces its own batches, not those of others.
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
	MaxAge   time.Duration // how long a batch is kept, while there is space [60 s]
	MaxBytes int           // size of all batches together [16 MiB]
}

// An Entry is a stored batch: a run of consecutive events [First, End) of one session.
type Entry[V any] struct {
	First, End uint64
	Size       int // bytes of memory that Value keeps in use
	Value      V

	at time.Time // when it arrived
}

// A Store is not safe for concurrent use.
type Store[V any] struct {
	cfg      Config
	senders  map[peer.ID]*senderEntries[V]
	heaviest bySize[V]
	size     int // of all entries
}

// maxOverlap is how many entries are searched for a number of which the sender has sent
// several events. Honest senders never do that.
const maxOverlap = 8

// maxSessions is how many sessions of a sender are kept.
const maxSessions = 4

type senderEntries[V any] struct {
	sessions []*sessionEntries[V] // the earliest first
	size     int
	index    int // in Store.heaviest
}

type sessionEntries[V any] struct {
	order.SessionKey
	entries  []Entry[V] // sorted by First; no two begin alike
	readTo   uint64     // handlers have read everything below
	neededTo uint64     // handlers are going to read everything below
}

// New returns an empty store.
func New[V any](cfg Config) *Store[V] {
	cfg.MaxAge = cmp.Or(cfg.MaxAge, time.Minute)
	cfg.MaxBytes = cmp.Or(cfg.MaxBytes, 16<<20)
	return &Store[V]{cfg: cfg, senders: make(map[peer.ID]*senderEntries[V])}
}

// Add keeps a batch that arrived at now. It reports whether the batch was added. It is
// not if it is stored already, larger than MaxBytes, or of a session before the latest
// four of its sender.
func (s *Store[V]) Add(now time.Time, id peer.ID, key order.SessionKey, b Entry[V]) bool {
	if b.Size > s.cfg.MaxBytes || !s.insert(now, id, key, b) {
		return false
	}
	for s.size > s.cfg.MaxBytes {
		s.evict()
	}
	return true
}

// AddBackfill is Add for a batch that was sent before this node joined. It displaces
// nothing, and fills the store to no more than half.
func (s *Store[V]) AddBackfill(now time.Time, id peer.ID, key order.SessionKey, b Entry[V]) bool {
	return s.size+b.Size <= s.cfg.MaxBytes/2 && s.insert(now, id, key, b)
}

func (s *Store[V]) insert(now time.Time, id peer.ID, key order.SessionKey, b Entry[V]) bool {
	snd := s.senders[id]
	if snd == nil {
		snd = &senderEntries[V]{}
		s.senders[id] = snd
		heap.Push(&s.heaviest, snd)
	}
	ses := snd.session(key)
	i, found := ses.search(b.First)
	b.at = now
	switch {
	case found && ses.entries[i].End < b.End:
		// The sender gave the numbers twice. The longer batch holds more of them.
		s.addSize(snd, b.Size-ses.entries[i].Size)
		ses.entries[i] = b
	case found || i > 0 && ses.entries[i-1].End >= b.End:
		// Everything in it is here. The session may have been made in vain.
		s.removeIfEmpty(id, snd)
		return false
	default:
		ses.entries = slices.Insert(ses.entries, i, b)
		s.addSize(snd, b.Size)
	}
	if len(snd.sessions) > maxSessions {
		s.dropFirst(snd, snd.sessions[0], len(snd.sessions[0].entries))
		snd.sessions = slices.Delete(snd.sessions, 0, 1)
	}
	// If its own session was the one that had to go, it was not added.
	return snd.sessions[0].Compare(key) <= 0
}

// At returns the batch that holds number n of a session.
func (s *Store[V]) At(id peer.ID, key order.SessionKey, n uint64) (Entry[V], bool) {
	ses := s.findSession(id, key)
	if ses == nil {
		return Entry[V]{}, false
	}
	i, found := ses.search(n)
	if found {
		return ses.entries[i], true
	}
	// It is in the entry before. If the sender gave numbers twice, it may be in an
	// earlier one.
	for _, b := range slices.Backward(ses.entries[max(0, i-maxOverlap):i]) {
		if b.End > n {
			return b, true
		}
	}
	return Entry[V]{}, false
}

// Range returns the batches that hold numbers of [from, to): as many as fit into bytes,
// but at least one if there is any.
func (s *Store[V]) Range(id peer.ID, key order.SessionKey, from, to uint64, bytes int) []Entry[V] {
	ses := s.findSession(id, key)
	if ses == nil {
		return nil
	}
	i, found := ses.search(from)
	// The entry before may hold from, too.
	if !found && i > 0 && ses.entries[i-1].End > from {
		i--
	}
	end := i
	for ; end < len(ses.entries) && ses.entries[end].First < to; end++ {
		if bytes -= ses.entries[end].Size; bytes < 0 && end > i {
			break
		}
	}
	return slices.Clone(ses.entries[i:end])
}

// Floor returns the lowest number of a session that is stored; zero: none.
func (s *Store[V]) Floor(id peer.ID, key order.SessionKey) uint64 {
	if ses := s.findSession(id, key); ses != nil && len(ses.entries) > 0 {
		return ses.entries[0].First
	}
	return 0
}

// AwaitReading notes that handlers are going to read everything of a session below to.
// Until they have, none of it is removed because of its age. AwaitReading does nothing
// if no batch of the session is stored.
func (s *Store[V]) AwaitReading(id peer.ID, key order.SessionKey, to uint64) {
	if ses := s.findSession(id, key); ses != nil {
		ses.neededTo = max(ses.neededTo, to)
	}
}

// MarkRead notes that handlers have read everything of a session below to. It does
// nothing if no batch of the session is stored.
func (s *Store[V]) MarkRead(id peer.ID, key order.SessionKey, to uint64) {
	if ses := s.findSession(id, key); ses != nil {
		ses.readTo = max(ses.readTo, to)
	}
}

// StartReading notes that handlers begin to read at from, unless they have begun.
// Earlier batches are stored only for neighbors.
func (s *Store[V]) StartReading(id peer.ID, key order.SessionKey, from uint64) {
	if ses := s.findSession(id, key); ses != nil && ses.readTo == 0 {
		ses.readTo = from
	}
}

// RemoveOld removes the batches that are too old at now. Its time grows with the number
// of senders, so call it about once per second.
func (s *Store[V]) RemoveOld(now time.Time) {
	for id, snd := range s.senders {
		for _, ses := range snd.sessions {
			n := 0
			for n < len(ses.entries) {
				b := &ses.entries[n]
				// It is young, or a slow handler has yet to read it.
				if now.Sub(b.at) < s.cfg.MaxAge || b.End > ses.readTo && b.First < ses.neededTo {
					break
				}
				n++
			}
			s.dropFirst(snd, ses, n)
		}
		s.removeIfEmpty(id, snd)
	}
}

// Bytes returns the size of all batches.
func (s *Store[V]) Bytes() int { return s.size }

func (s *Store[V]) findSession(id peer.ID, key order.SessionKey) *sessionEntries[V] {
	snd := s.senders[id]
	if snd == nil {
		return nil
	}
	for _, ses := range snd.sessions {
		if ses.SessionKey == key {
			return ses
		}
	}
	return nil
}

// session returns a session of the sender, and adds it if it is new.
func (snd *senderEntries[V]) session(key order.SessionKey) *sessionEntries[V] {
	i, found := slices.BinarySearchFunc(snd.sessions, key, func(ses *sessionEntries[V], key order.SessionKey) int { return ses.Compare(key) })
	if !found {
		snd.sessions = slices.Insert(snd.sessions, i, &sessionEntries[V]{SessionKey: key})
	}
	return snd.sessions[i]
}

// search returns the index of the entry that begins with n, or the index where it would
// be inserted.
func (ses *sessionEntries[V]) search(n uint64) (int, bool) {
	if last := len(ses.entries); last > 0 && ses.entries[last-1].First < n {
		return last, false // batches nearly always arrive in order
	}
	return slices.BinarySearchFunc(ses.entries, n, func(b Entry[V], n uint64) int { return cmp.Compare(b.First, n) })
}

// evict removes the oldest batch of the sender that uses the most space.
func (s *Store[V]) evict() {
	snd := s.heaviest[0]
	for _, ses := range snd.sessions {
		if len(ses.entries) > 0 {
			s.dropFirst(snd, ses, 1)
			return
		}
	}
}

// dropFirst removes the first n entries of a session.
func (s *Store[V]) dropFirst(snd *senderEntries[V], ses *sessionEntries[V], n int) {
	if n == 0 {
		return
	}
	size := 0
	for i := range ses.entries[:n] {
		size += ses.entries[i].Size
	}
	clear(ses.entries[:n])
	ses.entries = ses.entries[n:]
	s.addSize(snd, -size)
}

func (s *Store[V]) addSize(snd *senderEntries[V], size int) {
	s.size += size
	snd.size += size
	heap.Fix(&s.heaviest, snd.index)
}

// removeIfEmpty removes the empty sessions of a sender, and the sender if none is left.
func (s *Store[V]) removeIfEmpty(id peer.ID, snd *senderEntries[V]) {
	snd.sessions = slices.DeleteFunc(snd.sessions, func(ses *sessionEntries[V]) bool {
		return len(ses.entries) == 0
	})
	if len(snd.sessions) == 0 {
		delete(s.senders, id)
		heap.Remove(&s.heaviest, snd.index)
	}
}

// bySize has the sender that uses the most space in front.
type bySize[V any] []*senderEntries[V]

func (h bySize[V]) Len() int           { return len(h) }
func (h bySize[V]) Less(i, j int) bool { return h[i].size > h[j].size }
func (h bySize[V]) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *bySize[V]) Push(x any) {
	snd := x.(*senderEntries[V])
	snd.index = len(*h)
	*h = append(*h, snd)
}

func (h *bySize[V]) Pop() any {
	old := *h
	snd := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return snd
}
