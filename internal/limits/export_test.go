package limits

import "github.com/libp2p/go-libp2p/core/protocol"

// PerPeer returns how many streams one peer may open for each protocol.
func PerPeer() map[protocol.ID]int {
	limits := map[protocol.ID]int{}
	for _, l := range protocolLimits {
		limits[l.id] = l.perPeer
	}
	return limits
}
