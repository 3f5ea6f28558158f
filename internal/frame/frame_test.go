package frame

import (
	"bytes"
	"errors"
	"io"
	"math"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/go-smokesignal/smokesignal/internal/bubble"
)

const limit = 1 << 20

// sizes are around the limits of the prefix and of the reader's buffers.
var sizes = []int{0, 1, 127, 128, 4 << 10, 4<<10 - 2, 4<<10 - 1, 16383, 16384, firstRead - 1, firstRead, firstRead + 1, 3*firstRead + 7, limit}

func payload(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i * 7)
	}
	return b
}

func TestFramesComeBackAsTheyWere(t *testing.T) {
	var stream []byte
	for _, n := range sizes {
		stream = Append(stream, payload(n))
	}
	for name, r := range map[string]io.Reader{
		"whole":       bytes.NewReader(stream),
		"byte a time": iotest.OneByteReader(bytes.NewReader(stream)),
		"halves":      iotest.HalfReader(bytes.NewReader(stream)),
		"data + EOF":  iotest.DataErrReader(bytes.NewReader(stream)),
	} {
		fr := NewReader(r, limit)
		for _, n := range sizes {
			b, err := fr.Next()
			if err != nil || !bytes.Equal(b, payload(n)) {
				t.Fatalf("%s: frame of %d: got %d bytes, %v", name, n, len(b), err)
			}
		}
		if _, err := fr.Next(); err != io.EOF {
			t.Errorf("%s: at the end: %v", name, err)
		}
	}
}

// A frame that was cut anywhere is never delivered, and never a clean end.
func TestCutFrames(t *testing.T) {
	for _, n := range []int{0, 1, 127, 128, 5000} {
		whole := Append(nil, payload(n))
		for at := 1; at < len(whole); at++ {
			b, err := NewReader(bytes.NewReader(whole[:at]), limit).Next()
			if err != io.ErrUnexpectedEOF {
				t.Fatalf("frame of %d cut at %d: %d bytes, %v", n, at, len(b), err)
			}
		}
	}
}

func TestBadLengths(t *testing.T) {
	for _, c := range []struct {
		name  string
		bytes []byte
		want  error
	}{
		{"above the limit", protowire.AppendVarint(nil, limit+1), ErrTooLarge},
		{"five bytes", protowire.AppendVarint(nil, 1<<34), ErrTooLarge},
		{"six bytes", protowire.AppendVarint(nil, 1<<35), ErrMalformed},
		{"ten bytes", protowire.AppendVarint(nil, 1<<63), ErrMalformed},
		{"endless", bytes.Repeat([]byte{0x80}, 100), ErrMalformed},
		{"zero in two bytes", []byte{0x80, 0}, ErrMalformed},
		{"one in three bytes", []byte{0x81, 0x80, 0}, ErrMalformed},
	} {
		for name, r := range map[string]io.Reader{
			"whole":       bytes.NewReader(c.bytes),
			"byte a time": iotest.OneByteReader(bytes.NewReader(c.bytes)),
		} {
			if _, err := NewReader(r, limit).Next(); !errors.Is(err, c.want) {
				t.Errorf("%s, %s: %v, want %v", c.name, name, err, c.want)
			}
		}
	}
}

// allocated returns what f allocates: the least of some calls, as the runtime may
// allocate meanwhile.
func allocated(f func()) uint64 {
	least := uint64(math.MaxUint64)
	for range 5 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		f()
		runtime.ReadMemStats(&after)
		least = min(least, after.TotalAlloc-before.TotalAlloc)
	}
	return least
}

// What a frame announces costs nothing until it comes.
func TestAnnouncedLengthsAllocateNothing(t *testing.T) {
	for _, c := range []struct {
		name   string
		length uint64
		come   int
		most   uint64
	}{
		{"2^63", 1 << 63, 0, defaultBuffer + 1<<10},
		{"above the limit", limit + 1, 0, defaultBuffer + 1<<10},
		{"the limit, nothing comes", limit, 0, firstRead + defaultBuffer + 4<<10},
		{"the limit, a quarter comes", limit, limit / 4, limit + defaultBuffer},
	} {
		stream := append(protowire.AppendVarint(nil, c.length), make([]byte, c.come)...)
		n := allocated(func() {
			r := NewReader(bytes.NewReader(stream), limit)
			if _, err := r.Next(); err == nil {
				t.Errorf("%s: no error", c.name)
			}
		})
		if n > c.most {
			t.Errorf("%s: %d bytes allocated, want at most %d", c.name, n, c.most)
		}
	}
}

// A large frame's memory is given up when the next one is asked for.
func TestLargeFramesAreNotKept(t *testing.T) {
	r := NewReader(bytes.NewReader(append(Append(nil, payload(limit)), Append(nil, payload(1))...)), limit)
	for range 2 {
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
	}
	if cap(r.big) > firstRead {
		t.Errorf("%d bytes kept", cap(r.big))
	}
}

