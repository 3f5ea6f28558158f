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
	// Relays returns, for each relay that the configuration names and in that order,
	// whether the relay has granted this host a reservation: the right to be reached
	// through the relay. It returns none before the host listens.
	Relays func() []RelayStatus
}

// A RelayStatus says whether a relay has granted this host a reservation: the right to be
// reached through the relay.
type RelayStatus struct {
	Relay ma.Multiaddr // the first address of the relay, with its id
	Err   error        // why the relay has granted this host no reservation, or nil if it has granted one
	Until time.Time    // when the reservation ends; zero without one
}
