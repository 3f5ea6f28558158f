// Package store keeps the latest batches of every sender for a while. Handlers read
// them from here, and neighbors that lack some of them are given them from here. It
// performs no I/O and reads no clock.
//
// A batch is removed when it is older than [Config.MaxAge], unless a handler still has
// to read it. When all batches together are larger than [Config.MaxBytes], the oldest
// batch of the sender that uses the most space is removed, even if it was not read. So
// a sender that floods the network displaces its own batches and not those of others.
package store

import (
	"cmp"
	"container/heap"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/events/internal/order"
)

// Config holds the limits of a store. A zero field means the default in brackets.
type Config struct {
	MaxAge   time.Duration // how long a batch is kept at most, unless a handler still has to read it [60 s]
	MaxBytes int           // total size of the stored batches [16 MiB]
}

// An Entry is a stored batch: the consecutive events [First, End) of one session.
type Entry[V any] struct {
	First, End uint64
	// Size is how many bytes of memory Value occupies.
	Size  int
	Value V

	at time.Time // when the batch arrived
}

// A Store holds the batches of all senders. It is not safe for concurrent use.
type Store[V any] struct {
	cfg      Config
	senders  map[peer.ID]*senderEntries[V]
	heaviest bySize[V]
	size     int // of all entries, in bytes
}

// maxOverlap is how many entries At searches for one event. More than one can matter
// only if a sender has used a number for several events, which honest senders never do.
const maxOverlap = 8

// maxSessions is how many sessions of one sender are kept.
const maxSessions = 4

// senderEntries are the stored batches of one sender.
type senderEntries[V any] struct {
	sessions []*sessionEntries[V] // the earliest first
	bytes    int
	index    int // index in Store.heaviest
}

// sessionEntries are the stored batches of one session.
type sessionEntries[V any] struct {
	order.SessionKey
	entries  []Entry[V] // sorted by First, which differs for each entry
	readTo   uint64     // handlers have read every event with a number below this
	neededTo uint64     // handlers have to read every event with a number below this
}

// New returns an empty store.
func New[V any](cfg Config) *Store[V] {
	cfg.MaxAge = cmp.Or(cfg.MaxAge, time.Minute)
	cfg.MaxBytes = cmp.Or(cfg.MaxBytes, 16<<20)
	return &Store[V]{cfg: cfg, senders: make(map[peer.ID]*senderEntries[V])}
}

// Add stores a batch that arrived at the time now. It returns false, and does not store
// the batch, if the batch is stored already, is larger than MaxBytes, or is of a
// session before the latest four of its sender.
func (s *Store[V]) Add(now time.Time, id peer.ID, key order.SessionKey, b Entry[V]) bool {
	if b.Size > s.cfg.MaxBytes || !s.insert(now, id, key, b) {
		return false
	}
	for s.size > s.cfg.MaxBytes {
		s.evict()
	}
	return true
}

// AddBackfill stores a batch that was sent before this node joined, as Add does. But it
// removes no other batch, and does not fill the store to more than half.
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
		// The sender used the number twice. The longer batch is kept, as it has more
		// events.
		s.addSize(snd, b.Size-ses.entries[i].Size)
		ses.entries[i] = b
	case found || i > 0 && ses.entries[i-1].End >= b.End:
		// All events of the batch are stored already. If a session was added above for
		// this batch, it is empty.
		s.removeIfEmpty(id, snd)
		return false
	default:
		ses.entries = slices.Insert(ses.entries, i, b)
		s.addSize(snd, b.Size)
	}
	// A sender that restarts again and again must not add up sessions.
	if len(snd.sessions) > maxSessions {
		s.dropFirst(snd, snd.sessions[0], len(snd.sessions[0].entries))
		snd.sessions = slices.Delete(snd.sessions, 0, 1)
	}
	// If the session that was just removed is the batch's own, the batch was not added,
	// and Add returns false.
	return snd.sessions[0].Compare(key) <= 0
}

