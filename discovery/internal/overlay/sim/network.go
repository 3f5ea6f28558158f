package sim

import (
	"slices"
	"time"

	"github.com/go-smokesignal/smokesignal/discovery/internal/overlay"
)

const (
	// The latency between two simulated nodes is drawn at random once for each pair, between
	// minLatency and maxLatency. Each message takes up to a tenth more.
	minLatency = 5 * time.Millisecond
	maxLatency = 45 * time.Millisecond
	// dialTimeout bounds a dial. Package discovery uses the same value.
	dialTimeout = 5 * time.Second
	// TCP sends a lost packet again after minResend. The pause doubles with each attempt,
	// up to maxResend.
	minResend = 200 * time.Millisecond
	maxResend = 2 * time.Minute
	// A connection on which no answer arrives ends after minConnTimeout plus a random time
	// below connTimeoutJitter.
	minConnTimeout    = 30 * time.Second
	connTimeoutJitter = 10 * time.Second
	// The connection manager of a host closes connections when the node has more than
	// highWater, until lowWater are left. It keeps connections that are younger than connGrace,
	// and acts at most once per trimInterval.
	highWater    = 192
	lowWater     = 160
	connGrace    = time.Minute
	trimInterval = 10 * time.Second
	// maxUnsent bounds the messages that a sender stores for a peer that it cannot reach;
	// later ones are lost.
	maxUnsent = 512
)

// A conn is a connection between two nodes. One node may have closed its end while the other
// does not know that yet. Each array has an element for each of the two ends.
type conn struct {
	ends     [2]*node
	openedAt time.Duration
	open     [2]bool
	// lastArrival is when the last message that was sent from that end arrives at the other
	// end. Later messages must not overtake it.
	lastArrival [2]time.Duration
	// unsent has the lost messages from that end, which will be sent again.
	unsent [2][]overlay.Message
	// resendPause is the pause before the lost messages from that end are sent again; zero if
	// none is lost.
	resendPause [2]time.Duration
}

// side returns the index, 0 or 1, of n's end of the connection c.
func (c *conn) side(n *node) int {
	if c.ends[0] == n {
		return 0
	}
	return 1
}

func (c *conn) other(n *node) *node { return c.ends[1-c.side(n)] }

// A connEnd is the end of a connection at one node, as the node's list of connections has it.
type connEnd struct {
	peer int32 // the index of the node at the other end; a copy, since it is compared very often
	*conn
}

// conn returns the newest connection of n to the node with the index peer, or nil.
func (n *node) conn(peer int32) *conn {
	for i := len(n.conns) - 1; i >= 0; i-- {
		if n.conns[i].peer == peer {
			return n.conns[i].conn
		}
	}
	return nil
}

// A dial is an attempt of a simulated node to connect to a peer. It is under way, or waits
// while overlay.MaxDials other dials of the node are under way.
type dial struct {
	peer int32
	seed int // the index of the seed that the dial looks for, or -1 for no seed
	// fresh means that an existing connection does not serve, since the Node.js library opens a new
	// socket.
	fresh     bool
	active    bool // the dial has begun
	refused   bool // the computer of the peer has refused the dial
	startedAt time.Duration
	waiting   []overlay.Message // messages to send over the connection
}

// canReach reports whether packets from node a reach node b, and the computer of b answers
// them.
func (w *World) canReach(a, b *node) bool {
	return a.side == b.side && b.status != silent && !b.asleep
}

// latency returns the time that one message from node a to node b takes. All but a random tenth
// of it follows from the two nodes and the seed of the random numbers.
func (w *World) latency(a, b int32) time.Duration {
	x := w.seed ^ uint64(min(a, b))<<32 ^ uint64(max(a, b))
	x = (x ^ x>>31) * 0x9e3779b97f4a7c15
	x = (x ^ x>>29) * 0xbf58476d1ce4e5b9
	base := minLatency + time.Duration((x^x>>32)&(1<<20-1))*(maxLatency-minLatency)>>20
	return base + time.Duration(w.rand.Uint64N(uint64(base)/10))
}

