package overlay

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

const (
	// beaconInterval is the time between two beacons. A beacon is a message that one node, the
	// owner of the tag of its part of the network, floods to all nodes of that part.
	beaconInterval = 10 * time.Second
	// If a node has received no beacon for beaconTimeout, it takes the node that floods the
	// beacons, the owner of the tag of its part of the network, for dead. That is three missed
	// beacons, and half an interval for delays.
	beaconTimeout = 35 * time.Second
	// takeoverSpan is the period in which the nodes of one part of the network get a turn, one
	// after the other, to replace a dead owner of the tag (the node that floods beacons). A
	// node takes its turn only if it has received no beacon from a new owner by then.
	takeoverSpan = 5 * time.Second
	// Two nodes in one part of the network may not yet have received the same beacon. If the
	// times in the newest beacons that they received differ by more than maxBeaconLag, the two
	// nodes are in different parts of a split network. The value is one beacon interval, and
	// half an interval for the time that the flood of a beacon takes.
	maxBeaconLag = 15 * time.Second
	// After the owner of its tag has changed, a node sends no tag to other nodes for
	// newOwnerDelay. A node with its first link still has a tag of its own for a moment. Other
	// nodes would believe that it is in another part of the network, and full nodes would make
	// room for it.
	newOwnerDelay = 2 * time.Second
	// maxFormerOwners is the number of earlier owners of the tag that a node remembers. These
	// are nodes that flooded beacons and then fell silent.
	maxFormerOwners = 8
)

// partTag is what a node knows of the tag, the name of its part of the network. In each part,
// the node with the lowest rank owns the tag, and floods beacons, from which the other nodes
// learn the tag. So when two parts are connected again, all their nodes agree on one owner,
// whichever part notices the other first.
type partTag struct {
	ownRank uint64 // this node's rank
	ownSeq  uint64 // the sequence number of this node's newest signed peer record

	owner Contact
	rank  uint64 // the rank of the owner
	// heard is when this node received the newest beacon of the owner, the node that floods
	// beacons.
	heard time.Time
	// since is when the owner of the tag, the node that floods beacons, last changed for this
	// node.
	since time.Time
	next  time.Time // when this node floods its next beacon, if it is the owner of the tag
	// formerOwners has the last tag of each node that flooded beacons, as the owner of the tag,
	// and then fell silent.
	formerOwners []Tag
}

// rank returns the rank of the node id. In each part of the network, the node with the lowest
// rank owns the tag, and floods beacons. The rank is a hash of the id, so that ranks are spread
// evenly whatever the ids look like.
func rank(id peer.ID) uint64 {
	sum := sha256.Sum256([]byte(id))
	return binary.BigEndian.Uint64(sum[:])
}

// Tag returns the tag of this node's part of the network: the id of the node that owns the tag
// and floods beacons, and the sequence number of that node's newest beacon.
func (s *State) Tag() Tag { return Tag{s.beacon.owner.ID, s.beacon.owner.Seq} }

// advertisedTag returns the tag, the name of this node's part of the network, that this node
// puts into messages. The tag names the node that floods beacons, its owner. It is empty for
// the first newOwnerDelay after the owner has changed.
func (s *State) advertisedTag() Tag {
	// The owner of the tag, the node that floods beacons, has just changed and may change
	// again; see newOwnerDelay.
	if s.now.Sub(s.beacon.since) < newOwnerDelay {
		return Tag{}
	}
	return s.Tag()
}

// inOtherPart reports whether a node that sends the tag t is in another part of a split network
// than this node. That is so if the tags of the two nodes have different owners, or if their
// newest beacons of the same owner are too far apart in time. If one of the two tags is empty,
// inOtherPart reports false.
func (s *State) inOtherPart(t Tag) bool {
	own := s.advertisedTag()
	if t.ID == "" || own.ID == "" {
		// One of the two nodes sends no tag yet, since another node has just begun to flood
		// beacons in its part of the network.
		return false
	}
	lag := int64(t.Seq - own.Seq)
	return t.ID != own.ID || time.Duration(max(lag, -lag)) > maxBeaconLag
}

func (s *State) isOwner() bool { return s.beacon.owner.ID == s.cfg.Self }

// beaconDue returns the time at which refreshBeacon has to flood a beacon, or to replace the
// owner of the tag (the node that floods beacons) because it fell silent. The zero time means
// never.
func (s *State) beaconDue() time.Time {
	if s.isOwner() {
		if s.Degree() == 0 {
			return time.Time{} // without links, a beacon would reach nobody
		}
		return s.beacon.next
	}
	// The lower the rank of a node, the earlier its turn to replace an owner of the tag that
	// fell silent. So the live node with the lowest rank becomes the owner, and the other nodes
	// receive its beacon before their own turn comes.
	turn := time.Duration(float64(takeoverSpan) * float64(s.beacon.ownRank) / (1 << 64))
	return s.beacon.heard.Add(beaconTimeout + turn)
}

