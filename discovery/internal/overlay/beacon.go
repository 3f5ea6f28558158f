package overlay

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

const (
	// beaconInterval is how often the owner floods its beacon.
	beaconInterval = 10 * time.Second
	// beaconLife is how long a beacon counts that is not heard any more: three
	// intervals and half of one.
	beaconLife = 35 * time.Second
	// beaconTurn is the time over which the nodes take turns to follow an owner
	// that is gone.
	beaconTurn = 5 * time.Second
	// beaconLag is by how much the clock in two beacons of one owner may differ
	// where both are heard: an interval, and half of one for the flood.
	beaconLag = 15 * time.Second
	// beaconSettle is how long a new owner is kept to oneself. A node that has just
	// made its first link is still its own part in its own eyes, and nobody has to
	// make room for that.
	beaconSettle = 2 * time.Second
	// maxFormer bounds the owners remembered whose beacons were given up.
	maxFormer = 8
)

// beacon is the tag of the part of the network this node is in. Of all nodes the
// one with the lowest rank owns it, so that two parts which come together agree,
// whoever began.
type beacon struct {
	ownRank uint64 // own rank
	ownSeq  uint64 // Seq of the newest own record

	owner  Contact
	rank   uint64
	heard  time.Time // when the newest was heard
	since  time.Time // since when it is this owner's
	next   time.Time // of the own ones: the next flood
	former []Tag     // the last word of owners that were given up
}

// rank orders nodes by the hash of their ids, so that their turns are spread evenly
// whatever the form of the ids.
func rank(id peer.ID) uint64 {
	sum := sha256.Sum256([]byte(id))
	return binary.BigEndian.Uint64(sum[:])
}

// Tag returns the tag of the part of the network this node is in.
func (s *State) Tag() Tag { return Tag{s.beacon.owner.ID, s.beacon.owner.Seq} }

// advertisedTag returns the tag that others are told, none while it is new.
func (s *State) advertisedTag() Tag {
	if s.now.Sub(s.beacon.since) < beaconSettle {
		return Tag{}
	}
	return s.Tag()
}

// inOtherPart tells whether a node with tag t is in another part of the network: its
// beacon is another one, or that of the same owner which one of us has not heard
// for too long.
func (s *State) inOtherPart(t Tag) bool {
	own := s.advertisedTag()
	if t.ID == "" || own.ID == "" {
		return false
	}
	lag := int64(t.Seq - own.Seq)
	return t.ID != own.ID || time.Duration(max(lag, -lag)) > beaconLag
}

func (s *State) isOwner() bool { return s.beacon.owner.ID == s.cfg.Self }

// beaconDue returns when the beacon has to be looked at.
func (s *State) beaconDue() time.Time {
	if s.isOwner() {
		if s.Degree() == 0 {
			return time.Time{} // nobody to tell
		}
		return s.beacon.next
	}
	turn := time.Duration(float64(beaconTurn) * float64(s.beacon.ownRank) / (1 << 64))
	return s.beacon.heard.Add(beaconLife + turn)
}

// refreshBeacon floods the own beacon when it is due, and takes the place of an
// owner that is gone.
func (s *State) refreshBeacon(now time.Time) {
	if due := s.beaconDue(); due.IsZero() || now.Before(due) {
		return
	}
	if !s.isOwner() {
		s.retireOwner()
		s.becomeOwner(now)
	}
	s.beacon.next = now.Add(beaconInterval)
	s.emit(RenewRecord{}) // the answer is flooded
}

// retireOwner remembers the owner, whose beacon is not heard any more, so that a stale one
// does not bring it back.
func (s *State) retireOwner() {
	s.beacon.former = append(s.beacon.former, s.Tag())
	if len(s.beacon.former) > maxFormer {
		s.beacon.former = s.beacon.former[1:]
	}
}

// becomeOwner makes this node the owner.
func (s *State) becomeOwner(now time.Time) {
	s.setOwner(now, s.ownContact())
	s.beacon.rank = s.beacon.ownRank
	s.beacon.next = now.Add(beaconInterval)
}

func (s *State) setOwner(now time.Time, c Contact) {
	if s.beacon.owner.ID != c.ID {
		s.beacon.since = now
		s.swapSoon(now)
	}
	s.beacon.owner, s.beacon.heard = c, now
}

// handleRecordRenewed takes the own record.
func (s *State) handleRecordRenewed(now time.Time, in RecordRenewed) {
	s.record, s.beacon.ownSeq = in.Record, in.Seq
	if s.isOwner() {
		s.setOwner(now, s.ownContact())
		s.floodBeacon(s.beacon.owner, "")
	}
}

// ownContact is this node as others are told of it.
func (s *State) ownContact() Contact {
	return Contact{ID: s.cfg.Self, Record: s.record, Seq: s.beacon.ownSeq}
}

// handleBeacon handles a beacon that a neighbour passed on.
func (s *State) handleBeacon(now time.Time, from *link, owner Contact) {
	b := &s.beacon
	if owner.ID == s.cfg.Self || owner.ID == "" {
		return
	}
	if owner.ID == b.owner.ID {
		if owner.Seq > b.owner.Seq {
			s.setOwner(now, owner)
			s.floodBeacon(owner, from.ID)
		}
		return
	}
	stale := func(t Tag) bool { return t.ID == owner.ID && owner.Seq <= t.Seq }
	if slices.ContainsFunc(b.former, stale) {
		return
	}
	r := rank(owner.ID)
	gone := !s.isOwner() && now.Sub(b.heard) >= beaconLife
	switch {
	case gone:
		s.retireOwner() // it was another's turn to follow
	case r > b.rank:
		// Our part has a better one, which from has not heard of.
		if now.Sub(from.beaconSentAt) >= beaconInterval {
			s.sendBeacon(now, from)
		}
		return
	case now.Sub(b.since) >= beaconLife:
		s.book.retryLost(now) // two parts have come together
	}
	s.setOwner(now, owner)
	b.rank = r
	s.floodBeacon(owner, from.ID)
}

// sendBeacon says to a neighbour which beacon is heard here.
func (s *State) sendBeacon(now time.Time, l *link) {
	if len(s.beacon.owner.Record) > 0 {
		l.beaconSentAt = now
		s.send(l.Contact, Beacon{Owner: s.beacon.owner})
	}
}

func (s *State) floodBeacon(owner Contact, except peer.ID) {
	if len(owner.Record) == 0 {
		return
	}
	for _, l := range s.links {
		if l.phase == linked && l.ID != except {
			s.send(l.Contact, Beacon{Owner: owner})
		}
	}
}
