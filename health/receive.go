package health

import (
	"net/netip"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// receive reads a signal of a neighbor.
func (w *watchCore) receive(now time.Time, from peer.ID, msg []byte) []effect {
	w.stats.Received++
	s, err := parseSignal(msg)
	if err != nil {
		w.stats.Malformed++
		return nil
	}
	key := seenKey{s.stamp(), s.pong != nil}
	// A flood arrives over several links, and an own one comes back.
	if w.seen.Contains(key) || key.sender == w.id {
		w.stats.Duplicate++
		return nil
	}
	if s.ping != nil {
		return w.receivePing(now, from, msg, s, key)
	}
	return w.receivePong(now, from, msg, s, key)
}

// verify reports whether the sender has signed s, and remembers s if so. A forgery is
// not remembered, since it must not keep the true signal out.
func (w *watchCore) verify(s *parsedSignal, key seenKey) bool {
	if !s.verified() {
		w.stats.Forged++
		return false
	}
	w.seen.Add(key, struct{}{})
	return true
}

// pingSpacing returns the least time between two pings for one target that are
// forwarded: half the interval of the sender or of this node, the shorter one.
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

// receivePing answers a ping that is for this node, and forwards any other.
func (w *watchCore) receivePing(now time.Time, from peer.ID, msg []byte, s *parsedSignal, key seenKey) []effect {
	p := s.ping
	isTarget := p.target.id == w.id || slices.ContainsFunc(p.target.addrs, w.hasAddr)
	last, ok := w.asked.Peek(p.target.key())
	if isTarget {
		last, ok = w.answered, !w.answered.IsZero()
	}
	// The answer to the ping before serves everybody who asks now. Without this bound,
	// the cost of a seed would grow with the number of nodes that watch it.
	if ok && now.Sub(last) < w.pingSpacing(p) {
		w.stats.Spared++
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

// answerPing floods a pong with the addresses of this node. Those that the ping asks
// for come first, since at most 16 fit.
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
		w.stats.Unsigned++
		return nil
	}
	return []effect{flood{msg: msg}}
}

// receivePong records that the seeds which the pong stands for are heard, and forwards
// it.
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
			// Counters rise, so a lower one is an old answer played again. But an answer
			// to our own last ping is new: then only the clock of the seed went back.
			ours := p.answers == stamp{w.id, w.nextStamp.session, s.lastPing} && s.lastPing != 0
			if p.counter <= s.lastCounter && !ours {
				replayed = true
				continue
			}
			s.lastCounter = p.counter
			out = append(out, w.heard(now, s)...)
		// Whoever is at the address of a seed without a pinned id is the seed, also
		// after a restart with a new identity.
		case !s.pinned && slices.ContainsFunc(s.addrs, func(at netip.AddrPort) bool { return slices.Contains(p.addrs, at) }):
			out = append(out, w.heard(now, s)...)
		}
	}
	// Other nodes would not believe it either.
	if replayed {
		w.stats.Replayed++
		return out
	}
	return append(out, flood{msg: slices.Clone(msg), except: from})
}
