package bench

import (
	"fmt"
	"slices"
)

// The number of events per round. smokesignal gets larger bursts than pubsub, because it would
// send a burst of pubsub's size in a few milliseconds, which is too short to measure.
const (
	pairBurst   = 200_000
	lineBurst   = 100_000
	graphBurst  = 50_000
	pubsubBurst = 10_000
	pubsubGraph = 2_000 // in the network of twenty nodes
	streamBurst = 1_000_000
	loneEvents  = 600
	pings       = 3_000
)

// scale is the number by which a short run of the benchmarks divides the number of events per
// round.
const scale = 100

// A scaling takes the number of events in a round of a full run of the benchmarks, and returns
// the number in a round of this run.
type scaling func(count int) int

// scaled returns the scaling of a full run of the benchmarks or, if short is true, of a short
// one. A round of a short run has just enough events to show that everything works.
func scaled(short bool) scaling {
	return func(n int) int {
		if short {
			return max(20, n/scale)
		}
		return n
	}
}

// Cases returns the cases of all benchmarks. If short is true, a round has a hundredth of the
// events, but at least 20: the figures then mean nothing.
func Cases(short bool) []Case {
	n := scaled(short)
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
				broadcastEntrant(SmokesignalJSON, line(2), 0, n(pairBurst), inBurst),
				broadcastEntrant(Smokesignal, line(2), 64, n(pairBurst), inBurst),
			},
		},
		{
			Name: "Lone/pair/64B", Text: "lone broadcast of 64 B, one each 5 ms, idle pair",
			Kind: Latency, Yardstick: FloodsubDefault, Against: "floodsub",
			entrants: []entrant{
				broadcastEntrant(Smokesignal, line(2), 64, n(loneEvents), paced),
				pubsubEntrant(FloodsubDefault, line(2), 64, n(loneEvents), paced),
			},
		},
	}
	cases[0].entrants = append(cases[0].entrants, streamEntrant(tcp, 64, n(streamBurst)))
	for _, tr := range []struct{ name, text, listen string }{{"tcp", "TCP", tcp}, {"quic", "QUIC", quic}} {
		for _, size := range []int{64, 1 << 10} {
			// A round with larger events has fewer of them, so that all rounds take about the
			// same time.
			count := n(streamBurst / max(1, size/200))
			cases = append(cases, Case{
				Name: fmt.Sprintf("Direct/%s/%s", tr.name, formatSize(size, "")),
				Text: fmt.Sprintf("direct, %s, %s", tr.text, formatSize(size, " ")),
				Kind: Burst, Yardstick: Stream, Against: "stream",
				entrants: []entrant{directEntrant(tr.listen, size, count), streamEntrant(tr.listen, size, count)},
			})
		}
	}
	cases = append(cases, Case{
		Name: "Call/tcp/64B", Text: "call of 64 B, one at a time, TCP",
		Kind: Latency, Yardstick: Stream, Against: "stream",
		entrants: []entrant{callEntrant(tcp, 64, n(pings)), answerEntrant(tcp, 64, n(pings)), pingPongEntrant(tcp, 64, n(pings))},
	})
	return slices.Concat(cases, sizeCases(n), nodeCases(n))
}

// broadcastCase returns a case that compares bursts of broadcasts by smokesignal, over the
// links of a graph, with bursts by the raw pubsubs named in others. A round has count events of
// smokesignal or pubsubCount messages of a pubsub, of size bytes each. name and text describe
// the graph.
func broadcastCase(name, text string, g graph, size, count, pubsubCount int, others ...string) Case {
	c := Case{
		Name: fmt.Sprintf("Broadcast/%s/%s", name, formatSize(size, "")),
		Text: fmt.Sprintf("broadcast, %s, %s", text, formatSize(size, " ")),
		Kind: Burst, Yardstick: FloodsubRaised, Against: "floodsub",
		entrants: []entrant{broadcastEntrant(Smokesignal, g, size, count, inBurst)},
	}
	for _, other := range others {
		c.entrants = append(c.entrants, pubsubEntrant(other, g, size, pubsubCount, inBurst))
	}
	return c
}

// formatSize writes a size of n bytes in B or KiB, with space between the number and its unit.
func formatSize(n int, space string) string {
	unit := "B"
	if n >= 1<<10 && n%(1<<10) == 0 {
		n, unit = n>>10, "KiB"
	}
	return fmt.Sprint(n) + space + unit
}

// sizeCases returns cases with bursts of broadcasts between two nodes, one case for each size
// of events from 16 bytes to 64 KiB. n scales the number of events per round.
func sizeCases(n scaling) (cases []Case) {
	for _, size := range []int{16, 64, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10} {
		// A round has at most 64 MiB of events of smokesignal and the stream, and 32 MiB of the
		// slower raw pubsubs.
		c := broadcastCase("", "pair", line(2), size, n(min(pairBurst/2, 64<<20/size)), n(min(pubsubBurst/2, 32<<20/size)),
			FloodsubRaised, GossipsubRaised)
		c.Name = "Size/" + formatSize(size, "")
		c.entrants = append(c.entrants, streamEntrant(tcp, size, n(min(streamBurst/2, 64<<20/size))))
		cases = append(cases, c)
	}
	return cases
}

// nodeCases returns cases with bursts of broadcasts in networks of 2 to 40 nodes, one case for
// each of six numbers of nodes. n scales the number of events per round.
func nodeCases(n scaling) (cases []Case) {
	for _, nodes := range []int{2, 3, 5, 10, 20, 40} {
		c := broadcastCase("", fmt.Sprintf("%d nodes of degree 4", nodes), degree4(nodes), 64,
			n(2*pairBurst/nodes/4), n(min(pubsubBurst/2, 40_000/nodes)), FloodsubRaised, GossipsubRaised)
		c.Name = fmt.Sprintf("Nodes/%d", nodes)
		cases = append(cases, c)
	}
	return cases
}
