package bench

import "fmt"

// The numbers of events in a round. Those of smokesignal are larger where it is
// so much faster that a burst of the others' size would be over in milliseconds.
const (
	pairBurst   = 200_000
	lineBurst   = 100_000
	graphBurst  = 50_000
	pubsubBurst = 10_000
	pubsubGraph = 2_000 // of twenty nodes
	streamBurst = 1_000_000
	loneEvents  = 600
	pings       = 3_000
)

// scale divides the numbers of events of a short run.
const scale = 100

// times is how many events a round has: few in a short run, enough to see that
// everything works.
type times func(count int) int

func counts(short bool) times {
	return func(n int) int {
		if short {
			return max(20, n/scale)
		}
		return n
	}
}

// Cases returns what the benchmarks compare. Short ones have a hundredth of the
// events, which says nothing about speed.
func Cases(short bool) []Case {
	n := counts(short)
	cases := []Case{
		broadcastCase("pair", "pair", line(2), 64, n(pairBurst), n(pubsubBurst),
			FloodsubRaised, FloodsubDefault, GossipsubDefault),
		broadcastCase("line5", "line of 5", line(5), 64, n(lineBurst), n(pubsubBurst),
			FloodsubRaised, FloodsubDefault, GossipsubDefault),
		broadcastCase("graph20", "20 nodes of degree 4", degree4(20), 64, n(graphBurst), n(pubsubGraph),
			FloodsubRaised, FloodsubDefault, GossipsubDefault),
		{
			Name: "JSON/pair", Text: "broadcast of a struct of two fields as JSON beside 64 B of raw bytes, pair",
			Kind: Burst, Yardstick: Smokesignal, Against: "raw",
			entrants: []entrant{
				broadcastEntrant(SmokesignalJSON, line(2), 0, n(pairBurst), false),
				broadcastEntrant(Smokesignal, line(2), 64, n(pairBurst), false),
			},
		},
		{
			Name: "Lone/pair/64B", Text: "lone broadcast of 64 B, one each 5 ms, idle pair",
			Kind: Latency, Yardstick: FloodsubDefault, Against: "floodsub",
			entrants: []entrant{
				broadcastEntrant(Smokesignal, line(2), 64, n(loneEvents), true),
				pubsubEntrant(FloodsubDefault, line(2), 64, n(loneEvents), true),
			},
		},
	}
	cases[0].entrants = append(cases[0].entrants, streamEntrant(tcp, 64, n(streamBurst)))
	for _, tr := range []struct{ name, text, listen string }{{"tcp", "TCP", tcp}, {"quic", "QUIC", quic}} {
		for _, size := range []int{64, 1 << 10} {
			// About as much time for every size and transport.
			count := n(streamBurst / max(1, size/200))
			cases = append(cases, Case{
				Name: fmt.Sprintf("Direct/%s/%s", tr.name, bytes(size, "")),
				Text: fmt.Sprintf("direct, %s, %s", tr.text, bytes(size, " ")),
				Kind: Burst, Yardstick: Stream, Against: "stream",
				entrants: []entrant{directEntrant(tr.listen, size, count), streamEntrant(tr.listen, size, count)},
			})
		}
	}
	return append(cases, Case{
		Name: "Call/tcp/64B", Text: "call of 64 B, one at a time, TCP",
		Kind: Latency, Yardstick: Stream, Against: "stream",
		entrants: []entrant{callEntrant(tcp, 64, n(pings)), answerEntrant(tcp, 64, n(pings)), pingPongEntrant(tcp, 64, n(pings))},
	})
}

// broadcastCase compares bursts over a graph with raw pubsubs.
func broadcastCase(name, text string, g graph, size, count, pubsubCount int, others ...string) Case {
	c := Case{
		Name: fmt.Sprintf("Broadcast/%s/%s", name, bytes(size, "")),
		Text: fmt.Sprintf("broadcast, %s, %s", text, bytes(size, " ")),
		Kind: Burst, Yardstick: FloodsubRaised, Against: "floodsub",
		entrants: []entrant{broadcastEntrant(Smokesignal, g, size, count, false)},
	}
	for _, other := range others {
		c.entrants = append(c.entrants, pubsubEntrant(other, g, size, pubsubCount, false))
	}
	return c
}

// bytes writes a size, with space between the number and its unit.
func bytes(n int, space string) string {
	unit := "B"
	if n >= 1<<10 && n%(1<<10) == 0 {
		n, unit = n>>10, "KiB"
	}
	return fmt.Sprint(n) + space + unit
}

// A Curve is a row of cases that differ in one number.
type Curve struct {
	Name   string // of its file
	Title  string
	Axis   string // what X is
	Points []Point
}

// A Point is one case of a curve.
type Point struct {
	X    int
	Text string // X as it stands at the axis
	Case Case
}

// Curves returns what is drawn.
func Curves(short bool) []Curve {
	n := counts(short)
	sizes := Curve{Name: "rate-size", Title: "Broadcast on a pair: events per second against their size", Axis: "bytes of an event"}
	for _, size := range []int{16, 64, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10} {
		// No more than 64 MiB for the fast and 32 MiB for the slow.
		c := broadcastCase("pair", "pair", line(2), size, n(min(pairBurst/2, 64<<20/size)), n(min(pubsubBurst/2, 32<<20/size)),
			FloodsubRaised, GossipsubRaised)
		c.entrants = append(c.entrants, streamEntrant(tcp, size, n(min(streamBurst/2, 64<<20/size))))
		sizes.Points = append(sizes.Points, Point{size, bytes(size, " "), c})
	}
	many := Curve{Name: "rate-nodes", Title: "Broadcast of 64 B: events per second against nodes, each linked to four", Axis: "nodes"}
	for _, nodes := range []int{2, 3, 5, 10, 20, 40} {
		c := broadcastCase(fmt.Sprintf("graph%d", nodes), fmt.Sprintf("%d nodes of degree 4", nodes), degree4(nodes), 64,
			n(2*pairBurst/nodes/4), n(min(pubsubBurst/2, 40_000/nodes)), FloodsubRaised, GossipsubRaised)
		many.Points = append(many.Points, Point{nodes, fmt.Sprint(nodes), c})
	}
	return []Curve{sizes, many}
}
