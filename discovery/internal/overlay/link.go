package overlay

import (
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/time/rate"

	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

const (
	// keepaliveInterval is half of the ten seconds that a half link may last.
	keepaliveInterval = 5 * time.Second
	// silenceTimeout ends a link: two missed keepalives and half an interval more.
	silenceTimeout = 12500 * time.Millisecond
	// suspectTimeout is the silence after which a neighbor is suspect: one missed
	// keepalive and half an interval more. A suspect keeps its link, but the node looks
	// for others as if the link were gone.
	suspectTimeout = 7500 * time.Millisecond
	// requestTimeout bounds a request: a dial of five seconds and the answer.
	requestTimeout = 7 * time.Second
	// acceptTimeout bounds the time from Accept to Ready. It is less than the ten
	// seconds that a half link may last, as the other side may have begun to count
	// later.
	acceptTimeout = 5 * time.Second
	// probeInterval is how often pubsub is asked for a peer that it has not reported
	// on the topic yet.
	probeInterval = 300 * time.Millisecond
	// offTopicTimeout is how long a neighbor may be off the topic.
	offTopicTimeout = 3 * time.Second
)

// A neighbor may have this node pass on walkRate units per second, and walkBurst units at
// once. A walk or shuffle costs walkCost units, a lookup lookupCost.
const (
	walkRate   = 32
	walkBurst  = 64
	walkCost   = 4
	lookupCost = 1
)

// A phase is the phase of a link.
type phase uint8

const (
	requested phase = iota // this node sent a request
	accepted               // both agreed; each waits for the other on the topic
	linked                 // both are ready
)

// A link is a link to a peer, or one that is being made.
type link struct {
	Contact
	phase phase
	since time.Time // start of the phase

	// Why the link is made.
	dialed   bool     // this node sent the request, so the peer can be reached
	urgent   bool     // the request was urgent
	manual   bool     // the user asked for the link
	wanted   bool     // keep it even if there are Min links meanwhile
	overflow bool     // keep it even if there are Max links meanwhile
	tokens   []uint64 // the Adds that wait for the link
	replaces peer.ID  // a handover: the neighbor to leave once this link stands

	// A swap: the requester leaves one neighbor for this link. The node that takes the
	// request may send one of its own neighbors to the one that is left.
	swap            bool
	leaving         Contact // the neighbor that the requester leaves
	leavingReplaced bool    // leaving gets another neighbor in exchange

	// What the peer said.
	session     protocol.Session
	degree      int // number of its links
	heard       time.Time
	peerStamp   time.Duration // the Stamp of its last keepalive
	peerStampAt time.Time
	rtt         time.Duration
	peerReady   *Ready

	// Keepalive and topic.
	nextKeepalive time.Time
	onTopic       bool
	offTopicSince time.Time
	nextProbe     time.Time
	readySent     bool
	beaconSentAt  time.Time // when the peer was last told of a better beacon
	walkLimit     *rate.Limiter
}

func newLink(c Contact) *link {
	return &link{Contact: c, walkLimit: rate.NewLimiter(walkRate, walkBurst)}
}

// suspect reports whether the neighbor has been silent for so long that it may be gone.
func (l *link) suspect(now time.Time) bool {
	return l.phase == linked && now.Sub(l.heard) >= suspectTimeout
}

// allowWalk reports whether the neighbor may have this node pass on a message of that
// cost, and counts it.
func (l *link) allowWalk(now time.Time, cost int) bool { return l.walkLimit.AllowN(now, cost) }

// due returns when the next timer of the link ends.
func (l *link) due(now time.Time) (t time.Time) {
	switch l.phase {
	case requested:
		return l.since.Add(requestTimeout)
	case accepted:
		t = l.since.Add(acceptTimeout)
		if !l.onTopic {
			t = earlier(t, l.nextProbe)
		}
	case linked:
		t = earlier(l.nextKeepalive, l.heard.Add(silenceTimeout))
		// Nothing marks a suspect, but its place becomes free at that moment.
		if !l.suspect(now) {
			t = earlier(t, l.heard.Add(suspectTimeout))
		}
		if !l.offTopicSince.IsZero() {
			t = earlier(t, l.offTopicSince.Add(offTopicTimeout))
		}
	}
	return t
}

// checkLinkTimers applies the timeouts of all links and sends the keepalives that are
// due.
func (s *State) checkLinkTimers(now time.Time) {
	// A link that ends removes itself from s.links.
	for _, l := range append([]*link(nil), s.links...) {
		switch l.phase {
		case requested:
			if now.Sub(l.since) >= requestTimeout {
				s.handleUnreachable(now, l.ID, ReasonTimeout)
			}
		case accepted:
			if now.Sub(l.since) >= acceptTimeout {
				s.leaveLink(now, l, ReasonTimeout)
			} else if !l.onTopic && !now.Before(l.nextProbe) {
				// Pubsub reports a join once, and can miss one that follows a leave.
				l.nextProbe = now.Add(probeInterval)
				s.emit(Probe{Peer: l.ID})
			}
		case linked:
			switch {
			case now.Sub(l.heard) >= silenceTimeout:
				s.leaveLink(now, l, ReasonSilent)
			case !l.offTopicSince.IsZero() && now.Sub(l.offTopicSince) >= offTopicTimeout:
				s.leaveLink(now, l, ReasonOffTopic)
			case !now.Before(l.nextKeepalive):
				s.sendKeepalive(now, l)
			}
		}
	}
}

func (s *State) sendKeepalive(now time.Time, l *link) {
	l.nextKeepalive = now.Add(keepaliveInterval)
	m := Keepalive{Degree: s.count(linked), Stamp: now.Sub(s.started)}
	// Echoing the peer's clock lets it measure the round trip.
	if l.peerStamp > 0 {
		m.Echo, m.Hold = l.peerStamp, now.Sub(l.peerStampAt)
	}
	s.send(l.Contact, m)
}
