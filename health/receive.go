package health

import (
	"net/netip"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// receive reads a signal of a neighbor.
func (w *watchCore) receive(now time.Time, from peer.ID, msg []byte) []effect {
	w.counts.received++
	s, err := parseSignal(msg)
	if err != nil {
		w.counts.malformed++
		return nil
	}
	key := seenKey{s.stamp(), s.pong != nil}
	// A flooded signal arrives over several links, and the signals of this node come
	// back to it. So each signal is processed only once, and this node's own are not.
	if w.seen.Contains(key) || key.sender == w.id {
		w.counts.duplicate++
		return nil
	}
	if s.ping != nil {
		return w.receivePing(now, from, msg, s, key)
	}
	return w.receivePong(now, from, msg, s, key)
}

// verify reports whether s has a valid signature of its sender. If so, it stores key, which
// identifies s, so that a copy of s is not processed. For a forged signal it stores
// nothing; otherwise the genuine signal with the same counter would be dropped as a copy.
func (w *watchCore) verify(s *parsedSignal, key seenKey) bool {
	if !s.verified() {
		w.counts.forged++
		return false
	}
	w.seen.Add(key, struct{}{})
	return true
}

// pingSpacing returns the shortest time between two pings for the target of p that this
// node forwards: half the ping interval of the sender of p or half that of this node,
// whichever is shorter.
func (w *watchCore) pingSpacing(p *ping) time.Duration {
	interval := w.interval
	if interval == 0 {
		interval = defaultInterval
	}
	if p.interval > 0 {
		interval = min(interval, p.interval)
	}
	return max(interval/2, minSpacing)
}

// receivePing answers the ping in s if this node is its target, and otherwise forwards it.
// msg is the encoded ping, from is the neighbor that sent it, and key identifies it. It
// returns the effects that the Watchdog has to perform.
func (w *watchCore) receivePing(now time.Time, from peer.ID, msg []byte, s *parsedSignal, key seenKey) []effect {
	p := s.ping
	isTarget := p.target.id == w.id || slices.ContainsFunc(p.target.addrs, w.hasAddr)
	last, ok := w.asked.Peek(p.target.key())
	if isTarget {
		last, ok = w.answered, !w.answered.IsZero()
	}
	// A ping for the same target was answered or forwarded a moment ago, and its answer
	// reaches all nodes, so p is dropped. If every ping caused an answer, the cost of a
	// seed would grow with the number of nodes that watch it.
	if ok && now.Sub(last) < w.pingSpacing(p) {
		w.counts.spared++
		return nil
	}
	if !w.verify(s, key) {
		return nil
	}
	if isTarget {
		return w.answerPing(now, p)
	}
	w.notePing(now, p)
	return []effect{flood{msg: slices.Clone(msg), except: from}}
}

// answerPing answers the ping p: it returns the flood of a pong with the addresses of this
// node. At most 16 addresses fit, so the addresses that p asks for come first.
func (w *watchCore) answerPing(now time.Time, p *ping) []effect {
	w.answered = now
	addrs := slices.DeleteFunc(slices.Clone(p.target.addrs), func(at netip.AddrPort) bool { return !w.hasAddr(at) })
	for _, at := range w.ownAddrs {
		if len(addrs) < maxSignalAddrs && !slices.Contains(addrs, at) {
			addrs = append(addrs, at)
		}
	}
	msg, err := pong{stamp: w.stampNext(), addrs: addrs, answers: p.stamp}.seal(w.key)
	if err != nil {
		w.counts.unsigned++
		return nil
	}
	return []effect{flood{msg: msg}}
}

// receivePong records that each seed was heard that has the id of the pong's sender or one
// of the pong's addresses, and forwards the pong. msg is the encoded pong, from is the
// neighbor that sent it, and key identifies it.
func (w *watchCore) receivePong(now time.Time, from peer.ID, msg []byte, s *parsedSignal, key seenKey) []effect {
	p := s.pong
	if !w.verify(s, key) {
		return nil
	}
	var out []effect
	replayed := false
	for _, s := range w.seeds {
		if w.isSelf(s) {
			continue
		}
		switch {
		case s.id == p.sender:
			// The counters of a sender only rise, so a lower counter means that
			// somebody repeats an old pong. The exception is a pong that
			// answers this node's own last ping, and so cannot be old: then the
			// seed has restarted with its clock set back.
			ours := p.answers == stamp{w.id, w.nextStamp.session, s.lastPing} && s.lastPing != 0
			if p.counter <= s.lastCounter && !ours {
				replayed = true
				continue
			}
			s.lastCounter = p.counter
			out = append(out, w.heard(now, s)...)
		// A seed that the user gave without an id is whichever node has its
		// address, also after a restart with a new identity.
		case !s.pinned && slices.ContainsFunc(s.addrs, func(at netip.AddrPort) bool { return slices.Contains(p.addrs, at) }):
			out = append(out, w.heard(now, s)...)
		}
	}
	// Other nodes would not believe it either.
	if replayed {
		w.counts.replayed++
		return out
	}
	return append(out, flood{msg: slices.Clone(msg), except: from})
}
