package bench

import (
	"bufio"
	"context"
	"encoding/binary"
	"io"

	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
)

// Stream is the name of the entrant with which direct events are compared: a libp2p stream as
// a program would use it without this module.
const Stream = "stream"

const (
	streamProtocol = "/bench"
	streamBuffer   = 32 << 10
	// streamQueue is the length, in events, of the sender's queue before a raw stream.
	// smokesignal's queue for one peer has the same length.
	streamQueue = 256
)

// streamEntrant returns an entrant that sends count events of size bytes per round over one raw
// libp2p stream, each with its length as a varint before it. A goroutine writes the events from
// a queue, through a buffer that it flushes when the queue is empty.
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
				to.countBytes(b)
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
		// The buffers of events are used again, so that sending does not allocate memory. There
		// are more buffers than events that can be in the queue or in a write.
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
		return f.rig(inBurst, func() {
			close(queue)
			s.Reset()
			<-written
			closeHosts(from, end)
		}), nil
	}}
}

// pingPongEntrant returns an entrant that sends a request of size bytes and waits for its
// answer over one raw libp2p stream. A round has count requests, one at a time.
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
		request := make([]byte, size)
		ask := func(context.Context) error {
			writeFrame(w, request)
			if err := w.Flush(); err != nil {
				return err
			}
			_, err := readFrame(r)
			return err
		}
		return &rig{
			round: func(ctx context.Context, n int) (Round, error) {
				defer context.AfterFunc(ctx, func() { s.Reset() })() // unblocks the read
				return requests(ctx, n, ask)
			},
			close: func() {
				s.Reset()
				closeHosts(from, end)
			},
		}, nil
	}}
}

// streamPair makes two hosts, which listen on the address listen and are not connected yet. The
// second host calls serve for each incoming stream.
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

// writeFrame writes b with its length before it. It ignores errors: the next Flush of w returns
// them.
func writeFrame(w *bufio.Writer, b []byte) {
	w.Write(binary.AppendUvarint(w.AvailableBuffer(), uint64(len(b))))
	w.Write(b)
}

// readFrame reads one frame into a new slice, because a handler may keep it.
func readFrame(r *bufio.Reader) ([]byte, error) {
	n, err := binary.ReadUvarint(r)
	if err != nil {
		return nil, err
	}
	b := make([]byte, n)
	_, err = io.ReadFull(r, b)
	return b, err
}
