package limits_test

import (
	"context"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/go-smokesignal/smokesignal/host"
	"github.com/go-smokesignal/smokesignal/internal/limits"
)

func listening(t *testing.T) *host.Host {
	t.Helper()
	h, err := host.New(host.Config{Listen: []string{"127.0.0.1:0"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	if err := h.Listen(); err != nil {
		t.Fatal(err)
	}
	return h
}

// A peer that opens more streams than a link needs is refused the rest.
func TestStreamsPerPeerAreLimited(t *testing.T) {
	h, d := listening(t), listening(t)
	if err := d.Host().Connect(t.Context(), peer.AddrInfo{ID: h.Host().ID(), Addrs: h.Host().Addrs()}); err != nil {
		t.Fatal(err)
	}
	for id, perPeer := range limits.PerPeer() {
		h.Host().SetStreamHandler(id, func(s network.Stream) { s.Write([]byte{1}) }) // and keeps it
		var served int
		for range perPeer + 3 {
			s, err := dialStream(t.Context(), d, h.Host().ID(), id)
			if err != nil {
				continue
			}
			defer s.Reset()
			if _, err := s.Read(make([]byte, 1)); err == nil {
				served++
			}
		}
		if served != perPeer {
			t.Errorf("%s: %d streams served, want %d", id, served, perPeer)
		}
	}
}

// dialStream opens a stream without regard to the limits of the dialer.
func dialStream(ctx context.Context, d *host.Host, to peer.ID, id protocol.ID) (network.Stream, error) {
	s, err := d.Host().Network().NewStream(ctx, to)
	if err != nil {
		return nil, err
	}
	s.SetDeadline(time.Now().Add(10 * time.Second))
	// multistream-select by hand: the host would count it against its own limits.
	for _, line := range []string{"/multistream/1.0.0\n", string(id) + "\n"} {
		if _, err := s.Write(append([]byte{byte(len(line))}, line...)); err != nil {
			return nil, err
		}
	}
	for _, line := range []string{"/multistream/1.0.0\n", string(id) + "\n"} {
		b := make([]byte, 1+len(line))
		if _, err := io.ReadFull(s, b); err != nil {
			return nil, err
		}
		if string(b[1:]) != line {
			return nil, fmt.Errorf("got %q", b)
		}
	}
	return s, nil
}
