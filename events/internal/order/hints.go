package order

import (
	"container/list"
	"iter"

	"github.com/libp2p/go-libp2p/core/peer"
)

// hints holds the progress of senders that only third parties have mentioned. They
// have their own limit, so that no neighbor can use hearsay to push out senders of
// which batches have arrived.
type hints struct {
	max    int
	byPeer map[peer.ID]*list.Element
	order  *list.List // of hint, the latest in front
}

// hint is the progress that a third party has mentioned.
type hint struct {
	Progress
	beginning Beginning
}

func newHints(n int) hints {
	return hints{max: n, byPeer: make(map[peer.ID]*list.Element), order: list.New()}
}

// add remembers m. A later session replaces an earlier one.
func (h *hints) add(m hint) {
	if e, ok := h.byPeer[m.Sender]; ok {
		old := e.Value.(hint)
		switch c := m.Session.Compare(old.Session); {
		case c > 0:
			e.Value = m
		case c == 0 && m.Above < old.Above:
			// The lowest beginning counts: whoever knew the session then passes on
			// everything from there.
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

// raise moves the beginning of a session up to to.
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

// all yields the hints, the latest first.
func (h *hints) all() iter.Seq[Progress] {
	return func(yield func(Progress) bool) {
		for e := h.order.Front(); e != nil; e = e.Next() {
			if !yield(e.Value.(hint).Progress) {
				return
			}
		}
	}
}
