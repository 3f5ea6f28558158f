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
	// beaconLife is how long a beacon counts after it was heard: three intervals and
	// half of one.
	beaconLife = 35 * time.Second
	// beaconTurn is the time over which the nodes take turns to follow an owner that is
	// gone.
	beaconTurn = 5 * time.Second
	// beaconLag is how much the clocks in two beacons of one owner may differ between
	// two nodes that both hear it: one interval, and half of one for the flood.
	beaconLag = 15 * time.Second
	// beaconSettle is how long a node keeps the tag of a new owner to itself. A node
	// that has just made its first link still believes to be a part of its own, and
	// nobody has to make room for that.
	beaconSettle = 2 * time.Second
	// maxFormer bounds the former owners that are remembered.
	maxFormer = 8
)

// partTag is the tag of this node's part of the network. Of all nodes in a part, the one
// with the lowest rank owns the tag. So two parts that come together agree on an owner,
// whichever of them notices first.
type partTag struct {
	ownRank uint64
	ownSeq  uint64 // the sequence number of this node's newest record

	owner  Contact
	rank   uint64    // the owner's
	heard  time.Time // when the newest beacon was heard
	since  time.Time // when the first beacon of this owner was heard
	next   time.Time // when to flood, if this node is the owner
	former []Tag     // the last beacons of owners that fell silent
}

// rank orders nodes by the hash of their ids, so that their turns are spread evenly
// whatever the ids look like.
func rank(id peer.ID) uint64 {
	sum := sha256.Sum256([]byte(id))
	return binary.BigEndian.Uint64(sum[:])
}

// Tag returns the tag of this node's part of the network.
func (s *State) Tag() Tag { return Tag{s.beacon.owner.ID, s.beacon.owner.Seq} }

// advertisedTag returns the tag for messages to others. It is empty while the owner is
// new.
func (s *State) advertisedTag() Tag {
	if s.now.Sub(s.beacon.since) < beaconSettle {
		return Tag{}
	}
	return s.Tag()
}

// inOtherPart reports whether a node with tag t is in another part of the network: it
// hears another owner, or one of the two nodes has not heard the same owner for too
// long.
func (s *State) inOtherPart(t Tag) bool {
	own := s.advertisedTag()
	if t.ID == "" || own.ID == "" {
		return false // one of the two does not know its part yet
	}
	lag := int64(t.Seq - own.Seq)
	return t.ID != own.ID || time.Duration(max(lag, -lag)) > beaconLag
}

func (s *State) isOwner() bool { return s.beacon.owner.ID == s.cfg.Self }

// beaconDue returns when refreshBeacon has something to do; zero means never.
func (s *State) beaconDue() time.Time {
	if s.isOwner() {
		if s.Degree() == 0 {
			return time.Time{} // nobody would hear a beacon
		}
		return s.beacon.next
	}
	// The lower the rank, the earlier the turn. So the best node follows, and the others
	// hear of it before their own turn comes.
	turn := time.Duration(float64(beaconTurn) * float64(s.beacon.ownRank) / (1 << 64))
	return s.beacon.heard.Add(beaconLife + turn)
}

// refreshBeacon floods this node's beacon when that is due, and makes this node the
// owner when the present one has fallen silent.
func (s *State) refreshBeacon(now time.Time) {
	if due := s.beaconDue(); due.IsZero() || now.Before(due) {
		return
	}
	if !s.isOwner() {
		s.retireOwner()
		s.becomeOwner(now)
	}
	s.beacon.next = now.Add(beaconInterval)
	s.emit(RenewRecord{}) // handleRecordRenewed floods the answer
}

// retireOwner remembers the owner that fell silent, so that a late copy of its beacon
// does not make it the owner again.
func (s *State) retireOwner() {
	s.beacon.former = append(s.beacon.former, s.Tag())
	if len(s.beacon.former) > maxFormer {
		s.beacon.former = s.beacon.former[1:]
	}
}

func (s *State) becomeOwner(now time.Time) {
	s.setOwner(now, s.ownContact())
	s.beacon.rank = s.beacon.ownRank
	s.beacon.next = now.Add(beaconInterval)
}

func (s *State) setOwner(now time.Time, c Contact) {
	// A new owner means that two parts met or one broke up, so the links should mix.
	if s.beacon.owner.ID != c.ID {
		s.beacon.since = now
		s.swapSoon(now)
	}
	s.beacon.owner, s.beacon.heard = c, now
}

// handleRecordRenewed stores this node's new record. The owner floods it as its beacon.
func (s *State) handleRecordRenewed(now time.Time, in RecordRenewed) {
	s.record, s.beacon.ownSeq = in.Record, in.Seq
	if s.isOwner() {
		s.setOwner(now, s.ownContact())
		s.floodBeacon(s.beacon.owner, "")
	}
}

// ownContact returns this node's contact for messages to others.
func (s *State) ownContact() Contact {
	return Contact{ID: s.cfg.Self, Record: s.record, Seq: s.beacon.ownSeq}
}

// handleBeacon handles a beacon that a neighbor passed on.
func (s *State) handleBeacon(now time.Time, from *link, owner Contact) {
	b := &s.beacon
	if owner.ID == s.cfg.Self || owner.ID == "" {
		return // this node's own beacon has come back
	}
	if owner.ID == b.owner.ID {
		// Only a newer beacon is passed on, so a flood ends.
		if owner.Seq > b.owner.Seq {
			s.setOwner(now, owner)
			s.floodBeacon(owner, from.ID)
		}
		return
	}
	stale := func(t Tag) bool { return t.ID == owner.ID && owner.Seq <= t.Seq }
	if slices.ContainsFunc(b.former, stale) {
		return // an old beacon of an owner that fell silent
	}
	r := rank(owner.ID)
	silent := !s.isOwner() && now.Sub(b.heard) >= beaconLife
	switch {
	case silent:
		s.retireOwner() // the other node's turn to follow came before this node's
	case r > b.rank:
		// This part has a better owner, which the neighbor has not heard of. It is told
		// once per interval, or two parts would answer each other without end.
		if now.Sub(from.beaconSentAt) >= beaconInterval {
			s.sendBeacon(now, from)
		}
		return
	case now.Sub(b.since) >= beaconLife:
		// Two parts that both existed for a while have come together, so the lost nodes
		// may be in the other part.
		s.book.retryLost(now)
	}
	s.setOwner(now, owner)
	b.rank = r
	s.floodBeacon(owner, from.ID)
}

// sendBeacon sends the present beacon to one neighbor.
func (s *State) sendBeacon(now time.Time, l *link) {
	// Before its first record this node is the owner of a tag that it cannot prove.
	if len(s.beacon.owner.Record) > 0 {
		l.beaconSentAt = now
		s.send(l.Contact, Beacon{Owner: s.beacon.owner})
	}
}

// floodBeacon sends a beacon to all neighbors but one.
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
