package store

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/events/internal/order"
)

var epoch = time.Unix(1000, 0)

func at(seconds int) time.Time { return epoch.Add(time.Duration(seconds) * time.Second) }

func life(n int) order.SessionKey { return order.SessionKey{Start: uint64(n)} }

func put(s *Store[string], seconds int, id peer.ID, first, end uint64, size int) bool {
	return s.Add(at(seconds), id, life(1), Entry[string]{First: first, End: end, Size: size, Value: fmt.Sprintf("%s %d", string(id), first)})
}

// list returns what is here of [from, to), like "1-4 4-5".
func list(s *Store[string], id peer.ID, session int, from, to uint64, bytes int) (text string) {
	for i, b := range s.Range(id, life(session), from, to, bytes) {
		if i > 0 {
			text += " "
		}
		text += fmt.Sprintf("%d-%d", b.First, b.End)
	}
	return text
}

func want(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

// A batch is found by any of its numbers, and a range returns the stored batches in order
// within the limit of bytes.
func TestBatchesAreFoundByNumber(t *testing.T) {
	s := New[string](Config{})
	for _, first := range []uint64{10, 1, 4} { // 4 to 6 and 10 to 12; 7 to 9 are missing
		if !put(s, 0, "a", first, first+3, 100) {
			t.Errorf("%d was not kept", first)
		}
	}
	if put(s, 0, "a", 4, 7, 100) || put(s, 0, "a", 5, 6, 50) {
		t.Error("what is here already was kept")
	}
	if b, ok := s.At("a", life(1), 5); !ok || b.Value != "a 4" {
		t.Errorf("5 is in %+v, %v", b, ok)
	}
	for _, n := range []uint64{0, 7, 9, 13} {
		if b, ok := s.At("a", life(1), n); ok {
			t.Errorf("%d is in %+v", n, b)
		}
	}
	want(t, "all", list(s, "a", 1, 1, 100, 1000), "1-4 4-7 10-13")
	want(t, "from the middle of one to that of another", list(s, "a", 1, 5, 11, 1000), "4-7 10-13")
	want(t, "up to the beginning of one", list(s, "a", 1, 1, 4, 1000), "1-4")
	want(t, "what is missing", list(s, "a", 1, 7, 10, 1000), "")
	want(t, "no more bytes than asked for", list(s, "a", 1, 1, 100, 299), "1-4 4-7")
	want(t, "but one", list(s, "a", 1, 1, 100, 1), "1-4")
	want(t, "another session", list(s, "a", 2, 1, 100, 1000), "")
	want(t, "another sender", list(s, "b", 1, 1, 100, 1000), "")
	if f := s.Floor("a", life(1)); f != 1 {
		t.Errorf("floor %d", f)
	}
	if f := s.Floor("b", life(1)); f != 0 {
		t.Errorf("floor of nothing: %d", f)
	}
}

// Batches of one sender that overlap do not hide each other.
func TestOverlappingBatchesAreBothFound(t *testing.T) {
	s := New[string](Config{})
	put(s, 0, "a", 1, 10, 100)
	put(s, 0, "a", 5, 20, 100)
	put(s, 0, "a", 1, 12, 300) // more than the one that begins alike
	want(t, "all", list(s, "a", 1, 1, 100, 1000), "1-12 5-20")
	if s.Bytes() != 400 {
		t.Errorf("%d bytes", s.Bytes())
	}
	if b, ok := s.At("a", life(1), 15); !ok || b.First != 5 {
		t.Errorf("15 is in %+v, %v", b, ok)
	}
	if b, ok := s.At("a", life(1), 3); !ok || b.First != 1 {
		t.Errorf("3 is in %+v, %v", b, ok)
	}
}

// Batches older than MaxAge are removed, except those that have yet to be read.
func TestOldBatchesAreRemovedUnlessUnread(t *testing.T) {
	s := New[string](Config{MaxAge: 10 * time.Second})
	put(s, 0, "a", 1, 3, 100)
	put(s, 5, "a", 3, 5, 100)
	put(s, 0, "read", 1, 3, 100)
	put(s, 0, "read", 3, 5, 100)
	put(s, 0, "read", 5, 7, 100) // nobody is going to read this
	s.AwaitReading("read", life(1), 5)
	s.MarkRead("read", life(1), 3)
	s.RemoveOld(at(9))
	want(t, "young", list(s, "a", 1, 1, 9, 1000), "1-3 3-5")
	s.RemoveOld(at(10))
	want(t, "ten seconds", list(s, "a", 1, 1, 9, 1000), "3-5")
	want(t, "not read", list(s, "read", 1, 1, 9, 1000), "3-5 5-7")
	s.RemoveOld(at(1000))
	want(t, "still not read", list(s, "read", 1, 1, 9, 1000), "3-5 5-7")
	s.MarkRead("read", life(1), 5)
	s.MarkRead("read", life(1), 1) // an old word
	s.RemoveOld(at(1001))
	if s.Bytes() != 0 || len(s.senders) != 0 || len(s.heaviest) != 0 {
		t.Errorf("%d bytes, %d senders are left", s.Bytes(), len(s.senders))
	}
	put(s, 1002, "read", 7, 9, 100)
	s.RemoveOld(at(1012))
	want(t, "nothing is known of before", list(s, "read", 1, 1, 9, 1000), "")
}

// At the limit of bytes, the oldest batches of the sender that uses the most space are
// removed.
func TestLargestSenderIsEvictedFirst(t *testing.T) {
	s := New[string](Config{MaxBytes: 1000})
	put(s, 0, "small", 1, 2, 100)
	for n := uint64(1); n <= 9; n++ {
		put(s, 1, "large", n, n+1, 100)
	}
	s.AwaitReading("large", life(1), 10)
	put(s, 2, "small", 2, 3, 100)
	want(t, "small", list(s, "small", 1, 1, 9, 1000), "1-2 2-3")
	if f := s.Floor("large", life(1)); f != 2 || s.Bytes() != 1000 {
		t.Errorf("large begins at %d, %d bytes", f, s.Bytes())
	}
	if put(s, 2, "huge", 1, 2, 1001) {
		t.Error("more than everything was kept")
	}
	put(s, 2, "huge", 1, 2, 950)
	if s.Bytes() > 1000 {
		t.Errorf("%d bytes", s.Bytes())
	}
}

// Backfilled batches use at most half of the store and evict no other batch.
func TestBackfillUsesHalfOfTheStore(t *testing.T) {
	s := New[string](Config{MaxBytes: 1000})
	put(s, 0, "a", 1, 2, 300)
	fill := func(id peer.ID, first uint64, size int) bool {
		return s.AddBackfill(at(0), id, life(1), Entry[string]{First: first, End: first + 1, Size: size})
	}
	if !fill("b", 1, 200) || fill("b", 2, 1) || fill("c", 1, 1) {
		t.Error("not half of the room was filled")
	}
	want(t, "a", list(s, "a", 1, 1, 9, 1000), "1-2")
}

// The number of sessions stored for one sender is bounded.
func TestSessionsOfASenderAreBounded(t *testing.T) {
	s := New[string](Config{})
	for n := 2; n <= 9; n++ {
		s.Add(at(0), "a", life(n), Entry[string]{First: 1, End: 2, Size: 10})
	}
	if s.Bytes() != 10*maxSessions || len(s.senders["a"].sessions) != maxSessions {
		t.Errorf("%d bytes in %d sessions", s.Bytes(), len(s.senders["a"].sessions))
	}
	want(t, "the latest", list(s, "a", 9, 1, 9, 1000), "1-2")
	want(t, "the first", list(s, "a", 2, 1, 9, 1000), "")
	if s.Add(at(0), "a", life(1), Entry[string]{First: 1, End: 2, Size: 10}) {
		t.Error("a session before all that are kept was kept")
	}
}

// The store and a plain map of numbers agree after any sequence of operations.
func TestStoreAgreesWithANaiveMap(t *testing.T) {
	type key struct {
		id      peer.ID
		session int
	}
	type number struct {
		first uint64
		at    time.Time
	}
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		s := New[string](Config{MaxAge: 10 * time.Second})
		twin := make(map[key]map[uint64]number)
		read, kept := make(map[key]uint64), make(map[key]uint64)
		now := epoch
		for range 300 {
			now = now.Add(time.Duration(rnd.IntN(1000)) * time.Millisecond)
			k := key{peer.ID("abc"[rnd.IntN(3):][:1]), 1 + rnd.IntN(2)}
			if twin[k] == nil {
				twin[k] = make(map[uint64]number)
			}
			n := 1 + rnd.Uint64N(60)
			switch rnd.IntN(8) {
			case 0:
				s.RemoveOld(now)
				for k, numbers := range twin {
					// Those behind a younger one stay with it.
					first := true
					for m := uint64(1); m < 64; m++ {
						x, ok := numbers[m]
						if !ok {
							continue
						}
						end := (m-1)/3*3 + 4
						if first = first && now.Sub(x.at) >= 10*time.Second && (end <= read[k] || x.first >= kept[k]); first {
							delete(numbers, m)
						}
					}
					if len(numbers) == 0 {
						delete(read, k)
						delete(kept, k)
					}
				}
			case 1:
				s.MarkRead(k.id, life(k.session), n)
				if len(twin[k]) > 0 {
					read[k] = max(read[k], n)
				}
			case 2:
				s.AwaitReading(k.id, life(k.session), n)
				if len(twin[k]) > 0 {
					kept[k] = max(kept[k], n)
				}
			default:
				first := (n-1)/3*3 + 1 // batches of three
				s.Add(now, k.id, life(k.session), Entry[string]{First: first, End: first + 3, Size: 30})
				for m := first; m < first+3; m++ {
					if _, ok := twin[k][m]; !ok {
						twin[k][m] = number{first, now}
					}
				}
			}
			bytes := 0
			for k, numbers := range twin {
				bytes += 10 * len(numbers)
				for m := uint64(1); m < 64; m++ {
					x, has := numbers[m]
					if b, ok := s.At(k.id, life(k.session), m); ok != has || ok && b.First != x.first {
						t.Fatalf("seed %d: number %d of %v is in %+v, %v; want %v", seed, m, k, b, ok, has)
					}
				}
				from, to := 1+rnd.Uint64N(30), 31+rnd.Uint64N(30)
				var firsts []uint64
				for m := from; m < to; m++ {
					if x, ok := numbers[m]; ok && !slices.Contains(firsts, x.first) {
						firsts = append(firsts, x.first)
					}
				}
				var got []uint64
				for _, b := range s.Range(k.id, life(k.session), from, to, 1000) {
					got = append(got, b.First)
				}
				if !slices.Equal(got, firsts) {
					t.Fatalf("seed %d: [%d, %d) of %v is in %v, want %v", seed, from, to, k, got, firsts)
				}
			}
			if s.Bytes() != bytes {
				t.Fatalf("seed %d: %d bytes, want %d", seed, s.Bytes(), bytes)
			}
		}
	}
}

