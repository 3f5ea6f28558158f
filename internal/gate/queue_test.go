package gate

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/go-smokesignal/smokesignal/internal/frame"
)

// messages returns an RPC of floodsub with these messages.
func messages(data ...[]byte) []byte {
	var rpc []byte
	for _, d := range data {
		rpc = frame.AppendMessage(rpc, fieldPublish, frame.AppendMessage(nil, 2, d))
	}
	return frame.Append(nil, rpc)
}

func message(format string, args ...any) []byte {
	return messages(fmt.Appendf(nil, format, args...))
}

// announce returns an RPC that announces that a topic is joined or left.
func announce(topic string, on bool) []byte {
	sub := protowire.AppendTag(nil, fieldSubscribe, protowire.VarintType)
	sub = protowire.AppendVarint(sub, protowire.EncodeBool(on))
	sub = protowire.AppendTag(sub, fieldTopic, protowire.BytesType)
	sub = protowire.AppendString(sub, topic)
	return frame.Append(nil, frame.AppendMessage(nil, fieldSubscriptions, sub))
}

// heard returns the messages and announcements that a peer reads from a stream.
func heard(t *testing.T, b []byte) (what []string) {
	t.Helper()
	for len(b) > 0 {
		rpc, n := protowire.ConsumeBytes(b)
		if n < 0 {
			t.Fatalf("after %q the stream is out of step", what)
		}
		b = b[n:]
		for f, err := range frame.Fields(rpc) {
			if err != nil {
				t.Fatalf("after %q: %v", what, err)
			}
			if f.Num == fieldPublish {
				m, _, err := frame.Cut(f.Bytes)
				if err != nil {
					t.Fatal(err)
				}
				what = append(what, string(m.Bytes))
			}
		}
		subs, _ := inspect(frame.Append(nil, rpc))
		for _, sub := range subs {
			what = append(what, fmt.Sprintf("%s: %v", sub.topic, sub.on))
		}
	}
	return what
}

// writeAll writes all waiting bytes, in pieces, and returns them.
func (b *rpcQueue) writeAll(now time.Time, piece int) (written []byte) {
	for !b.empty() {
		next := b.head()
		next = next[:min(piece, len(next))]
		written = append(written, next...)
		b.written(len(next), now)
	}
	return written
}

func wantHeard(t *testing.T, got []byte, want ...string) {
	t.Helper()
	if g := heard(t, got); !slices.Equal(g, want) {
		t.Errorf("the peer hears %q, want %q", g, want)
	}
}

// The queue keeps its memory within the limit and one RPC, however large the
// RPCs are.
func TestQueueBoundsMemory(t *testing.T) {
	t.Parallel()
	now := time.Unix(1, 0)
	const limit = 256 << 10
	for _, size := range []int{0, 1, 100, 5000, chunkSize/4 - 10, chunkSize / 4, chunkSize - 8, chunkSize, 1 << 20} {
		b := rpcQueue{max: limit, timeout: time.Second}
		rpc, n := messages(make([]byte, size)), 0
		for ; b.decide(rpc, now) == accepted; n++ {
			b.push(rpc, now)
		}
		memory := 0
		for _, c := range b.chunks {
			memory += cap(c)
		}
		if memory != b.size || memory > limit+max(len(rpc), chunkSize) {
			t.Errorf("RPCs of %d bytes: %d bytes are used and %d counted, the limit is %d", size, memory, b.size, limit)
		}
		if held := n * len(rpc); held < limit/2 {
			t.Errorf("RPCs of %d bytes: only %d bytes wait, the limit is %d", size, held, limit)
		}
		if got := b.writeAll(now, 1000); !bytes.Equal(got, bytes.Repeat(rpc, n)) || b.size != 0 {
			t.Errorf("RPCs of %d bytes: other bytes come out, or %d stay", size, b.size)
		}
	}
}

