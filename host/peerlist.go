package host

import (
	"context"
	"slices"
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"
)

// A PeerNotifiee is told of changes of a [PeerList], in the order in which they
// happen, on the goroutine that makes them. It must not block.
type PeerNotifiee interface {
	// Connected: the list is not empty any more; the first peer is about to be
	// reported.
	Connected()
	// PeerAdded: the peer is in the list. release lets the peer's events be read; it
	// is to be called once the user's handlers have heard of the peer.
	PeerAdded(p peer.ID, release func())
	// Disconnected: the list is empty; the last peer is about to be reported as
	// removed.
	Disconnected()
	// PeerRemoved: the peer is not in the list any more.
	PeerRemoved(p peer.ID, reason error)
}

// A PeerList holds the peers a node is linked to. It is fed by the handshake of
// the overlay, never by the connections of libp2p: one peer is one entry however
// many connections there are, and an entry means that both sides agreed.
// The methods may be called from several goroutines; Expect, Add and Remove from
// one at a time, as the order of what is reported depends on it.
type PeerList struct {
	min, max int
	notifiee PeerNotifiee

	mu    sync.Mutex
	ids   []peer.ID
	gates map[peer.ID]chan struct{} // closed once the peer's events may be read
}

// NewPeerList returns an empty list. min and max are the limits it reports by
// Sufficient and Full; it does not enforce them. A negative max means no limit.
func NewPeerList(min, max int, notifiee PeerNotifiee) *PeerList {
	return &PeerList{min: min, max: max, notifiee: notifiee, gates: map[peer.ID]chan struct{}{}}
}

// Expect says that p is about to be linked: from now on Admit(p) waits until its
// addition was reported, or Remove.
func (l *PeerList) Expect(p peer.ID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gates[p] == nil {
		l.gates[p] = make(chan struct{})
	}
}

// Add enters p and reports it. An entry that is there already is left alone.
func (l *PeerList) Add(p peer.ID) {
	l.mu.Lock()
	if slices.Contains(l.ids, p) {
		l.mu.Unlock()
		return
	}
	l.ids = append(l.ids, p)
	first := len(l.ids) == 1
	gate := l.gates[p]
	l.mu.Unlock()
	if first {
		l.notifiee.Connected()
	}
	l.notifiee.PeerAdded(p, func() { l.open(p, gate) })
}

// Remove takes p out and reports it, if it was there.
func (l *PeerList) Remove(p peer.ID, reason error) {
	l.mu.Lock()
	gate := l.gates[p]
	i := slices.Index(l.ids, p)
	if i >= 0 {
		l.ids = slices.Delete(l.ids, i, i+1)
	}
	last := len(l.ids) == 0
	l.mu.Unlock()
	l.open(p, gate)
	if i < 0 {
		return
	}
	if last {
		l.notifiee.Disconnected()
	}
	l.notifiee.PeerRemoved(p, reason)
}

// open opens that gate, not one that a later Expect may have set up for p.
func (l *PeerList) open(p peer.ID, gate chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if gate != nil && l.gates[p] == gate {
		close(gate)
		delete(l.gates, p)
	}
}

// Admit waits while p is expected and its addition is not reported yet. It
// returns the cause of ctx if that ends first.
func (l *PeerList) Admit(ctx context.Context, p peer.ID) error {
	l.mu.Lock()
	gate := l.gates[p]
	l.mu.Unlock()
	if gate == nil {
		return nil
	}
	select {
	case <-gate:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// List returns the peers in the order they were added; the slice is the
// caller's.
func (l *PeerList) List() []peer.ID {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.ids)
}

// Has tells whether p is in the list.
func (l *PeerList) Has(p peer.ID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Contains(l.ids, p)
}

// Len returns the number of peers.
func (l *PeerList) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.ids)
}

// Full tells whether the list has max peers or more.
func (l *PeerList) Full() bool { return l.max >= 0 && l.Len() >= l.max }

// Sufficient tells whether the list has min peers or more.
func (l *PeerList) Sufficient() bool { return l.Len() >= l.min }
