package order

import (
	"container/list"
	"iter"

	"github.com/libp2p/go-libp2p/core/peer"
)

// hints remembers marks about senders of which no batch and no mark of their own has
// arrived. Other nodes sent these marks and may be lying. Hints have a limit of their
// own, so that lies cannot push out senders whose batches have arrived.
type hints struct {
	max    int
	byPeer map[peer.ID]*list.Element
	// order contains values of type hint, the most recently added first.
	order *list.List
}

// A hint is how far another node claims to have received a session, and so where the
// session will begin for this node.
type hint struct {
	Progress
	beginning Beginning
}

func newHints(n int) hints {
	return hints{max: n, byPeer: make(map[peer.ID]*list.Element), order: list.New()}
}

// add remembers the hint m. A hint about a later session of the sender replaces one
// about an earlier session.
func (h *hints) add(m hint) {
	if e, ok := h.byPeer[m.Sender]; ok {
		old := e.Value.(hint)
		switch c := m.Session.Compare(old.Session); {
		case c > 0:
			e.Value = m
		case c == 0 && m.Above < old.Above:
			// Several neighbors have said with which number the session begins. The
			// lowest number counts, as its neighbor forwards every event from that number
			// on.
			m.beginning = max(m.beginning, old.beginning)
			e.Value = m
		}
		return
	}
	for h.order.Len() >= h.max {
		delete(h.byPeer, h.order.Remove(h.order.Back()).(hint).Sender)
	}
	h.byPeer[m.Sender] = h.order.PushFront(m)
}

// remove removes the hint about a sender and returns it.
func (h *hints) remove(id peer.ID) (hint, bool) {
	e, ok := h.byPeer[id]
	if !ok {
		return hint{}, false
	}
	delete(h.byPeer, id)
	return h.order.Remove(e).(hint), true
}

// raise handles a hint about a session of the sender id: it raises the number with which
// the session will begin to the number to. It does nothing if there is no hint about
// that session, or if the number is already at least to.
func (h *hints) raise(id peer.ID, session SessionKey, to uint64) {
	if e, ok := h.byPeer[id]; ok {
		if m := e.Value.(hint); m.Session == session && m.Above < to {
			m.Begin, m.Next, m.Above = to, to, to
			e.Value = m
		}
	}
}

// get returns the hint about a sender.
func (h *hints) get(id peer.ID) (Progress, bool) {
	if e, ok := h.byPeer[id]; ok {
		return e.Value.(hint).Progress, true
	}
	return Progress{}, false
}

func (h *hints) len() int { return h.order.Len() }

// all yields the hints, the most recently added first.
func (h *hints) all() iter.Seq[Progress] {
	return func(yield func(Progress) bool) {
		for e := h.order.Front(); e != nil; e = e.Next() {
			if !yield(e.Value.(hint).Progress) {
				return
			}
		}
	}
}