// During a stall the queue drops messages and keeps the rest of each RPC.
func TestQueueDropsMessagesDuringAStall(t *testing.T) {
	t.Parallel()
	now := time.Unix(1, 0)
	b := rpcQueue{max: 100, timeout: 5 * time.Second}
	decide := func(want decision, rpc []byte) {
		t.Helper()
		if got := b.decide(rpc, now); got != want {
			t.Fatalf("decision %d, want %d", got, want)
		}
	}
	// Nothing waits, so nothing is overdue.
	now = now.Add(time.Hour)
	decide(accepted, message("1"))
	b.push(message("1"), now)
	// The limit is reached; until the timeout there may be room again.
	decide(full, message("2"))
	now = now.Add(5*time.Second - 1)
	decide(full, message("2"))
	// A byte is progress, but makes no room.
	first := b.head()[0]
	b.written(1, now)
	now = now.Add(5*time.Second - 1)
	decide(full, message("2"))
	// Then the peer accepts nothing for the timeout: messages are dropped, of the
	// announced the latest is kept.
	now = now.Add(1)
	decide(dropped, messages([]byte("2"), []byte("3")))
	decide(dropped, announce("a", true))
	decide(dropped, announce("b", true))
	decide(dropped, announce("a", false))
	decide(dropped, announce("b", true))
	if b.dropped != 2 || b.stalls != 1 {
		t.Errorf("%d dropped, %d stalls", b.dropped, b.stalls)
	}
	// It accepts something again: the rest of the RPC that was begun, the announcements,
	// and new messages.
	got := append([]byte{first}, b.writeAll(now, 1)...)
	decide(accepted, message("4"))
	b.push(message("4"), now)
	got = append(got, b.writeAll(now, 100)...)
	what := heard(t, got)
	if len(what) == 4 && what[1] > what[2] {
		what[1], what[2] = what[2], what[1] // one RPC, so without an order
	}
	if want := []string{"1", "a: false", "b: true", "4"}; !slices.Equal(what, want) {
		t.Errorf("the peer hears %q, want %q", what, want)
	}
	// The next stall has nothing to do with this one.
	b.push(message("5"), now)
	now = now.Add(time.Hour)
	decide(dropped, announce("c", true))
	wantHeard(t, b.writeAll(now, 100), "5", "c: true")
	if b.dropped != 2 || b.stalls != 2 {
		t.Errorf("%d dropped, %d stalls", b.dropped, b.stalls)
	}
}

// When a stream breaks, the RPC that was partly written is dropped.
func TestQueueDropsAPartlyWrittenRPC(t *testing.T) {
	t.Parallel()
	now := time.Unix(1, 0)
	size := len(message("1"))
	for written, want := range map[int][]string{
		0:          {"1", "2", "3"},
		1:          {"2", "3"},
		size - 1:   {"2", "3"},
		size:       {"2", "3"}, // the first may have arrived, so it is not counted
		size + 1:   {"3"},
		2 * size:   {"3"},
		3*size - 1: nil,
	} {
		b := rpcQueue{max: 1 << 10, timeout: time.Second}
		for i := range 3 {
			b.push(message("%d", i+1), now)
		}
		if written > 0 {
			b.written(written, now)
		}
		b.dropPartial(now)
		b.dropPartial(now)
		if begun := written%size != 0; begun != (b.dropped == 1) {
			t.Errorf("%d bytes were written: %d dropped", written, b.dropped)
		}
		wantHeard(t, b.writeAll(now, 5), want...)
		if b.size != 0 {
			t.Errorf("%d bytes were written: %d are still counted", written, b.size)
		}
	}
}

// When the partly written RPC is the only one, the end of its stream ends the stall. The
// peer then hears the latest announcement of each topic.
func TestQueueEndsAStallWithItsLastRPC(t *testing.T) {
	t.Parallel()
	now := time.Unix(1, 0)
	b := rpcQueue{max: 4 * chunkSize, timeout: time.Second}
	b.push(announce("a", true), now)
	b.written(1, now)
	now = now.Add(time.Second)
	for _, rpc := range [][]byte{message("1"), announce("a", false), announce("b", true)} {
		if b.decide(rpc, now) != dropped {
			t.Fatal("it is not stalled")
		}
	}
	b.dropPartial(now)
	if b.stalled {
		t.Error("it is stalled though nothing waits")
	}
	if b.decide(message("2"), now) == accepted {
		b.push(message("2"), now)
	}
	got := heard(t, b.writeAll(now, 100))
	slices.Sort(got) // the announcements are one RPC, so without an order
	if want := []string{"2", "a: false", "b: true"}; !slices.Equal(got, want) {
		t.Errorf("the peer hears %q, want %q", got, want)
	}
	if b.aside != nil || b.dropped != 1 || b.stalls != 1 {
		t.Errorf("%v is late, %d dropped, %d stalls", b.aside, b.dropped, b.stalls)
	}

	// As long as something waits, the next stream has to accept it first; and what was
	// announced by an RPC that was cut is no news.
	b.push(announce("a", true), now)
	b.push(message("3"), now)
	b.written(1, now)
	now = now.Add(time.Second)
	if b.decide(announce("a", false), now) != dropped {
		t.Fatal("it is not stalled")
	}
	b.dropPartial(now)
	if !b.stalled {
		t.Error("the stall is over though nothing was written")
	}
	wantHeard(t, b.writeAll(now, 100), "3", "a: false")
}

