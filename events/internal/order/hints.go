package order

import (
	"container/list"
	"iter"

	"github.com/libp2p/go-libp2p/core/peer"
)

// hints are marks of senders that were only heard of through others. They have
// a place of their own, so that no neighbour can crowd out by hearsay the
// senders that were heard themselves.
type hints struct {
	max    int
	byPeer map[peer.ID]*list.Element
	order  *list.List // of hint, the latest in front
}

// hint is one such mark. It is firm if nothing of the sender could come but through
// the neighbour that told it; else what is below may still be under way.
type hint struct {
	Mark
	firm bool
}

func newHints(n int) hints {
	return hints{max: n, byPeer: make(map[peer.ID]*list.Element), order: list.New()}
}

// put remembers m. Of one session the lowest mark counts, since from there on
// everything is owed to us; a later session replaces an earlier one.
func (h *hints) put(m hint) {
	if e, ok := h.byPeer[m.Sender]; ok {
		old := e.Value.(hint)
		switch c := m.Session.Compare(old.Session); {
		case c > 0:
			e.Value = m
		case c == 0 && m.Above < old.Above:
			m.firm = m.firm || old.firm
			e.Value = m
		}
		return
	}
	for h.order.Len() >= h.max {
		delete(h.byPeer, h.order.Remove(h.order.Back()).(hint).Sender)
	}
	h.byPeer[m.Sender] = h.order.PushFront(m)
}

// take returns the mark of a sender and forgets it.
func (h *hints) take(id peer.ID) (hint, bool) {
	e, ok := h.byPeer[id]
	if !ok {
		return hint{}, false
	}
	delete(h.byPeer, id)
	return h.order.Remove(e).(hint), true
}

// raise makes a session begin later than it was told.
func (h *hints) raise(id peer.ID, session Session, to uint64) {
	if e, ok := h.byPeer[id]; ok {
		if m := e.Value.(hint); m.Session == session && m.Above < to {
			m.Begin, m.Next, m.Above = to, to, to
			e.Value = m
		}
	}
}

// get returns the mark of a sender.
func (h *hints) get(id peer.ID) (Mark, bool) {
	if e, ok := h.byPeer[id]; ok {
		return e.Value.(hint).Mark, true
	}
	return Mark{}, false
}

func (h *hints) len() int { return h.order.Len() }

// all yields the marks, the latest first.
func (h *hints) all() iter.Seq[Mark] {
	return func(yield func(Mark) bool) {
		for e := h.order.Front(); e != nil; e = e.Next() {
			if !yield(e.Value.(hint).Mark) {
				return
			}
		}
	}
}
