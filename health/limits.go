package health

import (
	"maps"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/time/rate"
)

const (
	// signalsPerSecond and signalBurst bound the signals that one neighbor may send.
	// A seed costs two signals in a ping interval, so they suffice for hundreds of
	// seeds.
	signalsPerSecond = 100
	signalBurst      = 128
	// maxLimiters bounds the neighbors that are counted at a time.
	maxLimiters = 256
)

// neighborLimits bounds how many signals of each neighbor are read, so that a neighbor
// that floods is the only one whose signals are dropped.
type neighborLimits map[peer.ID]*rate.Limiter

// allow reports whether another signal of p may be read at now.
func (l neighborLimits) allow(p peer.ID, now time.Time) bool {
	limiter := l[p]
	if limiter == nil {
		if len(l) >= maxLimiters {
			l.removeIdle(now)
		}
		// All of them are in use. There are never so many neighbors; somebody may be
		// linking under one identity after the other.
		if len(l) >= maxLimiters {
			return false
		}
		limiter = rate.NewLimiter(signalsPerSecond, signalBurst)
		l[p] = limiter
	}
	return limiter.AllowN(now, 1)
}

// removeIdle removes the limiters that are as good as new: their neighbors have sent
// nothing for a while.
func (l neighborLimits) removeIdle(now time.Time) {
	maps.DeleteFunc(l, func(_ peer.ID, limiter *rate.Limiter) bool { return limiter.TokensAt(now) >= signalBurst })
}