// send sends the message m of n to the node with the index to: over an existing connection, or
// after a dial.
func (w *World) send(n *node, to int32, m overlay.Message) {
	p, ok := m.(*originalPacket)
	fresh := ok && p.needsNewSocket()
	if c := n.conn(to); c != nil && !fresh {
		w.transmit(n, c, m)
		return
	}
	for _, d := range n.dials {
		// If a dial to the same peer is under way, the message waits for the connection that
		// this dial makes.
		if d.peer == to && d.seed < 0 && !d.fresh && !fresh {
			if len(d.waiting) < maxUnsent {
				d.waiting = append(d.waiting, m)
			}
			return
		}
	}
	w.dial(n, &dial{peer: to, seed: -1, fresh: fresh, waiting: []overlay.Message{m}})
}

func (w *World) dial(n *node, d *dial) {
	n.dials = append(n.dials, d)
	// Dials of seeds do not count against overlay.MaxDials, the bound on dials under way, as in
	// package discovery.
	if d.seed >= 0 || n.activeDials < overlay.MaxDials {
		w.beginDial(n, d)
	}
}

func (w *World) beginDial(n *node, d *dial) {
	w.Dials++
	if d.seed < 0 {
		n.activeDials++
	}
	d.active, d.startedAt = true, w.now
	p := w.nodes[d.peer]
	there := w.latency(n.index, d.peer)
	took := dialTimeout
	switch {
	// Packets to the peer are lost, or the peer cannot be dialed, so the dial fails after its
	// timeout.
	case !w.canReach(n, p) || p.undialable:
	case p.status == running:
		// The dial takes two round trips: one for TCP, and one for the handshakes of libp2p.
		took = 4 * there
	default:
		// The peer's computer runs, but its process does not, so the refusal arrives after
		// one round trip.
		took, d.refused = 2*there, true
	}
	w.schedule(took, simEvent{kind: dialEnd, node: n.index, incarnation: n.incarnation, dial: d})
}

func (w *World) dialEnded(n *node, d *dial) {
	p := w.nodes[d.peer]
	if n.status != running || !slices.Contains(n.dials, d) {
		return
	}
	good := !d.refused && p.status == running && w.canReach(n, p) && !p.undialable && !n.asleep
	if left := d.startedAt + dialTimeout - w.now; !good && !d.refused && left > 0 {
		// The peer ended during the dial. If only its process ended, its computer refuses
		// the dial soon; otherwise the dial ends with its timeout.
		d.refused = true
		if p.status == absent && n.side == p.side {
			left = w.latency(n.index, p.index)
		}
		w.schedule(left, simEvent{kind: dialEnd, node: n.index, incarnation: n.incarnation, dial: d})
		return
	}
	w.endDial(n, d)
	switch {
	case d.seed >= 0:
		w.seedAnswer(n, d.seed, good)
	case !good:
		w.deliver(n, delivery{in: overlay.Unreachable{Peer: p.id, Reason: overlay.ReasonUnreachable}})
	default:
		w.connect(n, p, d)
	}
}

// endDial removes the dial d of n, which has ended, and begins the next dial of n that waits.
func (w *World) endDial(n *node, d *dial) {
	n.dials = slices.DeleteFunc(n.dials, func(x *dial) bool { return x == d })
	if !d.active || d.seed >= 0 {
		return // a dial of a seed does not count against the bound on dials, so its end frees no place
	}
	n.activeDials--
	for _, x := range n.dials {
		if !x.active {
			w.beginDial(n, x)
			return
		}
	}
}

// connect makes the connection from n to p that the dial d asked for, and sends the messages
// that wait for it at both nodes.
func (w *World) connect(n, p *node, d *dial) {
	c := n.conn(p.index)
	if c == nil {
		c = &conn{ends: [2]*node{n, p}, open: [2]bool{true, true}, openedAt: w.now}
		n.conns = append(n.conns, connEnd{p.index, c})
		p.conns = append(p.conns, connEnd{n.index, c})
		w.trimConns(n)
		w.trimConns(p)
	}
	for _, m := range d.waiting {
		w.transmit(n, c, m)
	}
	for _, back := range p.dials {
		// If the peer was dialing this node at the same time, its dial uses this connection,
		// too.
		if back.peer == n.index && back.seed < 0 && !back.fresh {
			w.endDial(p, back)
			for _, m := range back.waiting {
				w.transmit(p, c, m)
			}
			return
		}
	}
}

