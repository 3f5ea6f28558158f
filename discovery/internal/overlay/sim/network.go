package sim

import (
	"slices"
	"time"

	"github.com/go-smokesignal/smokesignal/discovery/internal/overlay"
)

const (
	// A message takes from minLatency to maxLatency, which is drawn for the pair,
	// and up to a tenth more.
	minLatency = 5 * time.Millisecond
	maxLatency = 45 * time.Millisecond
	// dialTimeout is that of package discovery.
	dialTimeout = 5 * time.Second
	// minResend is TCP's first pause before it sends again; it doubles up to the last.
	minResend         = 200 * time.Millisecond
	maxResend         = 2 * time.Minute
	minConnTimeout    = 30 * time.Second
	connTimeoutJitter = 10 * time.Second
	// The marks of the host's connection manager, how old a connection is before that
	// may close it, and how often it does.
	highWater    = 192
	lowWater     = 160
	connGrace    = time.Minute
	trimInterval = 10 * time.Second
	// maxUnsent is how many messages a sender holds for a peer that takes none.
	maxUnsent = 512
)

// A conn is a connection between two nodes. Each has an end of its own: one can
// have closed it while the other does not know yet.
type conn struct {
	ends        [2]*node
	openedAt    time.Duration
	open        [2]bool
	lastArrival [2]time.Duration     // arrival of the last message from that end: streams are in order
	unsent      [2][]overlay.Message // lost on the way from that end, to be sent again
	resendPause [2]time.Duration     // pause before that; zero if nothing is lost
}

func (c *conn) side(n *node) int {
	if c.ends[0] == n {
		return 0
	}
	return 1
}

func (c *conn) other(n *node) *node { return c.ends[1-c.side(n)] }

// An end is a node's connection to a peer.
type endpoint struct {
	peer int32 // beside the pointer, as it is searched for all the time
	*conn
}

// conn returns the newest connection of n to a peer, or nil.
func (n *node) conn(peer int32) *conn {
	for i := len(n.conns) - 1; i >= 0; i-- {
		if n.conns[i].peer == peer {
			return n.conns[i].conn
		}
	}
	return nil
}

// A dial is under way, or waits until one of MaxDials others has ended.
type dial struct {
	peer      int32
	seed      int  // the number of the seed that is looked for, or -1
	fresh     bool // a connection from the other side will not do
	active    bool
	refused   bool
	startedAt time.Duration
	waiting   []overlay.Message
}

// canReach tells whether packets get from one node to the other and are answered.
func (w *World) canReach(a, b *node) bool {
	return a.side == b.side && b.status != silent && !b.asleep
}

func (w *World) latency(a, b int32) time.Duration {
	x := w.seed ^ uint64(min(a, b))<<32 ^ uint64(max(a, b))
	x = (x ^ x>>31) * 0x9e3779b97f4a7c15
	x = (x ^ x>>29) * 0xbf58476d1ce4e5b9
	base := minLatency + time.Duration((x^x>>32)&(1<<20-1))*(maxLatency-minLatency)>>20
	return base + time.Duration(w.rand.Uint64N(uint64(base)/10))
}

// send sends a message over the connection there is, or dials.
func (w *World) send(n *node, to int32, m overlay.Message) {
	p, ok := m.(*packet)
	fresh := ok && p.fresh()
	if c := n.conn(to); c != nil && !fresh {
		w.transmit(n, c, m)
		return
	}
	for _, d := range n.dials {
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
	case !w.canReach(n, p) || p.undialable:
	case p.status == running:
		took = 4 * there
	default:
		took, d.refused = 2*there, true
	}
	w.schedule(took, event{kind: dialEnd, node: n.index, incarnation: n.incarnation, dial: d})
}

