package sim

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/discovery/internal/overlay"
)

// Original are the rules of the Node.js library smokesignal, version 0.2.2, taken from its
// source and from experiments with it. They serve for comparison. In that library, a peer is a
// TCP connection without a keepalive: a link to a dead machine ends when TCP gives up, after a
// quarter of an hour. The library pings the address of a seed; this model pings the node of the
// seed.
var Original = Rules{
	Name:        "original",
	ConnTimeout: 15 * time.Minute,
	New: func(id peer.ID, _ uint64, seeds []peer.ID, r *rand.Rand) Membership {
		return &original{id: id, seeds: seeds, rand: r, seen: map[uint64]struct{}{}}
	},
}

const (
	oldTick        = 10 * time.Second
	oldPingTimeout = 3 * time.Second
)

// An originalPacket is a message of the Node.js library.
type originalPacket struct {
	overlay.Message
	what   packetKind
	number uint64  // identifies a packet that is flooded
	origin peer.ID // the node that looks for a peer, or that pings a seed
	target peer.ID // the seed that a ping is for
	socket uint64  // identifies the socket of a handshake
}

type packetKind uint8

const (
	packetAsk       packetKind = iota // a node without peers asks a seed for a peer
	packetRequest                     // the question of a node for a peer, which the seed that was asked floods
	packetPing                        // flooded to find out whether a seed can still be reached
	packetPong                        // the answer of the seed, sent directly
	packetHandshake                   // sent by the node that answers a request for a peer, after a dial
	packetAck                         // answers a handshake
	packetClose                       // the end of a socket; it does not count as a message
)

// needsNewSocket reports whether the Node.js library opens a new socket to send the packet p,
// even if the two nodes have one already.
func (p *originalPacket) needsNewSocket() bool {
	return p.what == packetAsk || p.what == packetHandshake || p.what == packetPong
}

type original struct {
	id    peer.ID
	seeds []peer.ID
	rand  *rand.Rand

	tick       time.Time
	peers      []oldPeer
	handshakes []oldPeer           // handshakes that this node has begun
	seen       map[uint64]struct{} // the numbers of flooded packets that this node has handled
	pings      []oldPing           // pings without an answer
	netsplit   bool                // never set back to false, because of a typo in the Node.js library
	out        []overlay.Output
}

type oldPeer struct {
	id     peer.ID
	socket uint64
}

type oldPing struct {
	number uint64
	until  time.Time
}

func (s *original) Next(time.Time) time.Time {
	next := s.tick
	for _, p := range s.pings {
		if p.until.Before(next) {
			next = p.until
		}
	}
	return next
}

func (s *original) Step(now time.Time, in overlay.Input) []overlay.Output {
	s.out = s.out[:0]
	switch in := in.(type) {
	case overlay.Received:
		if p, ok := in.Message.(*originalPacket); ok {
			s.handlePacket(in.From.ID, p)
		}
	case overlay.Disconnected:
		s.endSockets(func(p oldPeer) bool { return p.id == in.Peer })
	case overlay.Unreachable:
		s.handshakes = slices.DeleteFunc(s.handshakes, func(p oldPeer) bool { return p.id == in.Peer })
	}
	s.timers(now)
	return s.out
}

func (s *original) timers(now time.Time) {
	s.pings = slices.DeleteFunc(s.pings, func(p oldPing) bool {
		if now.Before(p.until) {
			return false
		}
		s.netsplit = true
		return true
	})
	if now.Before(s.tick) {
		return
	}
	s.tick = now.Add(oldTick)
	if len(s.peers) == 0 {
		s.askSeeds()
		return
	}
	for _, seed := range s.seeds {
		if seed != s.id {
			p := s.flood(&originalPacket{what: packetPing, origin: s.id, target: seed})
			s.pings = append(s.pings, oldPing{p.number, now.Add(oldPingTimeout)})
		}
	}
	if s.netsplit {
		s.askSeeds()
	}
	if len(s.peers) < Min {
		s.flood(&originalPacket{what: packetRequest, origin: s.id})
	}
}

