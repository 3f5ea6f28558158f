package overlay

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

const (
	// beaconInterval is the time between two beacons of the owner of a tag.
	beaconInterval = 10 * time.Second
	// beaconTimeout is the silence after which the owner of a tag counts as gone: three
	// beacons did not arrive, and half an interval is left for delays.
	beaconTimeout = 35 * time.Second
	// takeoverSpan is the period in which the nodes of a part, one after the other, would
	// become the owner in place of one that is gone. Each node takes its turn only if it
	// has not heard a new owner by then.
	takeoverSpan = 5 * time.Second
	// Two nodes of the same part may not yet have received the same beacon of the owner. If
	// the ages of their newest beacons differ by more than maxBeaconLag, the nodes are in
	// different parts. It is one interval, and half an interval for the flood.
	maxBeaconLag = 15 * time.Second
	// newOwnerDelay is the time for which a node does not tell others the tag of a new
	// owner. A node with its first link still has its own tag for a moment, and would
	// be taken for another part, for which full nodes have to make room.
	newOwnerDelay = 2 * time.Second
	// maxFormerOwners is the number of former owners of tags that a node remembers.
	maxFormerOwners = 8
)

// partTag is what a node knows of the tag of its part of the network. The node of a part
// with the lowest rank owns the tag, and floods beacons. So two parts that come together
// agree on an owner, whichever of them notices first.
type partTag struct {
	ownRank uint64 // this node's rank
	ownSeq  uint64 // the sequence number of this node's newest record

	owner        Contact
	rank         uint64    // the rank of the owner
	heard        time.Time // when the newest beacon of the owner arrived
	since        time.Time // when this node first received a beacon from the owner
	next         time.Time // when to flood the next beacon, if this node is the owner
	formerOwners []Tag     // the last tag of each owner that fell silent
}

// rank returns the number that decides which node of a part owns the tag: the lowest rank
// does. It is a hash of the id, so that ranks are spread evenly whatever the ids look like.
func rank(id peer.ID) uint64 {
	sum := sha256.Sum256([]byte(id))
	return binary.BigEndian.Uint64(sum[:])
}

// Tag returns the tag of this node's part of the network.
func (s *State) Tag() Tag { return Tag{s.beacon.owner.ID, s.beacon.owner.Seq} }

// advertisedTag returns the tag that this node puts into messages. It is empty for the
// first newOwnerDelay after the owner of the tag has changed.
func (s *State) advertisedTag() Tag {
	// A tag that has just changed may change again, see newOwnerDelay.
	if s.now.Sub(s.beacon.since) < newOwnerDelay {
		return Tag{}
	}
	return s.Tag()
}

// inOtherPart reports whether a node that advertises the tag t is in another part of the
// network than this node. That is so if the two tags have different owners, or if the
// beacons of one owner reach only one of the two nodes any more.
func (s *State) inOtherPart(t Tag) bool {
	own := s.advertisedTag()
	if t.ID == "" || own.ID == "" {
		return false // one of the two nodes is not sure of its tag yet
	}
	lag := int64(t.Seq - own.Seq)
	return t.ID != own.ID || time.Duration(max(lag, -lag)) > maxBeaconLag
}

func (s *State) isOwner() bool { return s.beacon.owner.ID == s.cfg.Self }

// beaconDue returns when refreshBeacon has to act next; zero means never.
func (s *State) beaconDue() time.Time {
	if s.isOwner() {
		if s.Degree() == 0 {
			return time.Time{} // without links, a beacon would reach nobody
		}
		return s.beacon.next
	}
	// The lower the rank of a node, the earlier its turn to replace a silent owner. So the
	// node with the lowest rank becomes the owner, and the others hear its beacon before
	// their own turn comes.
	turn := time.Duration(float64(takeoverSpan) * float64(s.beacon.ownRank) / (1 << 64))
	return s.beacon.heard.Add(beaconTimeout + turn)
}