// The limits hold and the counted bytes are right, however many batches arrive.
func TestBoundsHold(t *testing.T) {
	for seed := range uint64(100) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		s := New[string](Config{MaxAge: 5 * time.Second, MaxBytes: 2000})
		for op := range 500 {
			id := peer.ID("abcdef"[rnd.IntN(6):][:1])
			first := 1 + rnd.Uint64N(100)
			b := Entry[string]{First: first, End: first + 1 + rnd.Uint64N(5), Size: 1 + rnd.IntN(400)}
			switch rnd.IntN(8) {
			case 0:
				s.RemoveOld(at(op / 10))
			case 1:
				s.AwaitReading(id, life(1+rnd.IntN(6)), first)
			case 2:
				s.AddBackfill(at(op/10), id, life(1+rnd.IntN(6)), b)
			default:
				s.Add(at(op/10), id, life(1+rnd.IntN(6)), b)
			}
			sum := 0
			for id, snd := range s.senders {
				n := 0
				for _, ses := range snd.sessions {
					for i, b := range ses.entries {
						n += b.Size
						if i > 0 && ses.entries[i-1].First >= b.First {
							t.Fatalf("seed %d: out of order: %+v", seed, ses.entries)
						}
					}
				}
				if n != snd.bytes || s.heaviest[snd.index] != snd || len(snd.sessions) > maxSessions {
					t.Fatalf("seed %d: %s has %d bytes, not %d, in %d sessions", seed, id, n, snd.bytes, len(snd.sessions))
				}
				if n > s.heaviest[0].bytes {
					t.Fatalf("seed %d: %s has more than the heaviest", seed, id)
				}
				sum += n
			}
			if sum != s.Bytes() || sum > 2000 || len(s.heaviest) != len(s.senders) {
				t.Fatalf("seed %d: %d bytes, counted as %d; %d of %d senders in the heap", seed, sum, s.Bytes(), len(s.heaviest), len(s.senders))
			}
		}
	}
}