func (s *original) askSeeds() {
	for _, seed := range s.seeds {
		if seed != s.id {
			s.send(seed, &originalPacket{what: packetAsk, origin: s.id})
		}
	}
}

func (s *original) send(to peer.ID, p *originalPacket) {
	s.out = append(s.out, overlay.Send{To: overlay.Contact{ID: to}, Message: p})
}

// flood gives the packet p a random number, sends it to all peers, and returns p.
func (s *original) flood(p *originalPacket) *originalPacket {
	p.number = s.rand.Uint64()
	s.seen[p.number] = struct{}{}
	for _, x := range s.peers {
		s.send(x.id, p)
	}
	return p
}

func (s *original) forward(p *originalPacket, from peer.ID) {
	for _, x := range s.peers {
		if x.id != from {
			s.send(x.id, p)
		}
	}
}

func (s *original) hasPeer(id peer.ID) bool {
	return slices.ContainsFunc(s.peers, func(p oldPeer) bool { return p.id == id })
}

func (s *original) handlePacket(from peer.ID, p *originalPacket) {
	if p.what == packetRequest || p.what == packetPing {
		// A node handles a flooded packet only once, and only if it came from a peer.
		if _, ok := s.seen[p.number]; ok || !s.hasPeer(from) {
			return
		}
		s.seen[p.number] = struct{}{}
	}
	switch p.what {
	case packetAsk:
		s.flood(&originalPacket{what: packetRequest, origin: p.origin})
		s.answerRequest(p.origin)
	case packetRequest:
		// A node that answers the request for a peer does not pass the request on.
		if p.origin != s.id && !s.answerRequest(p.origin) {
			s.forward(p, from)
		}
	case packetPing:
		if p.target == s.id {
			s.send(p.origin, &originalPacket{what: packetPong, number: p.number})
		} else {
			s.forward(p, from)
		}
	case packetPong:
		s.pings = slices.DeleteFunc(s.pings, func(x oldPing) bool { return x.number == p.number })
	case packetHandshake:
		if s.addPeer(oldPeer{from, p.socket}) {
			s.send(from, &originalPacket{what: packetAck, socket: p.socket})
		}
	case packetAck:
		s.handshakes = slices.DeleteFunc(s.handshakes, func(x oldPeer) bool { return x.socket == p.socket })
		s.addPeer(oldPeer{from, p.socket})
	case packetClose:
		s.endSockets(func(x oldPeer) bool { return x.id == from && x.socket == p.socket })
	}
}

// answerRequest begins a handshake with the node origin, which looks for a peer, and reports
// true. It reports false if this node does not want that peer, so that other nodes get the
// request.
func (s *original) answerRequest(origin peer.ID) bool {
	switch {
	case origin == s.id || len(s.peers) >= Max || s.hasPeer(origin):
		return false
	case len(s.peers) >= Min && s.rand.IntN(2) == 0:
		return false
	}
	p := &originalPacket{what: packetHandshake, socket: s.rand.Uint64()}
	s.handshakes = append(s.handshakes, oldPeer{origin, p.socket})
	s.send(origin, p)
	return true
}

// addPeer makes the node at the other end of the socket in p a peer. If that node is a peer
// already, or there are too many peers, it closes the socket and reports false. So when two
// nodes dial each other at the same time, both sockets get closed.
func (s *original) addPeer(p oldPeer) bool {
	if len(s.peers) >= Max || s.hasPeer(p.id) {
		s.send(p.id, &originalPacket{what: packetClose, socket: p.socket})
		return false
	}
	s.peers = append(s.peers, p)
	s.out = append(s.out, overlay.Linked{Peer: p.id})
	return true
}

// endSockets ends the handshakes and the links on all sockets for which match returns true.
func (s *original) endSockets(match func(oldPeer) bool) {
	s.handshakes = slices.DeleteFunc(s.handshakes, match)
	s.peers = slices.DeleteFunc(s.peers, func(p oldPeer) bool {
		if !match(p) {
			return false
		}
		s.out = append(s.out, overlay.Unlinked{Peer: p.id, Reason: overlay.ReasonGone, WasLinked: true})
		return true
	})
}
