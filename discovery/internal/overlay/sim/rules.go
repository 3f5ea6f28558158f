package sim

import (
	"encoding/binary"
	"math/rand/v2"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/discovery/internal/overlay"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

// A Membership is the state machine of one simulated node: [overlay.State], or the one with the
// rules of the Node.js library.
type Membership interface {
	Step(now time.Time, in overlay.Input) []overlay.Output
	Next(now time.Time) time.Time
}

// Rules choose the membership protocol that all nodes of a simulation follow.
type Rules struct {
	Name string
	// New returns the state machine of the node id, whose seeds are the nodes in seeds. life
	// differs each time the node starts. The machine must take all its randomness from r.
	New func(id peer.ID, life uint64, seeds []peer.ID, r *rand.Rand) Membership
	// Watchdog adds the watchdog of package health to each node.
	Watchdog bool
	// Pending means that the state machine promises the output Pending before each Linked.
	Pending bool
	// ConnTimeout is the time after which a connection ends on which no answers arrive; up to
	// ten seconds are added. Zero means 30 seconds, which is about the value of yamux and QUIC.
	ConnTimeout time.Duration
}

// In all simulations, a node seeks Min links and accepts at most Max. These are the defaults of
// smokesignal.
const (
	Min = 3
	Max = 5
)

// Smokesignal are the rules of package overlay.
var Smokesignal = Rules{
	Name:     "smokesignal",
	Watchdog: true,
	Pending:  true,
	New: func(id peer.ID, life uint64, seeds []peer.ID, r *rand.Rand) Membership {
		var session protocol.Session
		binary.BigEndian.PutUint64(session[:], life)
		return overlay.New(overlay.Config{
			Self: id, Session: session, Network: "sim", Min: Min, Max: Max, Seeds: len(seeds), Rand: r,
		})
	},
}