// trimConns closes connections of n that no link needs, the oldest first, if n has more than
// highWater connections.
func (w *World) trimConns(n *node) {
	if len(n.conns) <= highWater || n.trimmedAt != 0 && w.now-n.trimmedAt < trimInterval {
		return
	}
	n.trimmedAt = w.now
	for _, c := range slices.Clone(n.conns) {
		// The list of connections is in the order of their age. So when one connection is too
		// young to close, all later ones are, too.
		if len(n.conns) <= lowWater || w.now-c.openedAt < connGrace {
			return
		}
		if n.peerState(c.peer) == nil {
			w.hangUp(n, c.conn)
		}
	}
}

// transmit sends the message m of n over the connection c, and schedules the arrival of the
// message.
func (w *World) transmit(n *node, c *conn, m overlay.Message) {
	if k := kindOf(m); k >= 0 {
		w.Sent[k]++
	}
	side := c.side(n)
	// An earlier message on this connection was lost and waits to be sent again. This message
	// must not overtake it.
	if c.resendPause[side] != 0 {
		if len(c.unsent[side]) < maxUnsent {
			c.unsent[side] = append(c.unsent[side], m)
		}
		return
	}
	to := c.other(n)
	at := w.now + w.latency(n.index, to.index)
	for pause := minResend; w.Loss > 0 && w.rand.Float64() < w.Loss; pause *= 2 {
		at += pause
	}
	at = max(at, c.lastArrival[side])
	c.lastArrival[side] = at
	if w.Encode {
		m = w.throughWire(m)
	}
	w.queue.push(at, simEvent{kind: messageArrival, node: to.index, peer: n.index, conn: c, msg: m})
}

// arrive handles the arrival of the message m for n over the connection c.
func (w *World) arrive(n *node, c *conn, m overlay.Message) {
	from := c.other(n)
	side := c.side(n)
	switch {
	// The computer of n is dead, so the message is lost.
	case n.status == silent:
	// The network was split while the message was on its way.
	case from.side != n.side:
		w.holdLost(from, c, m)
	// n has closed its end already, so the sender gets a reset.
	case !c.open[side]:
		if c.open[1-side] && from.status == running {
			w.schedule(w.latency(n.index, from.index), simEvent{kind: connClosed, node: from.index, peer: n.index, conn: c})
		}
	default:
		w.noteMessageFrom(n, from.index)
		if s, ok := m.(*pingSignal); ok {
			if n.linkedTo(from.index) {
				w.deliver(n, delivery{from: from.index, signal: s})
			}
			return
		}
		w.deliver(n, delivery{in: overlay.Received{From: w.senderContact(from, m), Message: m}})
	}
}

// holdLost stores the message m of the node from, which was lost on the connection c, and
// schedules the next attempt to send it.
func (w *World) holdLost(from *node, c *conn, m overlay.Message) {
	side := c.side(from)
	if len(c.unsent[side]) < maxUnsent {
		c.unsent[side] = append(c.unsent[side], m)
	}
	if c.resendPause[side] == 0 {
		c.resendPause[side] = minResend
		w.schedule(minResend, simEvent{kind: resendDue, node: from.index, peer: c.other(from).index, conn: c})
	}
}

// resendHeld sends the lost messages of n on the connection c again. If the network is still
// split between the two nodes, it doubles the pause and waits.
func (w *World) resendHeld(n *node, c *conn) {
	side := c.side(n)
	to := c.other(n)
	switch {
	case !c.open[side]:
		c.unsent[side] = nil
	case n.side != to.side:
		c.resendPause[side] = min(2*c.resendPause[side], maxResend)
		w.schedule(c.resendPause[side], simEvent{kind: resendDue, node: n.index, peer: to.index, conn: c})
	default:
		c.resendPause[side] = 0
		at := max(w.now+w.latency(n.index, to.index), c.lastArrival[side])
		c.lastArrival[side] = at
		for _, m := range c.unsent[side] {
			w.queue.push(at, simEvent{kind: messageArrival, node: to.index, peer: n.index, conn: c, msg: m})
		}
		c.unsent[side] = nil
	}
}

