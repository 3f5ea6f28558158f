//go:build unix

package gate

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pb "github.com/libp2p/go-libp2p-pubsub/pb"
	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/hosttest"
)

// BenchmarkGate compares floodsub over the plain host with floodsub over the
// gate: 64 bytes from one node to another, unsigned, so that the way of the
// message is what costs. "burst" is as fast as it can be published, CPU time
// of the process included; "single" is one message each five milliseconds.
func BenchmarkGate(b *testing.B) {
	for _, gated := range []bool{false, true} {
		over := map[bool]string{false: "plain", true: "gate"}[gated]
		b.Run("burst/"+over, func(b *testing.B) {
			p := newPair(b, gated)
			p.send(b, 1000)
			b.ResetTimer()
			cpu, start := cpuTime(), time.Now()
			p.send(b, b.N)
			b.ReportMetric(float64((cpuTime()-cpu).Microseconds())/float64(b.N), "cpu-us/msg")
			b.ReportMetric(float64(b.N)/time.Since(start).Seconds(), "msgs/s")
		})
	}
	b.Run("single", func(b *testing.B) {
		// Two of each, in turn, as neither pairs nor moments are alike.
		pairs := []*pair{newPair(b, false), newPair(b, true), newPair(b, true), newPair(b, false)}
		took := make([][]time.Duration, 2)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for b.Loop() {
			for _, i := range rand.Perm(len(pairs)) {
				<-tick.C
				start := time.Now()
				pairs[i].send(b, 1)
				over := (i + 1) / 2 % 2
				took[over] = append(took[over], time.Since(start))
			}
		}
		var p50 [2]float64
		for i, t := range took {
			slices.Sort(t)
			p50[i] = float64(t[len(t)/2].Nanoseconds()) / 1e3
		}
		b.ReportMetric(p50[0], "plain-p50-us")
		b.ReportMetric(p50[1], "gate-p50-us")
		b.ReportMetric(p50[1]/p50[0], "ratio")
	})
}

// pair is a publisher and a subscriber of which each sees the other.
type pair struct {
	topic *pubsub.Topic
	msg   [64]byte
	sent  uint64
	want  chan uint64 // the message after which the subscriber answers
	done  chan struct{}
}

func newPair(b *testing.B, gated bool) *pair {
	b.Helper()
	ctx, stop := context.WithCancel(context.Background())
	p := &pair{want: make(chan uint64, 1), done: make(chan struct{}, 1)}
	var hosts [2]corehost.Host
	var gates [2]*Gate
	var topics [2]*pubsub.Topic
	for i := range hosts {
		h, err := libp2p.New(libp2p.ListenAddrStrings(hosttest.TCP), libp2p.DisableRelay(), libp2p.ResourceManager(&network.NullResourceManager{}))
		if err != nil {
			b.Fatal(err)
		}
		hosts[i] = h
		if gated {
			gates[i] = New(h, Config{})
			h = gates[i].Host()
		}
		ps, err := pubsub.NewFloodSub(ctx, h, pubsub.WithMessageSignaturePolicy(pubsub.StrictNoSign), pubsub.WithPeerOutboundQueueSize(1<<20),
			pubsub.WithMessageIdFn(func(m *pb.Message) string { return string(m.Data[:8]) }))
		if err != nil {
			b.Fatal(err)
		}
		if topics[i], err = ps.Join("topic"); err != nil {
			b.Fatal(err)
		}
	}
	b.Cleanup(func() {
		for i := range hosts {
			if gates[i] != nil {
				gates[i].Close()
			}
		}
		stop()
		for _, h := range hosts {
			h.Close()
		}
	})
	var got, want uint64
	if _, err := topics[1].Subscribe(pubsub.WithMessageFilter(func(m *pubsub.Message) bool {
		if n := binary.BigEndian.Uint64(m.Data); n != got+1 {
			panic(fmt.Sprintf("message %d after %d", n, got)) // nothing is lost here
		}
		got++
		if want < got {
			want = <-p.want
		}
		if want == got {
			p.done <- struct{}{}
		}
		return false
	})); err != nil {
		b.Fatal(err)
	}
	if err := hosts[0].Connect(ctx, peer.AddrInfo{ID: hosts[1].ID(), Addrs: hosts[1].Addrs()}); err != nil {
		b.Fatal(err)
	}
	if gated {
		gates[0].admit(hosts[1].ID())
		gates[1].admit(hosts[0].ID())
	}
	p.topic = topics[0]
	for len(p.topic.ListPeers()) == 0 {
		time.Sleep(time.Millisecond)
	}
	return p
}

// send publishes n messages and returns when the last has arrived.
func (p *pair) send(b *testing.B, n int) {
	p.want <- p.sent + uint64(n)
	for range n {
		p.sent++
		binary.BigEndian.PutUint64(p.msg[:], p.sent)
		if err := p.topic.Publish(context.Background(), slices.Clone(p.msg[:])); err != nil {
			b.Fatal(err)
		}
	}
	<-p.done
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