// refreshBeacon floods a beacon if this node owns the tag and a beacon is due. If the owner
// is another node that has fallen silent, and it is this node's turn, it makes this node
// the owner.
func (s *State) refreshBeacon(now time.Time) {
	if due := s.beaconDue(); due.IsZero() || now.Before(due) {
		return
	}
	if !s.isOwner() { // the owner has been silent until this node's turn
		s.retireOwner()
		s.becomeOwner(now)
	}
	s.beacon.next = now.Add(beaconInterval)
	s.emit(RenewRecord{}) // the driver answers, and handleRecordRenewed floods the new record
}

// retireOwner adds the present owner of the tag, which fell silent, to the former owners.
// So a late copy of its last beacon does not make it the owner again.
func (s *State) retireOwner() {
	s.beacon.formerOwners = append(s.beacon.formerOwners, s.Tag())
	// Drop the oldest entry when the list is full.
	if len(s.beacon.formerOwners) > maxFormerOwners {
		s.beacon.formerOwners = s.beacon.formerOwners[1:]
	}
}

// becomeOwner makes this node the owner of the tag.
func (s *State) becomeOwner(now time.Time) {
	s.setOwner(now, s.ownContact())
	s.beacon.rank = s.beacon.ownRank
	s.beacon.next = now.Add(beaconInterval)
}

// setOwner notes that a beacon of c arrived, and that c is the owner of the tag.
func (s *State) setOwner(now time.Time, c Contact) {
	// The owner changes when two parts meet or a part breaks up. Then swaps should soon
	// spread the links over the whole part.
	if s.beacon.owner.ID != c.ID {
		s.beacon.since = now
		s.swapSoon(now)
	}
	s.beacon.owner, s.beacon.heard = c, now
}

// handleRecordRenewed stores this node's new record. If this node owns the tag, it floods
// the record as its beacon.
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

// handleBeacon handles a beacon of the node owner, which the neighbor from sent or passed
// on.
func (s *State) handleBeacon(now time.Time, from *link, owner Contact) {
	b := &s.beacon
	if owner.ID == s.cfg.Self || owner.ID == "" {
		return // this node's own beacon has come back, or there is no owner in it
	}
	if owner.ID == b.owner.ID {
		// A beacon that is not newer was passed on before. Dropping it ends the flood.
		if owner.Seq > b.owner.Seq {
			s.setOwner(now, owner)
			s.floodBeacon(owner, from.ID)
		}
		return
	}
	stale := func(t Tag) bool { return t.ID == owner.ID && owner.Seq <= t.Seq }
	if slices.ContainsFunc(b.formerOwners, stale) {
		return // a late copy of an old beacon, whose owner has fallen silent since
	}
	r := rank(owner.ID)
	silent := !s.isOwner() && now.Sub(b.heard) >= beaconTimeout
	switch {
	case silent:
		s.retireOwner() // the node in this beacon replaces the owner that fell silent
	case r > b.rank:
		// This node knows an owner with a lower rank, of which the neighbor has not heard.
		// It tells the neighbor at most once per interval, since otherwise the two could
		// answer each other without end.
		if now.Sub(from.beaconSentAt) >= beaconInterval {
			s.sendBeacon(now, from)
		}
		return
	case now.Sub(b.since) >= beaconTimeout:
		// Another part, with an owner of lower rank, has come together with this part,
		// which existed for a while. The nodes that this node lost may be in that part.
		s.book.retryLost(now)
	}
	s.setOwner(now, owner)
	b.rank = r
	s.floodBeacon(owner, from.ID)
}

// sendBeacon sends the newest beacon to one neighbor.
func (s *State) sendBeacon(now time.Time, l *link) {
	// A node that owns the tag but has no signed record yet cannot send a beacon.
	if len(s.beacon.owner.Record) > 0 {
		l.beaconSentAt = now
		s.send(l.Contact, Beacon{Owner: s.beacon.owner})
	}
}

// floodBeacon sends a beacon to all neighbors except the one that it came from.
func (s *State) floodBeacon(owner Contact, except peer.ID) {
	if len(owner.Record) == 0 {
		return // this node has no signed record yet, and a beacon consists of one
	}
	for _, l := range s.links {
		if l.phase == linked && l.ID != except {
			s.send(l.Contact, Beacon{Owner: owner})
		}
	}
}
