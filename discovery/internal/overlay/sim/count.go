package sim

import "github.com/go-smokesignal/smokesignal/discovery/internal/overlay"

// Counts has sums over all nodes of a simulated network since the simulation began.
type Counts struct {
	Sent   [kinds]int64 // messages sent over connections, by kind; a message counts once for each hop
	Dials  int64
	Events int64 // events of the simulator
	// Flaps counts the links that two nodes made again within 30 seconds after the last one ended
	// without a fault.
	Flaps int
	// Violations counts outputs of the state machines that break the contract with the driver.
	// The contract says that a Pending comes before each Linked, that one Unlinked ends both,
	// and that each AskSeed waits for the answer to the last one.
	Violations int
	pings      uint64
}

// The kinds of messages of the overlay; the simulator counts each kind separately.
const (
	kindRequest = iota
	kindAccept
	kindReject
	kindReady
	kindKeepalive
	kindLeave
	kindWalk
	kindHandover
	kindShuffle
	kindShuffleReply
	kindBeacon
	kindLookup
	kindFound
	kindPing
	kindPong
	kindOther
	kinds
)

var kindNames = [kinds]string{
	"request", "accept", "reject", "ready", "keepalive", "leave", "walk", "handover", "shuffle", "shuffle reply",
	"beacon", "lookup", "found", "ping", "pong", "other",
}

func kindOf(m overlay.Message) int {
	switch m := m.(type) {
	case *pingSignal:
		if m.pong {
			return kindPong
		}
		return kindPing
	case overlay.Keepalive:
		return kindKeepalive
	case overlay.Request:
		return kindRequest
	case overlay.Accept:
		return kindAccept
	case overlay.Reject:
		return kindReject
	case overlay.Ready:
		return kindReady
	case overlay.Leave:
		return kindLeave
	case overlay.Walk:
		return kindWalk
	case overlay.Handover:
		return kindHandover
	case overlay.Shuffle:
		return kindShuffle
	case overlay.ShuffleReply:
		return kindShuffleReply
	case overlay.Beacon:
		return kindBeacon
	case overlay.Lookup:
		return kindLookup
	case overlay.Found:
		return kindFound
	case *originalPacket:
		switch m.what {
		case packetPing:
			return kindPing
		case packetPong:
			return kindPong
		case packetRequest:
			return kindRequest
		case packetHandshake:
			return kindRequest
		case packetAck:
			return kindAccept
		case packetAsk:
			return kindRequest
		case packetClose:
			return -1
		}
	}
	return kindOther
}

// Total returns the number of messages of all kinds.
func (c *Counts) Total() (n int64) {
	for _, k := range c.Sent {
		n += k
	}
	return n
}
