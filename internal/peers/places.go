package peers

import (
	"slices"

	"github.com/libp2p/go-libp2p/core/peer"
)

// places is a bounded number of places for peers, given in the order of the requests.
type places struct {
	max        int
	has        map[peer.ID]struct{}
	waiting    []peer.ID
	turnedAway uint64 // peers that asked while all places were taken
}

func newPlaces(max int) places { return places{max: max, has: map[peer.ID]struct{}{}} }

// set gives p a place if it wants one and a place is free, or takes the place of p back if
// it does not want one. It reports whether p has a place. When a place becomes free, the
// peer that has waited longest is appended to next; set has to be called for it.
func (s *places) set(p peer.ID, wants bool, next *[]peer.ID) (has bool) {
	_, has = s.has[p]
	queued := slices.Index(s.waiting, p)
	switch {
	case !wants && has:
		delete(s.has, p)
		if len(s.waiting) > 0 {
			*next = append(*next, s.waiting[0])
		}
		return false
	case !wants:
		if queued >= 0 {
			s.waiting = slices.Delete(s.waiting, queued, queued+1)
		}
		return false
	case has:
		return true
	case len(s.has) < s.max && queued <= 0:
		// Nobody has waited longer.
		if queued == 0 {
			s.waiting = slices.Delete(s.waiting, 0, 1)
		}
		s.has[p] = struct{}{}
		return true
	case queued < 0:
		s.waiting = append(s.waiting, p)
		s.turnedAway++
	}
	return false
}
