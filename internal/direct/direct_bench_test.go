//go:build unix

package direct

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"syscall"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/hosttest"
)

// BenchmarkDirect is Emit to On beside one raw libp2p stream with the same
// framing behind a channel, which is what a program would write by hand.
func BenchmarkDirect(b *testing.B) {
	for _, tr := range transports {
		for _, size := range []int{64, 1 << 10} {
			b.Run(fmt.Sprintf("%s/%dB/raw", tr.name, size), func(b *testing.B) { benchRaw(b, tr.listen, size) })
			b.Run(fmt.Sprintf("%s/%dB/direct", tr.name, size), func(b *testing.B) { benchDirect(b, tr.listen, size) })
		}
	}
}

func benchDirect(b *testing.B, listen string, size int) {
	from, to := pair(b, listen, Config{})
	done := make(chan struct{})
	n := 0
	event := Name[[]byte]("e")
	event.On(to, func(_ context.Context, _ peer.ID, p []byte) {
		if len(p) != size {
			b.Error("bad event")
		}
		if n++; n == b.N {
			close(done)
		}
	})
	there, payload := from.to(to.id()), make([]byte, size)
	b.SetBytes(int64(size))
	defer reportCPU(b)()
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if err := event.Emit(b.Context(), there, payload); err != nil {
			b.Fatal(err)
		}
	}
	<-done
}

func benchRaw(b *testing.B, listen string, size int) {
	from, to := newHost(b, listen), newHost(b, listen)
	done := make(chan struct{})
	to.SetStreamHandler("/raw", func(s network.Stream) {
		defer s.Close()
		r := bufio.NewReaderSize(s, 32<<10)
		for n := 0; n < b.N; n++ {
			l, err := binary.ReadUvarint(r)
			if err != nil {
				b.Error(err)
				return
			}
			if _, err := io.ReadFull(r, make([]byte, l)); err != nil {
				b.Error(err)
				return
			}
		}
		close(done)
	})
	hosttest.Connect(b, from, to)
	s, err := from.NewStream(b.Context(), to.ID(), "/raw")
	if err != nil {
		b.Fatal(err)
	}
	queue := make(chan []byte, 256)
	go func() {
		w := bufio.NewWriterSize(s, 32<<10)
		for p := range queue {
			w.Write(binary.AppendUvarint(w.AvailableBuffer(), uint64(len(p))))
			w.Write(p)
			if len(queue) == 0 {
				w.Flush()
			}
		}
	}()
	payload := make([]byte, size)
	b.SetBytes(int64(size))
	defer reportCPU(b)()
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		queue <- payload
	}
	<-done
	close(queue)
}

// reportCPU reports the processor time of both ends together, which says more
// than the wall clock on a machine that others use.
func reportCPU(b *testing.B) (stop func()) {
	before := cpu(b)
	return func() { b.ReportMetric(float64(cpu(b)-before)/float64(b.N), "cpu-ns/op") }
}

func cpu(b *testing.B) int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}
