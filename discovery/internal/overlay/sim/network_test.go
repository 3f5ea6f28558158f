package sim

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/discovery/internal/overlay"
)

// A probe is a machine whose outputs are set by a test, and that remembers its inputs.
type probe struct {
	w     *World
	out   []overlay.Output
	heard []heard
}

type heard struct {
	at time.Duration
	in overlay.Input
}

func (p *probe) Next(time.Time) time.Time { return time.Time{} }

func (p *probe) Step(_ time.Time, in overlay.Input) []overlay.Output {
	switch in.(type) {
	case overlay.Tick, overlay.RecordRenewed:
	default:
		p.heard = append(p.heard, heard{p.w.Now(), in})
	}
	out := p.out
	p.out = nil
	return out
}

// probes returns a world of n probes, which have started.
func probes(t *testing.T, n int) *World {
	t.Helper()
	var w *World
	w = New(Rules{Name: "probe", New: func(peer.ID, uint64, []peer.ID, *rand.Rand) Membership { return &probe{w: w} }}, 1)
	for range n {
		w.Add(0)
	}
	w.Run(time.Millisecond)
	return w
}

func (w *World) probe(i int32) *probe { return w.nodes[i].machine.(*probe) }

// emit lets a node emit outputs.
func (w *World) emit(i int32, out ...overlay.Output) {
	w.probe(i).out = out
	w.step(w.nodes[i], overlay.Tick{})
}

// sendNumber lets a node send a message that carries a number.
func (w *World) sendNumber(from, to int32, number int) {
	w.emit(from, overlay.Send{To: overlay.Contact{ID: w.nodes[to].id}, Message: overlay.Keepalive{Degree: number}})
}

// numbers returns the numbers that a node has received.
func (w *World) numbers(i int32) (list []int) {
	for _, h := range w.probe(i).heard {
		if r, ok := h.in.(overlay.Received); ok {
			list = append(list, r.Message.(overlay.Keepalive).Degree)
		}
	}
	return list
}

// onlyInput returns the one input of its type that a node got, and its time.
func onlyInput[T overlay.Input](t *testing.T, w *World, i int32) (in T, at time.Duration) {
	t.Helper()
	count := 0
	for _, h := range w.probe(i).heard {
		if x, ok := h.in.(T); ok {
			in, at = x, h.at
			count++
		}
	}
	if count != 1 {
		t.Fatalf("node %d had %d inputs of type %T, want one: %v", i, count, in, w.probe(i).heard)
	}
	return in, at
}

func within(t *testing.T, what string, got, low, high time.Duration) {
	t.Helper()
	if got < low || got > high {
		t.Errorf("%s after %v, want %v to %v", what, got, low, high)
	}
}

// A message to a node without a connection takes two round trips and its own latency; the
// next one takes only its latency.
func TestFirstMessageDials(t *testing.T) {
	w := probes(t, 2)
	begin := w.Now()
	w.sendNumber(0, 1, 1)
	w.Run(time.Second)
	_, at := onlyInput[overlay.Received](t, w, 1)
	way := w.latency(0, 1)
	within(t, "the first message arrives", at-begin, 4*way, 6*way)
	w.probe(1).heard = nil
	begin = w.Now()
	w.sendNumber(1, 0, 2) // over the same connection
	w.Run(time.Second)
	_, at = onlyInput[overlay.Received](t, w, 0)
	within(t, "the answer arrives", at-begin, way*9/11, way*11/9)
	if w.Dials != 1 {
		t.Errorf("%d dials, want one", w.Dials)
	}
}

// A dial to a crashed node is refused at once. A dial to a node that is silent, cut off,
// asleep or undialable fails after five seconds.
func TestFailedDialTakesItsTime(t *testing.T) {
	for name, fault := range map[string]func(w *World){
		"crashed":    func(w *World) { w.Crash(1) },
		"silent":     func(w *World) { w.Silence(1) },
		"undialable": func(w *World) { w.Undialable(1) },
		"asleep":     func(w *World) { w.Sleep(1) },
		"cut off":    func(w *World) { w.Split(func(i int32) int8 { return int8(i) }) },
	} {
		w := probes(t, 2)
		fault(w)
		begin := w.Now()
		w.sendNumber(0, 1, 1)
		w.Run(10 * time.Second)
		_, at := onlyInput[overlay.Unreachable](t, w, 0)
		if name == "crashed" {
			within(t, name, at-begin, 2*minLatency, 2*(minLatency+maxLatency))
		} else {
			within(t, name, at-begin, dialTimeout, dialTimeout)
		}
	}
}

