package sim

import (
	"encoding/binary"
	"math/rand/v2"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/discovery/internal/overlay"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

// A Membership is the membership protocol of one node, as [overlay.State] is.
type Membership interface {
	Step(now time.Time, in overlay.Input) []overlay.Output
	Next(now time.Time) time.Time
}

// Rules are the membership protocol of a run.
type Rules struct {
	Name string
	// New returns the machine of a node. The number life distinguishes it from earlier
	// ones with that id. All its randomness must come from r.
	New func(id peer.ID, life uint64, seeds []peer.ID, r *rand.Rand) Membership
	// Watchdog adds the watchdog of package health to each node.
	Watchdog bool
	// Pending says that the machine emits Pending before Linked.
	Pending bool
	// ConnTimeout is how long a connection lives on which no answer comes back. Zero
	// means 30 to 40 seconds, as with yamux and QUIC.
	ConnTimeout time.Duration
}

// The limits of the peer list in all runs, which are the defaults of smokesignal.
const (
	Min = 3
	Max = 5
)

// Smokesignal is the protocol of package overlay.
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