// A frame that was taken stays as it is, whatever comes after it. Only those
// that do not fit into the buffer can be; and appending to one copies it.
func TestTakenFramesMayBeKept(t *testing.T) {
	var stream []byte
	for range 3 {
		for _, n := range sizes {
			stream = Append(stream, payload(n))
		}
	}
	for _, most := range []int{0, 32 << 10} {
		r := NewReader(iotest.HalfReader(bytes.NewReader(stream)), limit)
		r.SetBuffer(most)
		var again []byte
		var kept [][]byte
		for {
			b, err := r.Next()
			if err == io.EOF {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			taken := r.Detach()
			if want := len(Append(nil, b)) > max(most, defaultBuffer); taken != want {
				t.Fatalf("a frame of %d taken: %v", len(b), taken)
			}
			if r.Detach() {
				t.Fatal("taken twice")
			}
			if !taken {
				b = bytes.Clone(b)
			}
			kept = append(kept, b)
			_ = append(b, 0xff)
		}
		for _, b := range kept {
			again = Append(again, b)
		}
		if !bytes.Equal(again, stream) {
			t.Error("the frames have changed")
		}
	}
}

// The buffer grows to what was allowed while much comes, and shrinks when
// little does, also in the middle of a frame.
func TestBufferFollowsWhatComes(t *testing.T) {
	feed := &feeder{}
	r := NewReader(feed, limit)
	r.SetBuffer(32 << 10)
	next := func(n int) {
		t.Helper()
		if b, err := r.Next(); err != nil || !bytes.Equal(b, payload(n)) {
			t.Fatalf("frame of %d: %d bytes, %v", n, len(b), err)
		}
	}
	feed.bytes = bytes.Repeat(Append(nil, payload(100)), 10_000)
	for range 10_000 {
		next(100)
	}
	if len(r.buf) != 32<<10 {
		t.Errorf("a buffer of %d bytes after much", len(r.buf))
	}
	for range 10 * shrinkAfter {
		feed.bytes = Append(nil, payload(100))
		next(100)
	}
	if len(r.buf) != defaultBuffer {
		t.Errorf("a buffer of %d bytes after little", len(r.buf))
	}
	for _, n := range []int{20 << 10, 31 << 10} {
		feed.bytes, feed.most = Append(nil, payload(n)), 10 // in many small reads
		next(n)
		feed.bytes = Append(nil, payload(5))
		next(5)
	}
}

// feeder returns at most so many of its bytes with a read, 0 for all.
type feeder struct {
	bytes []byte
	most  int
}

func (f *feeder) Read(p []byte) (int, error) {
	if f.most > 0 {
		p = p[:min(len(p), f.most)]
	}
	n := copy(p, f.bytes)
	f.bytes = f.bytes[n:]
	return n, nil
}

// A reader that returns nothing and no error does not hang us.
func TestNoProgress(t *testing.T) {
	if _, err := NewReader(nothing{}, limit).Next(); err != io.ErrNoProgress {
		t.Error(err)
	}
}

type nothing struct{}

func (nothing) Read([]byte) (int, error) { return 0, nil }

func TestSmallFramesAreNotAllocated(t *testing.T) {
	r := NewReader(bytes.NewReader(bytes.Repeat(Append(nil, payload(100)), 2000)), limit)
	if n := testing.AllocsPerRun(1000, func() { r.Next() }); n != 0 {
		t.Errorf("%v allocations a frame", n)
	}
}

func TestSetLimit(t *testing.T) {
	r := NewReader(bytes.NewReader(bytes.Repeat(Append(nil, payload(100)), 2)), 100)
	if _, err := r.Next(); err != nil {
		t.Fatal(err)
	}
	r.SetLimit(99)
	if _, err := r.Next(); !errors.Is(err, ErrTooLarge) {
		t.Error(err)
	}
}

func TestBuffered(t *testing.T) {
	two := append(Append(nil, payload(10)), Append(nil, payload(20))...)
	r := NewReader(bytes.NewReader(two), limit)
	r.Next()
	if n := r.Buffered(); n != 21 {
		t.Errorf("%d bytes buffered beside the frame, want 21", n)
	}
}

// A frame has its time from the first byte to the last, and that however
// slowly it drips; between frames there is no limit.
func TestTimeout(t *testing.T) {
	for _, size := range []int{10, 300, 100 << 10} {
		bubble.Test(t, func(t *testing.T) {
			theirs, ours := net.Pipe()
			defer ours.Close()
			r := NewReader(ours, limit)
			r.SetTimeout(ours, 10*time.Second)

			frame := Append(nil, payload(size))
			var sender sync.WaitGroup
			defer sender.Wait()
			defer theirs.Close()
			sender.Go(func() {
				time.Sleep(time.Hour) // idle before
				theirs.Write(frame[:1])
				time.Sleep(9 * time.Second) // slow, but in time
				theirs.Write(frame[1:])
				time.Sleep(time.Hour) // idle between
				for _, c := range frame {
					if _, err := theirs.Write([]byte{c}); err != nil {
						return
					}
					time.Sleep(3 * time.Second)
				}
			})
			start := time.Now()
			b, err := r.Next()
			if err != nil || len(b) != size {
				t.Fatalf("slow frame: %d bytes, %v", len(b), err)
			}
			_, err = r.Next()
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("dripping frame: %v", err)
			}
			if d, want := time.Since(start), 2*time.Hour+19*time.Second; d != want {
				t.Errorf("it was cut after %v, want %v", d, want)
			}
		})
	}
}