// At most 24 dials are under way, and the dial of a seed comes beside them.
func TestDialsAreBounded(t *testing.T) {
	const last, seed = overlay.MaxDials + 2, overlay.MaxDials + 3
	w := probes(t, seed+1)
	for i := int32(1); i < last; i++ {
		w.Silence(i)
		w.sendNumber(0, i, 1)
	}
	w.sendNumber(0, last, 1)
	w.nodes[0].seeds = []int32{seed}
	w.emit(0, overlay.AskSeed{})
	w.Run(4 * time.Second)
	if w.Dials != overlay.MaxDials+1 {
		t.Errorf("%d dials at once, want %d and that of a seed", w.Dials, overlay.MaxDials)
	}
	onlyInput[overlay.SeedFound](t, w, 0)
	w.Run(2 * time.Second)
	if got := w.numbers(last); len(got) != 1 {
		t.Errorf("the dial that waited brought %v", got)
	}
}

// A node that cannot be dialed gets messages over the connection that it dials, even
// those for which a dial to it is under way.
func TestUndialableNodeIsReachedOverItsOwnDial(t *testing.T) {
	w := probes(t, 2)
	w.Undialable(1)
	w.sendNumber(0, 1, 1)
	w.Run(time.Second)
	w.sendNumber(1, 0, 2)
	w.Run(time.Second)
	if got := w.numbers(1); !slices.Equal(got, []int{1}) {
		t.Errorf("received %v", got)
	}
	w.Run(10 * time.Second)
	for _, h := range w.probe(0).heard {
		if _, ok := h.in.(overlay.Unreachable); ok {
			t.Error("the dial was reported as failed")
		}
	}
}

// Streams keep their order, even if messages have to be sent again.
func TestStreamsKeepOrder(t *testing.T) {
	w := probes(t, 2)
	w.Loss = 0.2
	var want []int
	for i := range 200 {
		w.sendNumber(0, 1, i)
		w.Run(time.Millisecond)
		want = append(want, i)
	}
	w.Run(time.Minute)
	if got := w.numbers(1); !slices.Equal(got, want) {
		t.Errorf("received %v", got)
	}
}

// A crash resets the connections.
func TestCrashResetsConnections(t *testing.T) {
	w := probes(t, 2)
	w.sendNumber(0, 1, 1)
	w.Run(time.Second)
	begin := w.Now()
	w.Crash(1)
	w.Run(time.Minute)
	_, at := onlyInput[overlay.Disconnected](t, w, 0)
	within(t, "the crash is noticed", at-begin, minLatency, maxLatency*11/10)
}

// A silent death is noticed when the transport gives up.
func TestSilenceIsNoticedLate(t *testing.T) {
	w := probes(t, 2)
	w.sendNumber(0, 1, 1)
	w.Run(time.Second)
	begin := w.Now()
	w.Silence(1)
	w.sendNumber(0, 1, 2)
	w.Run(time.Minute)
	_, at := onlyInput[overlay.Disconnected](t, w, 0)
	within(t, "the silence is noticed", at-begin, minConnTimeout, minConnTimeout+connTimeoutJitter)
}

// A machine that was restarted resets its old connections.
func TestRestartedMachineResets(t *testing.T) {
	w := probes(t, 2)
	w.sendNumber(0, 1, 1)
	w.Run(time.Second)
	w.Silence(1)
	w.Start(1, time.Second)
	w.Run(2 * time.Second)
	w.sendNumber(0, 1, 2)
	w.Run(time.Second)
	onlyInput[overlay.Disconnected](t, w, 0)
	if got := w.numbers(1); len(got) != 0 {
		t.Errorf("received %v over a connection of an earlier life", got)
	}
}

