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
	// A flooded signal arrives once over each of several links, and this node's own signals
	// come back to it. Each is processed once.
	if w.seen.Contains(key) || key.sender == w.id {
		w.counts.duplicate++
		return nil
	}
	if s.ping != nil {
		return w.receivePing(now, from, msg, s, key)
	}
	return w.receivePong(now, from, msg, s, key)
}

// verify reports whether s has a valid signature of its sender. If so, it remembers s as
// seen. A forged signal is not remembered; otherwise the genuine signal with the same
// counter would be dropped as a duplicate.
func (w *watchCore) verify(s *parsedSignal, key seenKey) bool {
	if !s.verified() {
		w.counts.forged++
		return false
	}
	w.seen.Add(key, struct{}{})
	return true
}

// pingSpacing returns the shortest time between two forwarded pings for one target: half
// the ping interval of the sender or half that of this node, whichever is shorter.
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

// receivePing answers the ping if this node is its target, and otherwise forwards it.
func (w *watchCore) receivePing(now time.Time, from peer.ID, msg []byte, s *parsedSignal, key seenKey) []effect {
	p := s.ping
	isTarget := p.target.id == w.id || slices.ContainsFunc(p.target.addrs, w.hasAddr)
	last, ok := w.asked.Peek(p.target.key())
	if isTarget {
		last, ok = w.answered, !w.answered.IsZero()
	}
	// A ping for the same target was answered or forwarded a moment ago, and its answer
	// reaches all nodes. If every ping caused an answer, the cost of a seed would grow with
	// the number of nodes that watch it.
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

// answerPing floods a pong with the addresses of this node. At most 16 addresses fit, so
// the addresses that the ping asks for come first.
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

// receivePong records that the seeds at the sender's addresses, or with its id, were heard,
// and forwards the pong.
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
			// The counters of a sender only rise, so a lower counter means that somebody
			// repeats an old answer. The exception is an answer to this node's own last
			// ping, which is new: then the seed has restarted with its clock set back.
			ours := p.answers == stamp{w.id, w.nextStamp.session, s.lastPing} && s.lastPing != 0
			if p.counter <= s.lastCounter && !ours {
				replayed = true
				continue
			}
			s.lastCounter = p.counter
			out = append(out, w.heard(now, s)...)
		// A seed that was given without an id is whichever node has its address, also
		// after a restart with a new identity.
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
