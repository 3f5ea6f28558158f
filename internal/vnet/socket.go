package vnet

import (
	"container/heap"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/go-smokesignal/smokesignal/internal/notify"
)

// A packet is a UDP packet that was sent to a socket and not read yet.
type packet struct {
	due   time.Time // when the packet arrives
	order uint64    // the order of sending, for packets that arrive at the same time
	from  netip.AddrPort
	data  []byte
}

// packets is a heap of packets, ordered by time of arrival.
type packets []packet

func (p packets) Len() int { return len(p) }
func (p packets) Less(i, j int) bool {
	if p[i].due.Equal(p[j].due) {
		return p[i].order < p[j].order
	}
	return p[i].due.Before(p[j].due)
}
func (p packets) Swap(i, j int) { p[i], p[j] = p[j], p[i] }
func (p *packets) Push(x any)   { *p = append(*p, x.(packet)) }
func (p *packets) Pop() any {
	last := len(*p) - 1
	x := (*p)[last]
	(*p)[last] = packet{}
	*p = (*p)[:last]
	return x
}

// A socket is a net.PacketConn in a Network. It has no goroutine of its own: the goroutine
// that reads waits until the next packet arrives.
type socket struct {
	net     *Network
	at      netip.AddrPort
	arrived notify.Signal // set when queue or deadline has changed; wakes a blocked ReadFrom
	closed  chan struct{}
	close   sync.Once

	// Guarded by the network's lock.
	queue    packets
	deadline time.Time // for reading
}

// next returns the next packet that has arrived. If there is none, ok is false, and again is
// the time at which to call next again; zero means only after arrived was set.
func (s *socket) next(now time.Time) (p packet, ok bool, again time.Time, err error) {
	s.net.mu.Lock()
	defer s.net.mu.Unlock()
	if !s.deadline.IsZero() && !now.Before(s.deadline) {
		return p, false, again, os.ErrDeadlineExceeded
	}
	again = s.deadline
	if len(s.queue) > 0 {
		due := s.queue[0].due
		if !now.Before(due) {
			return heap.Pop(&s.queue).(packet), true, again, nil
		}
		if again.IsZero() || due.Before(again) {
			again = due
		}
	}
	return p, false, again, nil
}

func (s *socket) ReadFrom(b []byte) (int, net.Addr, error) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-s.closed:
			return 0, nil, s.failure("read", net.ErrClosed)
		default:
		}
		now := time.Now()
		p, ok, again, err := s.next(now)
		switch {
		case err != nil:
			return 0, nil, s.failure("read", err)
		case ok:
			return copy(b, p.data), net.UDPAddrFromAddrPort(p.from), nil
		}
		timer.Stop()
		if !again.IsZero() {
			timer.Reset(again.Sub(now))
		}
		select {
		case <-s.arrived:
		case <-timer.C:
		case <-s.closed:
		}
	}
}

func (s *socket) WriteTo(b []byte, to net.Addr) (int, error) {
	select {
	case <-s.closed:
		return 0, s.failure("write", net.ErrClosed)
	default:
	}
	addr := to.(*net.UDPAddr).AddrPort() // a *net.UDPConn accepts no other type either
	s.net.send(s.at, netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port()), b)
	return len(b), nil
}

// Close makes reads fail with net.ErrClosed. Another socket can be bound to the address at once.
func (s *socket) Close() error {
	err := s.failure("close", net.ErrClosed)
	s.close.Do(func() {
		close(s.closed)
		s.net.mu.Lock()
		defer s.net.mu.Unlock()
		delete(s.net.sockets, s.at)
		s.queue = nil
		err = nil
	})
	return err
}

func (s *socket) failure(op string, err error) error {
	return &net.OpError{Op: op, Net: "udp", Source: s.LocalAddr(), Err: err}
}

func (s *socket) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(s.at) }

func (s *socket) SetReadDeadline(t time.Time) error {
	s.net.mu.Lock()
	defer s.net.mu.Unlock()
	s.deadline = t
	s.arrived.Set()
	return nil
}

// SetDeadline sets the read deadline. Writes need none, because they do not block.
func (s *socket) SetDeadline(t time.Time) error    { return s.SetReadDeadline(t) }
func (s *socket) SetWriteDeadline(time.Time) error { return nil }

// SetReadBuffer does nothing, like SetWriteBuffer. QUIC needs both methods.
func (s *socket) SetReadBuffer(int) error  { return nil }
func (s *socket) SetWriteBuffer(int) error { return nil }