// Connections survive a short cut, and messages of that time arrive late and in order. A
// long cut ends them at both ends.
func TestLongCutEndsConnections(t *testing.T) {
	for _, cut := range []time.Duration{3 * time.Second, time.Minute} {
		w := probes(t, 2)
		w.sendNumber(0, 1, 1)
		w.Run(time.Second)
		w.Split(func(i int32) int8 { return int8(i) })
		for i := range 5 {
			w.sendNumber(0, 1, 2+i)
			w.Run(100 * time.Millisecond)
		}
		w.Run(cut)
		if got := w.numbers(1); !slices.Equal(got, []int{1}) {
			t.Fatalf("%v crossed the cut", got)
		}
		w.Heal()
		w.Run(time.Minute)
		if cut < minConnTimeout {
			if got := w.numbers(1); !slices.Equal(got, []int{1, 2, 3, 4, 5, 6}) {
				t.Errorf("after a short cut received %v", got)
			}
			continue
		}
		if got := w.numbers(1); !slices.Equal(got, []int{1}) {
			t.Errorf("after a long cut received %v", got)
		}
		onlyInput[overlay.Disconnected](t, w, 0)
		onlyInput[overlay.Disconnected](t, w, 1)
	}
}

// Messages to a sleeping node wait, and the node hears that it has slept before it gets
// them.
func TestMessagesWaitForASleepingNode(t *testing.T) {
	w := probes(t, 2)
	w.sendNumber(0, 1, 1)
	w.Run(time.Second)
	w.probe(1).heard = nil
	w.Sleep(1)
	w.sendNumber(0, 1, 2)
	w.sendNumber(0, 1, 3)
	w.Run(time.Minute)
	if got := w.probe(1).heard; len(got) != 0 {
		t.Fatalf("heard %v in its sleep", got)
	}
	w.Wake(1)
	if _, ok := w.probe(1).heard[0].in.(overlay.Woke); !ok {
		t.Errorf("heard %v first", w.probe(1).heard[0])
	}
	if got := w.numbers(1); !slices.Equal(got, []int{2, 3}) {
		t.Errorf("received %v", got)
	}
}

// A slow node handles its messages late, all at once, and in order.
func TestSlowNodeIsLate(t *testing.T) {
	w := probes(t, 2)
	w.Slow(1, time.Second)
	var latest time.Duration
	for i := range 300 {
		begin := w.Now()
		w.sendNumber(0, 1, i)
		w.Run(10 * time.Millisecond)
		for len(w.numbers(1)) <= i && w.Now() < begin+3*time.Second {
			w.Run(10 * time.Millisecond)
		}
		latest = max(latest, w.Now()-begin)
	}
	within(t, "the slowest message is read", latest, 500*time.Millisecond, 1300*time.Millisecond)
	if got := w.numbers(1); len(got) != 300 || !slices.IsSorted(got) {
		t.Errorf("received %v", got)
	}
}

// Two nodes see each other on the topic once both have admitted the other, until one of
// them ends it.
func TestTopicNeedsBothSides(t *testing.T) {
	w := probes(t, 2)
	a, b := w.nodes[0].id, w.nodes[1].id
	w.sendNumber(0, 1, 1)
	w.Run(time.Second)
	w.emit(0, overlay.Pending{Peer: b})
	w.emit(0, overlay.Probe{Peer: b})
	w.Run(time.Second)
	if got := w.probe(0).heard; len(got) != 0 {
		t.Fatalf("heard %v though the other has not let it in", got)
	}
	w.emit(1, overlay.Pending{Peer: a})
	w.Run(time.Second)
	for i := range int32(2) {
		if in, _ := onlyInput[overlay.OnTopic](t, w, i); !in.Present {
			t.Errorf("node %d heard %v", i, in)
		}
		w.probe(i).heard = nil
	}
	w.emit(0, overlay.Probe{Peer: b})
	if in, _ := onlyInput[overlay.OnTopic](t, w, 0); !in.Present {
		t.Errorf("the probe found %v", in)
	}
	w.emit(0, overlay.Unlinked{Peer: b})
	w.Run(time.Second)
	if in, _ := onlyInput[overlay.OnTopic](t, w, 1); in.Present {
		t.Errorf("heard %v after the door was closed", in)
	}
}

// Beyond 192 connections the oldest ones that no link needs are closed, if they are a
// minute old.
func TestTooManyConnectionsAreTrimmed(t *testing.T) {
	w := probes(t, 195)
	w.emit(0, overlay.Pending{Peer: w.nodes[1].id})
	for i := int32(1); i < 195; i++ {
		w.sendNumber(0, i, 1)
		w.Run(time.Second)
	}
	if got := len(w.nodes[0].conns); got > highWater || got < lowWater {
		t.Errorf("%d connections", got)
	}
	if w.nodes[0].conn(1) == nil {
		t.Error("the connection of a link was closed")
	}
	onlyInput[overlay.Disconnected](t, w, 2)
}
