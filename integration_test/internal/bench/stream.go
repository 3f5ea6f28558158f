package bench

import (
	"bufio"
	"context"
	"encoding/binary"
	"io"

	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
)

// Stream is the yardstick of a direct event: what a program would write by hand
// on libp2p.
const Stream = "stream"

const (
	streamProtocol = "/bench"
	streamBuffer   = 32 << 10
	// streamQueue is as long as smokesignal's queue of a peer.
	streamQueue = 256
)

// streamEntrant is one raw libp2p stream: frames with a varint length, a queue,
// and a writer which gathers what waits and flushes when nothing does.
func streamEntrant(listen string, size, count int) entrant {
	return entrant{Stream, count, func(ctx context.Context) (*rig, error) {
		to := new(receiver)
		from, end, err := streamPair(listen, func(s network.Stream) {
			r := bufio.NewReaderSize(s, streamBuffer)
			for {
				b, err := readFrame(r)
				if err != nil {
					return
				}
				to.takeBytes(b)
			}
		})
		if err != nil {
			return nil, err
		}
		s, err := openStream(ctx, from, end)
		if err != nil {
			closeHosts(from, end)
			return nil, err
		}
		queue := make(chan []byte, streamQueue)
		written := make(chan struct{})
		go func() {
			defer close(written)
			w := bufio.NewWriterSize(s, streamBuffer)
			for b := range queue {
				writeFrame(w, b)
				if len(queue) == 0 {
					w.Flush()
				}
			}
		}()
		// As many buffers as can be on their way, so that none has to be made.
		ring := make([][]byte, 2*streamQueue)
		for i := range ring {
			ring[i] = make([]byte, size)
		}
		f := &flow{to: []*receiver{to}, send: func(ctx context.Context, round, no uint32) error {
			b := ring[int(no)%len(ring)]
			fill(b, round, no)
			select {
			case queue <- b:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}}
		return f.rig(false, func() {
			close(queue)
			s.Reset()
			<-written
			closeHosts(from, end)
		}), nil
	}}
}

// pingPongEntrant asks and answers over one raw libp2p stream, one at a time.
func pingPongEntrant(listen string, size, count int) entrant {
	return entrant{Stream, count, func(ctx context.Context) (*rig, error) {
		from, end, err := streamPair(listen, func(s network.Stream) {
			r, w := bufio.NewReaderSize(s, streamBuffer), bufio.NewWriterSize(s, streamBuffer)
			for {
				b, err := readFrame(r)
				if err != nil {
					return
				}
				writeFrame(w, b)
				if w.Flush() != nil {
					return
				}
			}
		})
		if err != nil {
			return nil, err
		}
		s, err := openStream(ctx, from, end)
		if err != nil {
			closeHosts(from, end)
			return nil, err
		}
		r, w := bufio.NewReaderSize(s, streamBuffer), bufio.NewWriterSize(s, streamBuffer)
		question := make([]byte, size)
		ask := func(context.Context) error {
			writeFrame(w, question)
			if err := w.Flush(); err != nil {
				return err
			}
			_, err := readFrame(r)
			return err
		}
		return &rig{
			round: func(ctx context.Context, n int) (Round, error) {
				defer context.AfterFunc(ctx, func() { s.Reset() })() // unblocks the read
				return questions(ctx, n, ask)
			},
			close: func() {
				s.Reset()
				closeHosts(from, end)
			},
		}, nil
	}}
}

// streamPair makes two hosts, of which the second serves streams.
func streamPair(listen string, serve network.StreamHandler) (from, to corehost.Host, err error) {
	if from, err = newHost(listen); err != nil {
		return nil, nil, err
	}
	if to, err = newHost(listen); err != nil {
		from.Close()
		return nil, nil, err
	}
	to.SetStreamHandler(streamProtocol, func(s network.Stream) {
		defer s.Reset()
		serve(s)
	})
	return from, to, nil
}

func openStream(ctx context.Context, from, to corehost.Host) (network.Stream, error) {
	if err := link(ctx, from, to); err != nil {
		return nil, err
	}
	return from.NewStream(ctx, to.ID(), streamProtocol)
}

func closeHosts(hosts ...corehost.Host) {
	for _, h := range hosts {
		h.Close()
	}
}

// writeFrame leaves its error to the next flush.
func writeFrame(w *bufio.Writer, b []byte) {
	w.Write(binary.AppendUvarint(w.AvailableBuffer(), uint64(len(b))))
	w.Write(b)
}

// readFrame returns bytes that are the caller's, as a handler may keep them.
func readFrame(r *bufio.Reader) ([]byte, error) {
	n, err := binary.ReadUvarint(r)
	if err != nil {
		return nil, err
	}
	b := make([]byte, n)
	_, err = io.ReadFull(r, b)
	return b, err
}