// At returns the stored batch that contains event n of a session of the sender id, and
// whether there is one.
func (s *Store[V]) At(id peer.ID, key order.SessionKey, n uint64) (Entry[V], bool) {
	ses := s.findSession(id, key)
	if ses == nil {
		return Entry[V]{}, false
	}
	i, found := ses.search(n)
	if found {
		return ses.entries[i], true
	}
	// The event is in the entry before i. If the sender used a number twice, it may be
	// in one of the entries before that.
	for _, b := range slices.Backward(ses.entries[max(0, i-maxOverlap):i]) {
		if b.End > n {
			return b, true
		}
	}
	return Entry[V]{}, false
}

// Range returns the stored batches that contain events with numbers in [from, to), in
// order. Their total size is at most bytes, except that one batch is returned whatever
// its size.
func (s *Store[V]) Range(id peer.ID, key order.SessionKey, from, to uint64, bytes int) []Entry[V] {
	ses := s.findSession(id, key)
	if ses == nil {
		return nil
	}
	i, found := ses.search(from)
	// The entry before index i begins below the number from, but may contain the event
	// from, too.
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

// Floor returns the lowest event number of a session that is stored; zero means none.
func (s *Store[V]) Floor(id peer.ID, key order.SessionKey) uint64 {
	if ses := s.findSession(id, key); ses != nil && len(ses.entries) > 0 {
		return ses.entries[0].First
	}
	return 0
}

// AwaitReading notes that handlers have to read every event of a session below the
// number to. Until they have read them, these batches are not removed because of their
// age. AwaitReading does nothing if no batch of the session is stored.
func (s *Store[V]) AwaitReading(id peer.ID, key order.SessionKey, to uint64) {
	if ses := s.findSession(id, key); ses != nil {
		ses.neededTo = max(ses.neededTo, to)
	}
}

// MarkRead notes that handlers have read every event of a session below the number to.
// It does nothing if no batch of the session is stored.
func (s *Store[V]) MarkRead(id peer.ID, key order.SessionKey, to uint64) {
	if ses := s.findSession(id, key); ses != nil {
		ses.readTo = max(ses.readTo, to)
	}
}

// StartReading notes that handlers begin to read a session with the event number from,
// unless they have begun already. Batches with lower numbers are stored only for
// neighbors.
func (s *Store[V]) StartReading(id peer.ID, key order.SessionKey, from uint64) {
	if ses := s.findSession(id, key); ses != nil && ses.readTo == 0 {
		ses.readTo = from
	}
}

// RemoveOld removes the batches that are too old at the time now. It examines every
// sender, so call it only about once per second.
func (s *Store[V]) RemoveOld(now time.Time) {
	for id, snd := range s.senders {
		for _, ses := range snd.sessions {
			n := 0
			for n < len(ses.entries) {
				b := &ses.entries[n]
				// The batch is not old enough, or a slow handler still has to read it.
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

// Bytes returns the total size of the stored batches.
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

// session returns a session of the sender, and adds it if there is none.
func (snd *senderEntries[V]) session(key order.SessionKey) *sessionEntries[V] {
	i, found := slices.BinarySearchFunc(snd.sessions, key, func(ses *sessionEntries[V], key order.SessionKey) int { return ses.Compare(key) })
	if !found {
		snd.sessions = slices.Insert(snd.sessions, i, &sessionEntries[V]{SessionKey: key})
	}
	return snd.sessions[i]
}

// search returns the index of the entry whose first event is n and true, or the index
// where such an entry would be inserted and false.
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
	snd.bytes += size
	heap.Fix(&s.heaviest, snd.index)
}

// removeIfEmpty removes the empty sessions of a sender, and the sender if it has no
// other sessions.
func (s *Store[V]) removeIfEmpty(id peer.ID, snd *senderEntries[V]) {
	snd.sessions = slices.DeleteFunc(snd.sessions, func(ses *sessionEntries[V]) bool {
		return len(ses.entries) == 0
	})
	if len(snd.sessions) == 0 {
		delete(s.senders, id)
		heap.Remove(&s.heaviest, snd.index)
	}
}

// bySize is a heap of senders, the one that uses the most space first.
type bySize[V any] []*senderEntries[V]

func (h bySize[V]) Len() int           { return len(h) }
func (h bySize[V]) Less(i, j int) bool { return h[i].bytes > h[j].bytes }
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
