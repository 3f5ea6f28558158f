package wiring

import (
	"time"

	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/internal/testhook"
)

// HostParts connect a host.Host to its node, which sets ListenUDP before it calls host.New.
// host.New sets Relays.
type HostParts struct {
	// ListenUDP opens the UDP sockets of the host. Nil means the system's.
	ListenUDP testhook.Listener
	// Relays returns the state of the reservation at each relay that the configuration
	// names, in that order. It returns none before the host listens.
	Relays func() []RelayStatus
}

// A RelayStatus is the state of the reservation at a relay.
type RelayStatus struct {
	Relay ma.Multiaddr // the first address of the relay, with its id
	Err   error        // why there is no reservation, or nil
	Until time.Time    // when the reservation ends; zero without one
}