// Whatever happens, a message is written whole and in order, or counted, or
// was written to a stream that broke.
func TestQueueCountsEveryDroppedMessage(t *testing.T) {
	t.Parallel()
	for seed := range uint64(40) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		now := time.Unix(1, 0)
		b := rpcQueue{max: 1 + rnd.IntN(200<<10), timeout: 10 * time.Millisecond}
		var streams [][]byte
		stream := []byte{}
		sent, cut := 0, false
		for range 500 {
			now = now.Add(time.Duration(rnd.IntN(3)) * time.Millisecond)
			switch op := rnd.IntN(20); {
			case op < 10:
				data := append(fmt.Appendf(nil, "%06d", sent), make([]byte, rnd.IntN(1<<rnd.IntN(16)))...)
				switch b.decide(messages(data), now) {
				case accepted:
					b.push(messages(data), now)
					sent++
				case dropped:
					sent++
				}
			case op < 19 && !b.empty():
				n := min(len(b.head()), rnd.IntN(1<<rnd.IntN(17)))
				stream = append(stream, b.head()[:n]...)
				b.written(n, now)
			case op == 19 && rnd.IntN(5) == 0:
				b.dropPartial(now)
				streams, stream, cut = append(streams, stream), []byte{}, true
			}
		}
		b.clear(now)
		streams = append(streams, stream)
		got, last := 0, ""
		for _, s := range streams {
			whole := 0
			for whole < len(s) { // the last RPC may be incomplete
				_, n := protowire.ConsumeBytes(s[whole:])
				if n < 0 {
					break
				}
				whole += n
			}
			for _, m := range heard(t, s[:whole]) {
				if m[:6] <= last {
					t.Fatalf("seed %d: %q after %q", seed, m[:6], last)
				}
				last = m[:6]
				got++
			}
		}
		if got+int(b.dropped) != sent || b.size != 0 {
			t.Errorf("seed %d (cut: %v): %d sent, %d written, %d dropped, %d bytes stay", seed, cut, sent, got, b.dropped, b.size)
		}
	}
}

// The filter finds the boundaries of RPCs in writes of any size.
func TestFilterKnowsTheBoundaries(t *testing.T) {
	t.Parallel()
	b := slices.Concat(message("1"), messages(make([]byte, 300)), []byte{0}, message("2"))
	ends := map[int]bool{0: true, len(message("1")): true, len(b) - len(message("2")) - 1: true, len(b) - len(message("2")): true, len(b): true}
	for _, piece := range []int{1, 2, 7, len(b)} {
		var at rpcFilter
		var passed []byte
		for i := 0; ; i = min(i+piece, len(b)) {
			if at.atBoundary() != ends[i] {
				t.Errorf("after %d bytes: %v", i, at.atBoundary())
			}
			if i == len(b) {
				break
			}
			passed, _ = at.filter(passed, b[i:min(i+piece, len(b))])
		}
		if !bytes.Equal(passed, b) {
			t.Errorf("in pieces of %d, %d bytes of %d were passed", piece, len(passed), len(b))
		}
	}
}

// A too long RPC is left out wherever the reads end, also in place.
func TestFilterLeavesOutOversizeRPCs(t *testing.T) {
	t.Parallel()
	largest := frame.Append(nil, make([]byte, maxRPC))
	long := frame.Append(nil, make([]byte, maxRPC+1))
	sent := slices.Concat(message("1"), long, long, message("2"), largest, long, message("3"))
	want := slices.Concat(message("1"), message("2"), largest, message("3"))
	for _, piece := range []int{1, 3, 1000, 1 << 20, len(sent)} {
		var at rpcFilter
		var passed []byte
		oversize := 0
		buf := make([]byte, maxHeld+piece)
		for b := range slices.Chunk(sent, piece) {
			out, n := at.filter(buf[:0], append(buf[maxHeld:maxHeld], b...))
			passed = append(passed, out...)
			oversize += n
		}
		if oversize != 3 || !bytes.Equal(passed, want) || !at.atBoundary() {
			t.Errorf("in pieces of %d: %d left out, %d bytes passed of %d, between %v", piece, oversize, len(passed), len(want), at.atBoundary())
		}
	}
	for name, length := range map[string][]byte{
		"longer than anything":  binary.AppendUvarint(nil, maxOversize+1),
		"no number":             bytes.Repeat([]byte{0xff}, 11),
		"the greatest number":   binary.AppendUvarint(nil, 1<<64-1),
		"a number that is more": append(bytes.Repeat([]byte{0xff}, 9), 0x02),
	} {
		var at rpcFilter
		bad := append(slices.Clone(length), "garbage"...)
		if passed, n := at.filter(nil, bad); n != 0 || !bytes.Equal(passed, bad) || at.atBoundary() {
			t.Errorf("%s: passed %x of %x, so pubsub does not see that it is garbage", name, passed, bad)
		}
	}
}