// hangUp closes n's end of the connection c. The other node notices that after the latency of
// one message.
func (w *World) hangUp(n *node, c *conn) {
	w.closeEnd(n, c)
	if to := c.other(n); c.open[c.side(to)] {
		at := max(w.now+w.latency(n.index, to.index), c.lastArrival[c.side(n)]) // after all messages that n sent before
		w.queue.push(at, simEvent{kind: connClosed, node: to.index, peer: n.index, conn: c})
	}
}

// closeEnd removes n's end of the connection c. It does not tell the other node or any state
// machine.
func (w *World) closeEnd(n *node, c *conn) {
	c.open[c.side(n)] = false
	n.conns = slices.DeleteFunc(n.conns, func(x connEnd) bool { return x.conn == c })
}

// handleHangUp handles the reset that n gets after the other node has closed its end of the
// connection c.
func (w *World) handleHangUp(n *node, c *conn) {
	// While the network is split, the reset is lost, and the timeout of the connection ends the
	// connection later.
	if from := c.other(n); n.side == from.side {
		w.loseConn(n, c)
	}
}

// loseConn closes n's end of the connection c, which the other node has closed or which has
// timed out, and tells n's state machine.
func (w *World) loseConn(n *node, c *conn) {
	if !c.open[c.side(n)] || n.status != running {
		return
	}
	w.closeEnd(n, c)
	// The state machine hears of the lost connection only if it was the last one to the peer.
	if p := c.other(n); n.conn(p.index) == nil {
		w.deliver(n, delivery{in: overlay.Disconnected{Peer: p.id}})
	}
}

// closeConns closes all connections of n to the node with the index peer, which does not
// answer.
func (w *World) closeConns(n *node, peer int32) {
	for c := n.conn(peer); c != nil; c = n.conn(peer) {
		w.hangUp(n, c)
	}
}

// connTimeout returns the time, partly random, after which a connection ends if no answer
// arrives on it.
func (w *World) connTimeout() time.Duration {
	life := w.rules.ConnTimeout
	if life == 0 {
		life = minConnTimeout
	}
	return life + w.randomBelow(connTimeoutJitter)
}

// handleConnTimeout ends the connection in the event e, on which a split has lost all packets
// for too long. If the event has no connection, it ends all connections of n, whose computer
// has died.
func (w *World) handleConnTimeout(n *node, e simEvent) {
	if e.conn == nil {
		if n.status == silent && e.incarnation == n.incarnation {
			for _, c := range slices.Clone(n.conns) {
				w.loseConn(w.nodes[c.peer], c.conn)
			}
			n.conns = nil
		}
		return
	}
	// The event holds the number of the split that caused the timeout. If the network has
	// healed since, the connection lives on.
	if a, b := e.conn.ends[0], e.conn.ends[1]; a.side != b.side && int(e.incarnation) == w.cuts {
		w.loseConn(a, e.conn)
		w.loseConn(b, e.conn)
	}
}

// scheduleTopic models pubsub between n and the node with the index peer. A round trip after
// both have admitted each other to the topic, each sees the other there. When one of them
// removes the other, both notice that after a round trip, too.
func (w *World) scheduleTopic(n *node, peer int32) {
	p := w.nodes[peer]
	if b := p.peerState(n.index); b == nil || !b.admitted {
		return
	}
	there := 2 * w.latency(n.index, peer)
	w.schedule(there, simEvent{kind: topicUpdate, node: n.index, peer: peer})
	w.schedule(there, simEvent{kind: topicUpdate, node: peer, peer: n.index})
}

// onTopic reports whether n sees the node with the index peer on the pubsub topic. That is so
// if both have admitted each other, and they are connected.
func (w *World) onTopic(n *node, peer int32) bool {
	p := w.nodes[peer]
	b, back := n.peerState(peer), p.peerState(n.index)
	return b != nil && b.admitted && back != nil && back.admitted && p.status == running && n.conn(peer) != nil && p.conn(n.index) != nil
}

// updateTopic tells n's state machine if the node with the index peer has joined or left the
// pubsub topic.
func (w *World) updateTopic(n *node, peer int32) {
	p := w.nodes[peer]
	if n.status != running || p.status == silent || n.side != p.side {
		return
	}
	seen := w.onTopic(n, peer)
	if b := n.peerState(peer); b != nil && b.onTopic != seen {
		b.onTopic = seen
		w.deliver(n, delivery{in: overlay.OnTopic{Peer: p.id, Present: seen}})
	}
}
