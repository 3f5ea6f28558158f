package smokesignal

// The events below are emitted on the event bus of the node's libp2p host
// (Host().EventBus()), where other libp2p code looks for them. They tell the same
// as the callbacks, in the same order.
type (
	// EvtConnected: the first peer was added.
	EvtConnected struct{}
	// EvtDisconnected: the last peer is gone.
	EvtDisconnected struct{}
	// EvtPeerAdded: a peer was added to the peer list.
	EvtPeerAdded struct{ Peer ID }
	// EvtPeerRemoved: a peer was removed from the peer list.
	EvtPeerRemoved struct {
		Peer   ID
		Reason error
	}
	// EvtNetsplit: a seed is not heard any more through the overlay.
	EvtNetsplit struct{ Seed string }
	// EvtNetsplitResolved: the seed is heard again.
	EvtNetsplitResolved struct{ Seed string }
	// EvtGap: broadcasts of a sender are missing and will not come.
	EvtGap struct{ Gap Gap }
	// EvtSeedError: the reason why a seed cannot be used has changed.
	EvtSeedError struct{ Err *SeedError }
)