func (w *World) dialEnded(n *node, d *dial) {
	p := w.nodes[d.peer]
	if n.status != running || !slices.Contains(n.dials, d) {
		return
	}
	good := !d.refused && p.status == running && w.canReach(n, p) && !p.undialable && !n.asleep
	if left := d.startedAt + dialTimeout - w.now; !good && !d.refused && left > 0 {
		// It went away while it was dialled.
		d.refused = true
		if p.status == absent && n.side == p.side {
			left = w.latency(n.index, p.index)
		}
		w.schedule(left, event{kind: dialEnd, node: n.index, incarnation: n.incarnation, dial: d})
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

// endDial lets the next one begin.
func (w *World) endDial(n *node, d *dial) {
	n.dials = slices.DeleteFunc(n.dials, func(x *dial) bool { return x == d })
	if !d.active || d.seed >= 0 {
		return // it has taken no place
	}
	n.activeDials--
	for _, x := range n.dials {
		if !x.active {
			w.beginDial(n, x)
			return
		}
	}
}

// connect makes the connection that d was for, and sends what waits for it at
// both ends.
func (w *World) connect(n, p *node, d *dial) {
	c := n.conn(p.index)
	if c == nil {
		c = &conn{ends: [2]*node{n, p}, open: [2]bool{true, true}, openedAt: w.now}
		n.conns = append(n.conns, endpoint{p.index, c})
		p.conns = append(p.conns, endpoint{n.index, c})
		w.trimConns(n)
		w.trimConns(p)
	}
	for _, m := range d.waiting {
		w.transmit(n, c, m)
	}
	for _, back := range p.dials {
		if back.peer == n.index && back.seed < 0 && !back.fresh {
			w.endDial(p, back)
			for _, m := range back.waiting {
				w.transmit(p, c, m)
			}
			return
		}
	}
}

// trimConns closes connections that no link needs when there are too many, the oldest
// first.
func (w *World) trimConns(n *node) {
	if len(n.conns) <= highWater || n.trimmedAt != 0 && w.now-n.trimmedAt < trimInterval {
		return
	}
	n.trimmedAt = w.now
	for _, c := range slices.Clone(n.conns) {
		if len(n.conns) <= lowWater || w.now-c.openedAt < connGrace {
			return
		}
		if n.bond(c.peer, false) == nil {
			w.hangUp(n, c.conn)
		}
	}
}

// transmit writes a message to a connection.
func (w *World) transmit(n *node, c *conn, m overlay.Message) {
	if k := kindOf(m); k >= 0 {
		w.Sent[k]++
	}
	side := c.side(n)
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
	w.queue.push(at, event{kind: messageArrival, node: to.index, peer: n.index, conn: c, msg: m})
}

func (w *World) arrive(n *node, c *conn, m overlay.Message) {
	from := c.other(n)
	side := c.side(n)
	switch {
	case n.status == silent:
	case from.side != n.side:
		w.holdLost(from, c, m)
	case !c.open[side]:
		if c.open[1-side] && from.status == running {
			w.schedule(w.latency(n.index, from.index), event{kind: connClosed, node: from.index, peer: n.index, conn: c})
		}
	default:
		w.heardOver(n, from.index)
		if s, ok := m.(*signal); ok {
			if n.linkedTo(from.index) {
				w.deliver(n, delivery{from: from.index, signal: s})
			}
			return
		}
		w.deliver(n, delivery{in: overlay.Received{From: w.senderContact(from, m), Message: m}})
	}
}

// holdLost keeps a message that did not get through until it is sent again.
func (w *World) holdLost(from *node, c *conn, m overlay.Message) {
	side := c.side(from)
	if len(c.unsent[side]) < maxUnsent {
		c.unsent[side] = append(c.unsent[side], m)
	}
	if c.resendPause[side] == 0 {
		c.resendPause[side] = minResend
		w.schedule(minResend, event{kind: resendDue, node: from.index, peer: c.other(from).index, conn: c})
	}
}

func (w *World) resendHeld(n *node, c *conn) {
	side := c.side(n)
	to := c.other(n)
	switch {
	case !c.open[side]:
		c.unsent[side] = nil
	case n.side != to.side:
		c.resendPause[side] = min(2*c.resendPause[side], maxResend)
		w.schedule(c.resendPause[side], event{kind: resendDue, node: n.index, peer: to.index, conn: c})
	default:
		c.resendPause[side] = 0
		at := max(w.now+w.latency(n.index, to.index), c.lastArrival[side])
		c.lastArrival[side] = at
		for _, m := range c.unsent[side] {
			w.queue.push(at, event{kind: messageArrival, node: to.index, peer: n.index, conn: c, msg: m})
		}
		c.unsent[side] = nil
	}
}

// hangUp closes n's end of a connection; the other hears of it.
func (w *World) hangUp(n *node, c *conn) {
	w.closeEnd(n, c)
	if to := c.other(n); c.open[c.side(to)] {
		at := max(w.now+w.latency(n.index, to.index), c.lastArrival[c.side(n)]) // after what was written
		w.queue.push(at, event{kind: connClosed, node: to.index, peer: n.index, conn: c})
	}
}

// closeEnd forgets n's end of a connection.
func (w *World) closeEnd(n *node, c *conn) {
	c.open[c.side(n)] = false
	n.conns = slices.DeleteFunc(n.conns, func(x endpoint) bool { return x.conn == c })
}

func (w *World) handleHangUp(n *node, c *conn) {
	if from := c.other(n); n.side == from.side {
		w.loseConn(n, c)
	}
}

// loseConn ends a connection whose other end is gone.
func (w *World) loseConn(n *node, c *conn) {
	if !c.open[c.side(n)] || n.status != running {
		return
	}
	w.closeEnd(n, c)
	if p := c.other(n); n.conn(p.index) == nil {
		w.deliver(n, delivery{in: overlay.Disconnected{Peer: p.id}})
	}
}

// closeConns closes all connections of n to a peer which does not answer.
func (w *World) closeConns(n *node, peer int32) {
	for c := n.conn(peer); c != nil; c = n.conn(peer) {
		w.hangUp(n, c)
	}
}

// connTimeout returns how long a connection lives on which nothing comes back.
func (w *World) connTimeout() time.Duration {
	life := w.rules.ConnTimeout
	if life == 0 {
		life = minConnTimeout
	}
	return life + w.randomBelow(connTimeoutJitter)
}

// handleConnTimeout ends a connection that has been cut for too long, or all of a node that
// has been silent for as long.
func (w *World) handleConnTimeout(n *node, e event) {
	if e.conn == nil {
		if n.status == silent && e.incarnation == n.incarnation {
			for _, c := range slices.Clone(n.conns) {
				w.loseConn(w.nodes[c.peer], c.conn)
			}
			n.conns = nil
		}
		return
	}
	if a, b := e.conn.ends[0], e.conn.ends[1]; a.side != b.side && int(e.incarnation) == w.cuts {
		w.loseConn(a, e.conn)
		w.loseConn(b, e.conn)
	}
}

// scheduleTopic plays pubsub: a while after both have let the other onto the topic
// both see it, and no more when one has closed the door.
func (w *World) scheduleTopic(n *node, peer int32) {
	p := w.nodes[peer]
	if b := p.bond(n.index, false); b == nil || !b.admitted {
		return
	}
	there := 2 * w.latency(n.index, peer)
	w.schedule(there, event{kind: topicUpdate, node: n.index, peer: peer})
	w.schedule(there, event{kind: topicUpdate, node: peer, peer: n.index})
}

// onTopic tells whether n can see the peer on the topic.
func (w *World) onTopic(n *node, peer int32) bool {
	p := w.nodes[peer]
	b, back := n.bond(peer, false), p.bond(n.index, false)
	return b != nil && b.admitted && back != nil && back.admitted && p.status == running && n.conn(peer) != nil && p.conn(n.index) != nil
}

func (w *World) updateTopic(n *node, peer int32) {
	p := w.nodes[peer]
	if n.status != running || p.status == silent || n.side != p.side {
		return
	}
	seen := w.onTopic(n, peer)
	if b := n.bond(peer, false); b != nil && b.onTopic != seen {
		b.onTopic = seen
		w.deliver(n, delivery{in: overlay.OnTopic{Peer: p.id, Present: seen}})
	}
}
