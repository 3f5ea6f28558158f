package overlay

import (
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/time/rate"

	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

const (
	// keepaliveInterval is the time between two keepalives on a link. If only one of the two
	// nodes still knows of a link, the link may last ten seconds, which is two intervals.
	keepaliveInterval = 5 * time.Second
	// A link ends when the neighbor was silent for silenceTimeout. In that time, the neighbor
	// missed two keepalives, and half an interval is left for delays.
	silenceTimeout = 12500 * time.Millisecond
	// A neighbor is suspect when it was silent for suspectTimeout. In that time, it missed one
	// keepalive, and half an interval is left for delays. The link to a suspect neighbor
	// remains, but the node looks for another link in its place.
	suspectTimeout = 7500 * time.Millisecond
	// requestTimeout bounds the time from a request for a link to the peer's answer: five
	// seconds for the dial, and two for the answer.
	requestTimeout = 7 * time.Second
	// acceptTimeout bounds the time between the messages Accept and Ready of the handshake of a
	// link. It is shorter than the ten seconds for which only one of two nodes may know of a
	// link, since the other node may have accepted later.
	acceptTimeout = 5 * time.Second
	// While the handshake of a link waits until the peer has joined the pubsub topic, the node
	// asks pubsub about that once per probeInterval.
	probeInterval = 300 * time.Millisecond
	// A link ends when the neighbor has been off the pubsub topic for offTopicTimeout.
	offTopicTimeout = 3 * time.Second
)

// This node limits the messages that it passes on for each neighbor. A random walk and a
// shuffle of addresses cost walkCost units each; a lookup, which searches for a node's address,
// costs lookupCost units. Each neighbor may use walkRate units per second on average, and
// walkBurst units at once.
const (
	walkRate   = 32
	walkBurst  = 64
	walkCost   = 4
	lookupCost = 1
)

// A phase says how far a link has come in its handshake.
type phase uint8

const (
	requested phase = iota // this node sent a Request for a link and waits for the answer
	accepted               // both nodes agreed to the link; each waits to see the other on the pubsub topic
	linked                 // the link is complete: both nodes have sent and received Ready
)

// A link is a link to a peer: a complete one, or one whose handshake is under way.
type link struct {
	Contact
	phase phase
	since time.Time // when the phase began

	// How the link was requested, and what its handshake may exceed.
	dialed bool // this node sent the request for this link, so it is able to dial the peer
	// urgent says that the request for this link asked the peer to accept it even if the peer has Max
	// links.
	urgent   bool
	manual   bool     // the user asked for the link
	wanted   bool     // complete the handshake of this link even if this node has Min links by then
	overflow bool     // complete the handshake of this link even if this node has Max links by then
	tokens   []uint64 // the Token of each Add (a request of the user) that waits for this link
	// replaces, if set, is a neighbor with too many links, which this node leaves once this
	// link is complete.
	replaces peer.ID

	// swap says that the link is made in exchange for another one: the node that requested it
	// leaves one of its neighbors. A full node that accepts the request sends one of its own
	// neighbors to that neighbor.
	swap    bool
	leaving Contact // the neighbor that the requester leaves
	// leavingReplaced says that another node will link to the neighbor that the requester
	// leaves, which so keeps its number of links.
	leavingReplaced bool

	// The state of the peer, as the messages of the peer tell it.
	session     protocol.Session
	degree      int           // the peer's number of links
	heard       time.Time     // when the peer's last message arrived
	peerStamp   time.Duration // Stamp in the peer's last Keepalive
	peerStampAt time.Time     // when the peer's last Keepalive arrived
	rtt         time.Duration // the round trip time to the peer and back; zero if not measured yet
	peerReady   *Ready        // the peer's first Ready

	// nextKeepalive is the time at which this node sends its next keepalive to the peer.
	nextKeepalive time.Time
	onTopic       bool
	offTopicSince time.Time // when the neighbor left the pubsub topic; zero while it is on the topic
	nextProbe     time.Time
	readySent     bool
	// beaconSentAt is when this node last sent a beacon to this peer alone, and not to all
	// neighbors.
	beaconSentAt time.Time
	walkLimit    *rate.Limiter // limits the walks and lookups that this node passes on for the peer
}

func newLink(c Contact) *link {
	return &link{Contact: c, walkLimit: rate.NewLimiter(walkRate, walkBurst)}
}

// suspect reports whether l is a complete link on which the neighbor has been silent for at
// least suspectTimeout, so that the neighbor may be gone.
func (l *link) suspect(now time.Time) bool {
	return l.phase == linked && now.Sub(l.heard) >= suspectTimeout
}

// allowWalk reports whether this node may pass on one more message for the neighbor at the time
// now. If so, it charges cost, in units of walkRate, to the neighbor.
func (l *link) allowWalk(now time.Time, cost int) bool { return l.walkLimit.AllowN(now, cost) }

// due returns the time at which checkLinkTimers next has to act on the link: for a timeout, to
// send a keepalive, or to ask pubsub whether the peer is on the topic.
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
		// A neighbor that becomes suspect no longer counts as a link, so this node has to look
		// for another neighbor at that moment.
		if !l.suspect(now) {
			t = earlier(t, l.heard.Add(suspectTimeout))
		}
		if !l.offTopicSince.IsZero() {
			t = earlier(t, l.offTopicSince.Add(offTopicTimeout))
		}
	}
	return t
}

// checkLinkTimers applies the timeouts of all links at the time now, sends the keepalives that
// are due, and asks pubsub whether peers have joined the topic.
func (s *State) checkLinkTimers(now time.Time) {
	// The loop runs over a copy, since ending a link removes it from s.links.
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
				// Pubsub reports once that a peer has joined the topic, and can miss a join
				// right after a leave. So this node asks pubsub again.
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
	// If the peer's last keepalive had a reading of the peer's clock, return it, so that the
	// peer can measure the round trip time.
	if l.peerStamp > 0 {
		m.Echo, m.Hold = l.peerStamp, now.Sub(l.peerStampAt)
	}
	s.send(l.Contact, m)
}