func TestFields(t *testing.T) {
	var b []byte
	b = AppendUint(b, 1, 300)
	b = AppendUint(b, 2, 0) // left out
	b = AppendBytes(b, 3, "text")
	b = AppendBytes(b, 4, "") // left out
	b = AppendMessage(b, 5, []byte(nil))
	b = AppendMessage(b, 200, payload(200))
	b = protowire.AppendFixed32(protowire.AppendTag(b, 6, protowire.Fixed32Type), 32)
	b = protowire.AppendFixed64(protowire.AppendTag(b, 7, protowire.Fixed64Type), 64)
	want := []Field{
		{Num: 1, Type: protowire.VarintType, Uint: 300},
		{Num: 3, Type: protowire.BytesType, Bytes: []byte("text")},
		{Num: 5, Type: protowire.BytesType},
		{Num: 200, Type: protowire.BytesType, Bytes: payload(200)},
		{Num: 6, Type: protowire.Fixed32Type, Uint: 32},
		{Num: 7, Type: protowire.Fixed64Type, Uint: 64},
	}
	i := 0
	for f, err := range Fields(b) {
		if err != nil {
			t.Fatal(err)
		}
		if w := want[i]; f.Num != w.Num || f.Type != w.Type || f.Uint != w.Uint || !bytes.Equal(f.Bytes, w.Bytes) {
			t.Errorf("field %d: %v, want %v", i, f, w)
		}
		i++
	}
	if i != len(want) {
		t.Errorf("%d fields, want %d", i, len(want))
	}
}

func TestBadFields(t *testing.T) {
	for name, b := range map[string][]byte{
		"tag cut":            {0x80},
		"field number 0":     {0x00, 0x00},
		"bytes field 0":      {0x02, 0x00},
		"varint cut":         {0x08, 0x80},
		"fixed32 cut":        {0x0d, 1, 2, 3},
		"fixed64 cut":        {0x09, 1},
		"bytes without size": {0x0a},
		"bytes cut":          {0x0a, 2, 1},
		"long bytes cut":     {0x0a, 0x80, 1, 1},
		"group":              {0x0b, 0x0c},
		"type 7":             {0x0f},
	} {
		var got error
		for _, err := range Fields(append(AppendUint(nil, 1, 1), b...)) {
			got = err
		}
		if !errors.Is(got, ErrMalformed) {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// FuzzReader reads whatever comes: no panic, no memory beyond what came, and
// every frame that is returned is the one that was announced.
func FuzzReader(f *testing.F) {
	f.Add([]byte{})
	f.Add(Append(Append(nil, payload(3)), payload(200)))
	f.Add(protowire.AppendVarint(nil, 1<<63))
	f.Add([]byte{0x80, 0})
	f.Add(append(protowire.AppendVarint(nil, 1<<20), payload(5000)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, r := range []io.Reader{bytes.NewReader(b), iotest.OneByteReader(bytes.NewReader(b))} {
			fr := NewReader(r, 1<<20)
			if len(b)%2 == 0 {
				fr.SetBuffer(16 << 10)
			}
			rest := b
			for {
				got, err := fr.Next()
				if err != nil {
					if err == io.EOF && len(rest) > 0 {
						t.Fatalf("clean end with %d bytes left", len(rest))
					}
					break
				}
				want := Append(nil, got)
				if !bytes.HasPrefix(rest, want) {
					t.Fatalf("a frame that did not come: %x of %x", want, rest)
				}
				rest = rest[len(want):]
				for _, err := range Fields(got) {
					if err != nil && !errors.Is(err, ErrMalformed) {
						t.Fatal(err)
					}
				}
			}
			if cap(fr.big) > 2*len(b)+firstRead {
				t.Fatalf("%d bytes held for %d", cap(fr.big), len(b))
			}
		}
	})
}
