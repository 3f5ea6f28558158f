package peers

import (
	"slices"

	"github.com/libp2p/go-libp2p/core/peer"
)

// quota is a limited number of places for peers. Places are given in the order in which
// peers requested them.
type quota struct {
	max        int
	has        map[peer.ID]struct{}
	waiting    []peer.ID
	turnedAway uint64 // the number of requests that found all places taken
}

func newQuota(max int) quota { return quota{max: max, has: map[peer.ID]struct{}{}} }

// request asks for a place for p and reports whether p has one now. If not, p waits for a
// place to become free, until release is called for p.
func (q *quota) request(p peer.ID) (granted bool) {
	if _, has := q.has[p]; has {
		return true
	}
	queued := slices.Index(q.waiting, p)
	switch {
	case len(q.has) < q.max && queued <= 0: // no other peer has waited longer
		if queued == 0 {
			q.waiting = slices.Delete(q.waiting, 0, 1)
		}
		q.has[p] = struct{}{}
		return true
	case queued < 0:
		q.waiting = append(q.waiting, p)
		q.turnedAway++
	}
	return false
}

// release gives back the place of p, or ends its waiting. If a place becomes free, release
// returns in next the peer that has waited longest, for which the caller must call request
// again.
func (q *quota) release(p peer.ID) (next []peer.ID) {
	if _, has := q.has[p]; !has {
		q.waiting = slices.DeleteFunc(q.waiting, func(id peer.ID) bool { return id == p })
		return nil
	}
	delete(q.has, p)
	return slices.Clone(q.waiting[:min(1, len(q.waiting))])
}
