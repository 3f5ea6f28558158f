//go:build unix

package direct

import (
	"bufio"
	"context"
	"encoding/binary"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/hosttest"
)

// BenchmarkCall is a call of 64 bytes, answered with as many, beside the same
// ping-pong on a raw libp2p stream; one at a time.
func BenchmarkCall(b *testing.B) {
	for _, tr := range transports {
		b.Run(tr.name+"/64B/raw", func(b *testing.B) { benchPingPong(b, tr.listen) })
		b.Run(tr.name+"/64B/call", func(b *testing.B) { benchCall(b, tr.listen) })
	}
}

func benchCall(b *testing.B, listen string) {
	from, to := pair(b, listen, Config{})
	echo := Call[[]byte, []byte]("echo")
	echo.Handle(to, func(_ context.Context, _ peer.ID, p []byte) ([]byte, error) { return p, nil })
	callee, ping := from.to(to.id()), make([]byte, 64)
	roundTrips(b, func() error {
		_, err := echo.Do(b.Context(), callee, ping)
		return err
	})
}

func benchPingPong(b *testing.B, listen string) {
	from, to := newHost(b, listen), newHost(b, listen)
	to.SetStreamHandler("/raw", func(s network.Stream) {
		defer s.Close()
		r := bufio.NewReaderSize(s, 32<<10)
		for {
			p, err := readFrame(r)
			if err != nil {
				return
			}
			s.Write(append(binary.AppendUvarint(nil, uint64(len(p))), p...))
		}
	})
	hosttest.Connect(b, from, to)
	s, err := from.NewStream(b.Context(), to.ID(), "/raw")
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	ping := append(binary.AppendUvarint(nil, 64), make([]byte, 64)...)
	r := bufio.NewReaderSize(s, 32<<10)
	roundTrips(b, func() error {
		if _, err := s.Write(ping); err != nil {
			return err
		}
		_, err := readFrame(r)
		return err
	})
}

func readFrame(r *bufio.Reader) ([]byte, error) {
	n, err := binary.ReadUvarint(r)
	if err != nil {
		return nil, err
	}
	p := make([]byte, n)
	_, err = io.ReadFull(r, p)
	return p, err
}

// roundTrips makes b.N round trips and reports their median and 99th
// percentile in microseconds.
func roundTrips(b *testing.B, trip func() error) {
	if err := trip(); err != nil { // opens the stream
		b.Fatal(err)
	}
	took := make([]time.Duration, b.N)
	defer reportCPU(b)()
	b.ReportAllocs()
	b.ResetTimer()
	for i := range took {
		start := time.Now()
		if err := trip(); err != nil {
			b.Fatal(err)
		}
		took[i] = time.Since(start)
	}
	b.StopTimer()
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1e3, "p50-us")
	b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds())/1e3, "p99-us")
}
