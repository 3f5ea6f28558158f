package health

import (
	"maps"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/time/rate"
)

const (
	// signalsPerSecond and signalBurst limit how many signals (pings and answers to pings)
	// are read from one neighbor. Each seed causes two signals per ping interval, so this
	// is enough for hundreds of seeds.
	signalsPerSecond = 100
	signalBurst      = 128
	// maxLimiters is the largest number of neighbors for which a limiter, which counts
	// the signals of the neighbor, exists at one time.
	maxLimiters = 256
)

// neighborLimits limits how many signals are read from each neighbor. When one neighbor
// sends too many, only the signals of that neighbor are dropped.
type neighborLimits map[peer.ID]*rate.Limiter

// allow reports whether another signal of p may be read at the time now, and counts the
// signal.
func (l neighborLimits) allow(p peer.ID, now time.Time) bool {
	limiter := l[p]
	if limiter == nil {
		if len(l) >= maxLimiters {
			l.removeIdle(now)
		}
		// All limiters are in use. A node never has so many neighbors, so a program
		// may be making links under one identity after the other. So signals of
		// peers without a limiter are dropped.
		if len(l) >= maxLimiters {
			return false
		}
		limiter = rate.NewLimiter(signalsPerSecond, signalBurst)
		l[p] = limiter
	}
	return limiter.AllowN(now, 1)
}

// removeIdle removes the limiters of neighbors that have sent no signal for so long that a
// new limiter would allow as many signals as the old one.
func (l neighborLimits) removeIdle(now time.Time) {
	maps.DeleteFunc(l, func(_ peer.ID, limiter *rate.Limiter) bool { return limiter.TokensAt(now) >= signalBurst })
}