// refreshBeacon floods a beacon if this node owns the tag of its part of the network and a
// beacon is due. If another node owns the tag but fell silent, and it is this node's turn to
// replace it, this node becomes the owner.
func (s *State) refreshBeacon(now time.Time) {
	if due := s.beaconDue(); due.IsZero() || now.Before(due) {
		return
	}
	// Another node flooded the beacons, and was silent until this node's turn to replace it.
	if !s.isOwner() {
		s.retireOwner()
		s.becomeOwner(now)
	}
	s.beacon.next = now.Add(beaconInterval)
	// The driver answers with a newly signed record, which handleRecordRenewed floods as a
	// beacon.
	s.emit(RenewRecord{})
}

// retireOwner adds the present owner of the tag, a node that flooded beacons and fell silent,
// to the list of former owners. So a late copy of that node's last beacon does not make it the
// owner again.
func (s *State) retireOwner() {
	s.beacon.formerOwners = append(s.beacon.formerOwners, s.Tag())
	// Drop the oldest entry when there are more than maxFormerOwners.
	if len(s.beacon.formerOwners) > maxFormerOwners {
		s.beacon.formerOwners = s.beacon.formerOwners[1:]
	}
}

// becomeOwner makes this node, at the time now, the owner of the tag: the node that floods the
// beacons of its part of the network.
func (s *State) becomeOwner(now time.Time) {
	s.setOwner(now, s.ownContact())
	s.beacon.rank = s.beacon.ownRank
	s.beacon.next = now.Add(beaconInterval)
}

// setOwner notes that the node c owns the tag, and so floods the beacons, and that its newest
// beacon arrived at the time now. If another node owned the tag before, setOwner makes this
// node swap links soon.
func (s *State) setOwner(now time.Time, c Contact) {
	// The owner of the tag, the node that floods beacons, changes when two parts of the network
	// meet or a part breaks up. Then this node should soon swap links, so that the links are
	// spread over the whole part.
	if s.beacon.owner.ID != c.ID {
		s.beacon.since = now
		s.swapSoon(now)
	}
	s.beacon.owner, s.beacon.heard = c, now
}

// handleRecordRenewed stores this node's newly signed peer record. If this node owns the tag of
// its part of the network, it floods the record to all neighbors as a beacon.
func (s *State) handleRecordRenewed(now time.Time, in RecordRenewed) {
	s.record, s.beacon.ownSeq = in.Record, in.Seq
	if s.isOwner() {
		s.setOwner(now, s.ownContact())
		s.floodBeacon(s.beacon.owner, "")
	}
}

// ownContact returns the contact of this node that messages carry: its id, its signed peer
// record, and the sequence number of that record.
func (s *State) ownContact() Contact {
	return Contact{ID: s.cfg.Self, Record: s.record, Seq: s.beacon.ownSeq}
}

// handleBeacon handles a beacon, which says that the node owner owns the tag of its part of the
// network. The neighbor from sent the beacon or passed it on.
func (s *State) handleBeacon(now time.Time, from *link, owner Contact) {
	b := &s.beacon
	if owner.ID == s.cfg.Self || owner.ID == "" {
		return // this node's own beacon has come back, or the beacon names no owner
	}
	if owner.ID == b.owner.ID {
		// A beacon that is not newer than the last one from the same owner was passed on
		// before. Dropping it ends the flood.
		if owner.Seq > b.owner.Seq {
			s.setOwner(now, owner)
			s.floodBeacon(owner, from.ID)
		}
		return
	}
	stale := func(t Tag) bool { return t.ID == owner.ID && owner.Seq <= t.Seq }
	if slices.ContainsFunc(b.formerOwners, stale) {
		return // an old beacon that arrives late; the node in it has fallen silent since
	}
	r := rank(owner.ID)
	silent := !s.isOwner() && now.Sub(b.heard) >= beaconTimeout
	switch {
	case silent:
		// The node in this beacon replaces the node that flooded beacons before and fell
		// silent.
		s.retireOwner()
	case r > b.rank:
		// This node knows an owner of the tag with a lower rank, of which the neighbor has not
		// heard. It sends that owner's beacon to the neighbor at most once per beacon interval,
		// since otherwise the two nodes could answer each other without end.
		if now.Sub(from.beaconSentAt) >= beaconInterval {
			s.sendBeacon(now, from)
		}
		return
	case now.Sub(b.since) >= beaconTimeout:
		// This node's part of the network, which existed for a while, has met another part,
		// whose owner of the tag has a lower rank. The nodes that this node lost may be in that
		// other part.
		s.book.retryLost(now)
	}
	s.setOwner(now, owner)
	b.rank = r
	s.floodBeacon(owner, from.ID)
}

// sendBeacon sends the newest beacon that this node knows, which names the owner of the tag, to
// the neighbor of the link l. It notes the time now in l.
func (s *State) sendBeacon(now time.Time, l *link) {
	// A node that owns the tag but has no signed peer record yet cannot send a beacon, which
	// consists of that record.
	if len(s.beacon.owner.Record) > 0 {
		l.beaconSentAt = now
		s.send(l.Contact, Beacon{Owner: s.beacon.owner})
	}
}

// floodBeacon sends a beacon, the contact owner, to all neighbors except the one with the id
// except, from which the beacon came.
func (s *State) floodBeacon(owner Contact, except peer.ID) {
	if len(owner.Record) == 0 {
		return // this node has no signed peer record yet, and a beacon consists of one
	}
	for _, l := range s.links {
		if l.phase == linked && l.ID != except {
			s.send(l.Contact, Beacon{Owner: owner})
		}
	}
}
