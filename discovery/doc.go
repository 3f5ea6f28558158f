// Package discovery keeps a libp2p host linked to other nodes of its network: an overlay that
// heals itself, on any host. It knows where nodes can be found, dials them, and decides which
// of them to keep as neighbors.
//
//	d, err := discovery.New(discovery.Config{
//		Host: host, Network: "home", Min: 3, Max: 6,
//		Seeds:    []string{"192.168.2.100:8495"},
//		OnLinked: func(p peer.ID) { fmt.Println("new neighbor", p) },
//	})
//	if err != nil {
//		return err
//	}
//	d.Start()
//	defer d.Close()
//
// A [Driver] finds nodes through its seeds, through the addresses that other nodes tell, on the
// local network, in a file of the nodes that it knew before, and in a DHT. A seed may also be the
// ticket of a node of package smokesignal: one string with its id, its addresses and its network.
//
// # How it runs
//
// A Driver has one goroutine, the loop, that owns the state machine of the membership protocol
// and the state of the seeds. Everything that happens elsewhere (messages read, dials that
// failed, connections lost) comes to the loop as functions to run. The loop never waits for
// the network. The functions of [Config] are called on it and must not block. Each link has one long stream for
// each direction.
//
// On a host that punches holes, addresses behind relays are dialed as well. A connection through
// a relay is only a step to a direct one: no link is made over it, and no message that comes
// over it is read.
//
// # What a stranger can cause
//
// The addresses of a stranger are dialed only if they come from a record that it signed, and only
// if they reach as far as the one it speaks from. At most 24 such dials run at once, and eight
// more that answer peers which have hung up. An address at which nobody was ever reached is
// dialed three times in ten minutes, whatever identities claim it. A frame has at most 128 KiB,
// and one peer has at most four streams. The state machine remembers at most 128 nodes that are
// not neighbors.
package discovery
