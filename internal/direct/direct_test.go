package direct

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/errs"
	"github.com/go-smokesignal/smokesignal/internal/event"
	"github.com/go-smokesignal/smokesignal/internal/eventtest"
	"github.com/go-smokesignal/smokesignal/internal/hosttest"
)

// transports are those on which the tests run.
var transports = []struct{ name, listen string }{
	{"tcp", "/ip4/127.0.0.1/tcp/0"},
	{"quic", "/ip4/127.0.0.1/udp/0/quic-v1"},
}

// overTransports runs f on each transport.
func overTransports(t *testing.T, f func(t *testing.T, listen string)) {
	for _, tr := range transports {
		t.Run(tr.name, func(t *testing.T) { f(t, tr.listen) })
	}
}

const tcp = "/ip4/127.0.0.1/tcp/0"

// patience is how long a test waits for what has to happen.
const patience = 30 * time.Second

// newHost returns a host that closes with the test.
func newHost(t testing.TB, listen string) corehost.Host {
	t.Helper()
	h, err := libp2p.New(libp2p.ListenAddrStrings(listen), libp2p.DisableRelay(), libp2p.Ping(false), libp2p.DisableMetrics())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

// newDirect returns a started Direct that closes with the test.
func newDirect(t testing.TB, h corehost.Host, cfg Config) *Direct {
	t.Helper()
	d := New(h, cfg)
	d.Start()
	t.Cleanup(func() { closeDirect(t, d) })
	return d
}

func closeDirect(t testing.TB, d *Direct) {
	t.Helper()
	if err := d.Close(context.WithoutCancel(t.Context())); err != nil {
		t.Error(err)
	}
}

// pair returns two connected Directs.
func pair(t testing.TB, listen string, cfg Config) (a, b *Direct) {
	t.Helper()
	ha, hb := newHost(t, listen), newHost(t, listen)
	hosttest.Connect(t, ha, hb)
	return newDirect(t, ha, cfg), newDirect(t, hb, cfg)
}

func (d *Direct) id() peer.ID { return d.host.ID() }

// emit emits and expects no error.
func emit(t testing.TB, from *Direct, to peer.ID, name string, args ...any) {
	t.Helper()
	if err := from.Emit(t.Context(), to, name, args...); err != nil {
		t.Error(err)
	}
}

// describe returns the name and the arguments of an event as text.
func describe(ev *event.Event) string {
	args := make([]any, ev.Len())
	ptrs := make([]any, ev.Len())
	for i := range args {
		ptrs[i] = &args[i]
	}
	if err := ev.Decode(ptrs...); err != nil {
		return err.Error()
	}
	return fmt.Sprint(append([]any{ev.Name}, args...)...)
}

// collect returns a channel of descriptions of all events that arrive.
func collect(d *Direct) <-chan string {
	c := make(chan string, 1000)
	d.On("*", func(_ context.Context, ev *event.Event) { c <- describe(ev) })
	return c
}

// faults returns the sum of the counters.
func faults(stats map[string]uint64) (n uint64) {
	for _, v := range stats {
		n += v
	}
	return n
}

func read(t *testing.T, r io.Reader, want string) {
	t.Helper()
	b := make([]byte, 100)
	n, err := r.Read(b)
	if err != nil || string(b[:n]) != want {
		t.Errorf("read %q, %v, want %q", b[:n], err, want)
	}
}

func want(t testing.TB, c <-chan string, want string) {
	t.Helper()
	select {
	case got := <-c:
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	case <-time.After(patience):
		t.Fatalf("nothing came, want %q", want)
	}
}

// The original passed all arguments as one array, lost every direct event, and
// crashed the receiver of one without arguments (its bugs 1, 2 and 3).
func TestArgumentsArriveOneByOne(t *testing.T) {
	overTransports(t, func(t *testing.T, listen string) {
		a, b := pair(t, listen, Config{})
		got := make(chan string, 2)
		b.On("move", func(_ context.Context, ev *event.Event) {
			var x, y int
			err := ev.Decode(&x, &y)
			got <- fmt.Sprint(ev.From == a.id(), ev.Len(), x, y, err)
		})
		b.On("bare", func(_ context.Context, ev *event.Event) { got <- fmt.Sprint("bare", ev.Len()) })
		emit(t, a, b.id(), "move", 3, 4)
		emit(t, a, b.id(), "bare")
		want(t, got, "true 2 3 4 <nil>")
		want(t, got, "bare0")
	})
}

// An event named "error" crashed every node of the original that did not
// listen to it (its bug 14). Here it is an event like any other.
func TestErrorIsAnOrdinaryEvent(t *testing.T) {
	a, b := pair(t, tcp, Config{})
	emit(t, a, b.id(), "error", "nobody listens")
	got := collect(b)
	emit(t, a, b.id(), "error", "now somebody does")
	emit(t, a, b.id(), "after")
	// The first may have come before or after the handler was there.
	s := <-got
	if s == "errornobody listens" {
		s = <-got
	}
	if s != "errornow somebody does" {
		t.Error(s)
	}
	want(t, got, "after")
}

// Nodes of the original in one process shared their listeners, and so did all
// peers of one node (its bug 18).
func TestNodesOfOneProcessShareNothing(t *testing.T) {
	a, b := pair(t, tcp, Config{})
	c := newDirect(t, newHost(t, tcp), Config{})
	hosttest.Connect(t, c.host, a.host)
	atA, atB, atC := collect(a), collect(b), collect(c)
	fromB, fromC := make(chan string, 9), make(chan string, 9)
	a.OnFrom(b.id(), "*", func(_ context.Context, ev *event.Event) { fromB <- describe(ev) })
	a.OnFrom(c.id(), "x", func(_ context.Context, ev *event.Event) { fromC <- describe(ev) })
	emit(t, b, a.id(), "x", "from b")
	want(t, atA, "xfrom b")
	want(t, fromB, "xfrom b")
	emit(t, c, a.id(), "x", "from c")
	want(t, atA, "xfrom c")
	want(t, fromC, "xfrom c")
	if len(atA)+len(atB)+len(atC)+len(fromB)+len(fromC) != 0 {
		t.Error("somebody heard what was not for him")
	}
}

// numbers is the argument of the events in the order tests: the emitter and its count.
type numbers struct{ Who, N int }

// Events of many emitters arrive without loss, in the order of each emitter.
func TestOrderAndNoLoss(t *testing.T) {
	t.Parallel()
	total := 100_000
	if testing.Short() {
		total = 10_000
	}
	overTransports(t, func(t *testing.T, listen string) {
		for _, emitters := range []int{1, 8} {
			t.Run(fmt.Sprintf("%d emitters", emitters), func(t *testing.T) {
				a, b := pair(t, listen, Config{})
				next := make([]int, emitters)
				left := total
				done := make(chan struct{})
				// Two names, as order holds across names.
				handle := func(_ context.Context, _ peer.ID, v numbers) {
					if next[v.Who] != v.N {
						t.Errorf("emitter %d: event %d came when %d was due", v.Who, v.N, next[v.Who])
					}
					next[v.Who] = v.N + 1
					if left--; left == 0 {
						close(done)
					}
				}
				names := []Name[numbers]{"even", "odd"}
				names[0].On(b, handle)
				names[1].On(b, handle)
				var wg sync.WaitGroup
				for who := range emitters {
					wg.Go(func() {
						to := emitterTo{a, b.id()}
						for n := range total / emitters {
							if err := names[n%2].Emit(t.Context(), to, numbers{who, n}); err != nil {
								t.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
				<-done
				if s := a.Stats(); faults(s) > 0 {
					t.Errorf("%+v", s)
				}
			})
		}
	})
}

// emitterTo is one peer's Emitter.
type emitterTo struct {
	*Direct
	to peer.ID
}

func (e emitterTo) Emit(ctx context.Context, name string, args ...any) error {
	return e.Direct.Emit(ctx, e.to, name, args...)
}

// The arguments are encoded during Emit, so the caller may reuse them afterwards.
func TestArgumentsMayBeReusedAfterEmit(t *testing.T) {
	a, b := pair(t, tcp, Config{})
	got := collect(b)
	raw, list := []byte("0"), []int{0}
	for i := range 100 {
		raw[0], list[0] = byte('0'+i%10), i
		emit(t, a, b.id(), "e", raw, list)
	}
	for i := range 100 {
		want(t, got, fmt.Sprint("e", []byte{byte('0' + i%10)}, []any{float64(i)}))
	}
}

// The handlers of one peer run one after the other, those of different peers at the same
// time, and none on the goroutine of Emit.
func TestHandlersRunInTurnForEachPeer(t *testing.T) {
	a, b := pair(t, tcp, Config{})
	c := newDirect(t, newHost(t, tcp), Config{})
	hosttest.Connect(t, c.host, b.host)
	both := make(chan struct{}, 2)
	meet := make(chan struct{})
	b.On("meet", func(context.Context, *event.Event) {
		both <- struct{}{}
		<-meet
	})
	emit(t, a, b.id(), "meet") // returns though the handler does not
	emit(t, c, b.id(), "meet")
	<-both
	<-both // two senders: both handlers run
	var at atomic.Int32
	done := make(chan struct{})
	one := func(context.Context, *event.Event) {
		if at.Add(1) != 1 {
			t.Error("two handlers of one peer at once")
		}
		at.Add(-1)
	}
	b.On("x", one)
	b.On("y", one)
	b.On("end", func(context.Context, *event.Event) { close(done) })
	close(meet)
	for range 1000 {
		emit(t, a, b.id(), "x")
		emit(t, a, b.id(), "y")
	}
	emit(t, a, b.id(), "end")
	<-done
}

// A handler may call On, off and Emit, and a panic in it ends neither the stream nor other
// handlers.
func TestHandlersMayEmitAndChangeHandlers(t *testing.T) {
	a, b := pair(t, tcp, Config{})
	atA, atB := collect(a), make(chan string, 9)
	var off func()
	off = b.On("once", func(ctx context.Context, ev *event.Event) {
		off()
		b.On("again", func(context.Context, *event.Event) { atB <- "again" })
		if err := b.Emit(ctx, ev.From, "answer"); err != nil {
			t.Error(err)
		}
		panic("a handler's own fault")
	})
	emit(t, a, b.id(), "once")
	want(t, atA, "answer")
	emit(t, a, b.id(), "once")
	emit(t, a, b.id(), "again")
	want(t, atB, "again")
	if s := b.Stats(); s["panics"] != 1 || s["unhandled"] != 1 {
		t.Errorf("%+v", s)
	}
}

// A handler that ends its goroutine, as t.FailNow does, ends the stream; the next events
// arrive on another stream.
func TestHandlerMayEndItsGoroutine(t *testing.T) {
	a, b := pair(t, tcp, Config{})
	var got atomic.Bool
	gone := make(chan struct{})
	b.On("exit", func(context.Context, *event.Event) {
		defer close(gone)
		runtime.Goexit()
	})
	b.On("x", func(context.Context, *event.Event) { got.Store(true) })
	emit(t, a, b.id(), "exit")
	<-gone
	for !got.Load() { // what is written to the broken stream is lost
		emit(t, a, b.id(), "x")
	}
	waitFor(t, func() bool { // libp2p has forgotten the stream, too
		n, _ := left(b.host)
		return n <= 1
	})
}

// An event and its bytes stay valid after the handler has returned.
func TestEventsMayBeStoredByHandlers(t *testing.T) {
	a, b := pair(t, tcp, Config{})
	const n = 1000
	kept, raw := make([]*event.Event, 0, n), make([][]byte, 0, n)
	done := make(chan struct{})
	b.On("*", func(_ context.Context, ev *event.Event) {
		kept = append(kept, ev)
		p, _ := ev.Bytes(1)
		if raw = append(raw, p); len(raw) == n {
			close(done)
		}
	})
	bytes := func(i int) []byte { return []byte(strings.Repeat(string(rune('a'+i%26)), i)) }
	for i := range n { // up to what has an allocation of its own
		emit(t, a, b.id(), fmt.Sprint("e", i), i, bytes(i))
	}
	<-done
	for i, ev := range kept {
		var n int
		if err := ev.Decode(&n); err != nil || n != i || ev.Name != fmt.Sprint("e", i) || ev.From != a.id() || string(raw[i]) != string(bytes(i)) {
			t.Fatal(i, n, ev.Name, err)
		}
	}
}

// Each error of Emit can be matched with errors.Is and names the event or the peer; a
// refused event creates no queue.
func TestErrorsOfEmit(t *testing.T) {
	ha, hb := newHost(t, tcp), newHost(t, tcp)
	hosttest.Connect(t, ha, hb)
	a, b := New(ha, Config{MaxEventSize: 1000}), newDirect(t, hb, Config{})
	ctx, to := t.Context(), b.id()
	check := func(err, want error, texts ...string) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
			return
		}
		for _, text := range append(texts, to.String()) {
			if !strings.Contains(err.Error(), text) {
				t.Errorf("%q lacks %q", err, text)
			}
		}
		if strings.Count(err.Error(), "events: ") != 1 {
			t.Errorf("%q does not read as one line", err)
		}
	}
	check(a.Emit(ctx, to, "early"), errs.ErrNotStarted, `emit "early"`)
	a.Start()
	a.Start()
	check(a.Emit(ctx, to, "large", make([]byte, 1000)), event.ErrTooLarge, `emit "large"`)
	check(a.Emit(ctx, to, "a\nb", func() {}), event.ErrBadArgument, `emit "a\nb"`)
	check(a.Emit(ctx, to, "*"), event.ErrBadName)
	ended, cancel := context.WithCancel(ctx)
	cancel()
	check(a.Emit(ended, to, "x"), context.Canceled)
	if n := len(a.allQueues()); n != 0 {
		t.Errorf("%d lanes, though nothing was accepted", n)
	}
	to = newHost(t, tcp).ID() // nobody knows where
	check(a.Emit(ctx, to, "x"), ErrNotConnected)
	to = a.id()
	check(a.Emit(ctx, to, "x"), ErrNotConnected, "self")
	if n := len(a.allQueues()); n != 0 {
		t.Errorf("%d lanes to nobody", n)
	}
	closeDirect(t, a)
	a.Start() // does nothing
	check(a.Emit(ctx, to, "x"), errs.ErrClosed)
	closeDirect(t, a)
}

// Emit reports a peer that does not speak the protocol as not connected, though the hosts
// are connected.
func TestPeerWithoutTheProtocolIsNotConnected(t *testing.T) {
	overTransports(t, func(t *testing.T, listen string) {
		a := newDirect(t, newHost(t, listen), Config{})
		h := newHost(t, listen)
		hosttest.Connect(t, a.host, h)
		if err := a.Emit(t.Context(), h.ID(), "x"); !errors.Is(err, ErrNotConnected) || !strings.Contains(err.Error(), "protocol") {
			t.Error(err)
		}
	})
}

// The receiver checks the size of an event too, and an event of exactly the largest size
// passes.
func TestSizeIsCheckedAtTheReceiver(t *testing.T) {
	overTransports(t, func(t *testing.T, listen string) {
		a, b := pair(t, listen, Config{})
		got := make(chan int, 2)
		b.On("n", func(_ context.Context, ev *event.Event) {
			p, _ := ev.Bytes(0)
			got <- len(p)
		})
		most := event.DefaultMaxSize - (len(eventtest.Encoded(t, "n", make([]byte, 500<<10))) - 500<<10)
		emit(t, a, b.id(), "n", make([]byte, most))
		if n := <-got; n != most {
			t.Error(n)
		}
		if err := a.Emit(t.Context(), b.id(), "n", make([]byte, most+1)); !errors.Is(err, event.ErrTooLarge) {
			t.Error(err)
		}
	})
}

// Events wait until Admit has accepted their sender; when it refuses, they are counted as
// unwritten and the next Emit returns ErrRefused.
func TestAdmitDecidesBeforeEventsAreRead(t *testing.T) {
	ha, hb := newHost(t, tcp), newHost(t, tcp)
	hosttest.Connect(t, ha, hb)
	a := newDirect(t, ha, Config{})
	asked, answer := make(chan peer.ID, 1), make(chan error)
	b := newDirect(t, hb, Config{Admit: func(ctx context.Context, p peer.ID) error {
		asked <- p
		return <-answer
	}})
	got := collect(b)
	for i := range 10 {
		emit(t, a, b.id(), "x", i)
	}
	if p := <-asked; p != a.id() {
		t.Error("asked for", p)
	}
	if len(got) != 0 {
		t.Error("an event was read before the peer was admitted")
	}
	answer <- nil
	for i := range 10 {
		want(t, got, fmt.Sprint("x", i))
	}

	// Refused: nobody reads what was accepted, so it counts as unwritten, and
	// the next Emit says why.
	if n := a.Release(b.id(), nil); n != 0 {
		t.Errorf("%d events unwritten", n)
	}
	emit(t, a, b.id(), "y")
	emit(t, a, b.id(), "y")
	<-asked
	answer <- errors.New("not linked")
	var err error
	for err == nil {
		err = a.Emit(t.Context(), b.id(), "y")
	}
	if !errors.Is(err, ErrRefused) || !errors.Is(err, ErrNotConnected) {
		t.Error(err)
	}
	if n := a.Release(b.id(), nil); n < 2 || uint64(n) != a.Stats()["unwritten"] {
		t.Errorf("%d events unwritten, %+v", n, a.Stats())
	}
	if s := b.Stats(); s["refused"] != 1 {
		t.Errorf("%+v", s)
	}
	select {
	case s := <-got:
		t.Error("a refused event arrived:", s)
	default:
	}
}

// A peer of another network is refused, no event of it is delivered, and the refusal is
// remembered for a while.
func TestPeerOfAnotherNetworkIsRefused(t *testing.T) {
	overTransports(t, func(t *testing.T, listen string) {
		ha, hb := newHost(t, listen), newHost(t, listen)
		hosttest.Connect(t, ha, hb)
		a, b := newDirect(t, ha, Config{Network: "one"}), newDirect(t, hb, Config{Network: "two"})
		got := collect(b)
		sent := 0
		var err error
		for ; err == nil; sent++ { // the first may be accepted before the answer
			err = a.Emit(t.Context(), b.id(), "x")
		}
		sent--
		if !errors.Is(err, ErrOtherNetwork) || !errors.Is(err, ErrNotConnected) {
			t.Error(err)
		}
		// For a while it is remembered, and nothing more is accepted to be lost.
		waitFor(t, func() bool { return b.Stats()["refused"] > 0 })
		refused := b.Stats()["refused"]
		for range 100 {
			if err := a.Emit(t.Context(), b.id(), "x"); !errors.Is(err, ErrOtherNetwork) {
				t.Fatal(err)
			}
		}
		if n := b.Stats()["refused"]; n != refused {
			t.Errorf("asked %d times more", n-refused)
		}
		if n := a.Release(b.id(), nil); n != sent {
			t.Errorf("%d events counted unwritten, want %d", n, sent)
		}
		if len(got) != 0 {
			t.Error("an event of another network arrived")
		}
	})
}

// The bytes written to a pipe are read at the other end unchanged, until either end is
// closed.
func TestPipeCarriesBytesUnchanged(t *testing.T) {
	t.Parallel()
	overTransports(t, func(t *testing.T, listen string) {
		a, b := pair(t, listen, Config{})
		sa, sb := a.Pipe(b.id()), b.Pipe(a.id())
		const text = "what goes in here comes out there, "
		long := strings.Repeat(text, 50_000)
		go func() {
			io.Copy(sa, struct{ io.Reader }{strings.NewReader(long)}) // in writes of 32 KiB
			io.WriteString(sa, "end")
		}()
		b1 := make([]byte, len(long))
		if _, err := io.ReadFull(sb, b1); err != nil || string(b1) != long {
			t.Error("the stream changed on the way", err)
		}
		read(t, sb, "end")
		io.WriteString(sb, "back")
		read(t, sa, "back")
		sa.Close()
		if _, err := sa.Write([]byte("x")); !errors.Is(err, errs.ErrClosed) {
			t.Error(err)
		}
		closeDirect(t, b)
		if _, err := sb.Read(make([]byte, 1)); err != io.EOF {
			t.Error("a view of a closed node:", err)
		}
		if _, err := sb.Write([]byte("x")); !errors.Is(err, errs.ErrClosed) {
			t.Error("a view of a closed node:", err)
		}
		sb.Close()
	})
}

// Flush returns when all events are written, and written events arrive even if the sender
// closes.
func TestFlushedEventsArriveAfterClose(t *testing.T) {
	t.Parallel()
	a, b := pair(t, tcp, Config{})
	if err := a.Flush(t.Context()); err != nil {
		t.Error("nothing to flush:", err)
	}
	got := make(chan struct{}, 1000)
	b.On("x", func(context.Context, *event.Event) { got <- struct{}{} })
	for range 1000 {
		emit(t, a, b.id(), "x", "some text")
	}
	if err := a.Flush(t.Context()); err != nil {
		t.Error(err)
	}
	// What is written arrives, even if the sender closes.
	closeDirect(t, a)
	for range 1000 {
		<-got
	}
}
