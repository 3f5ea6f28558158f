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
// A [Driver] finds nodes through its seeds, through the addresses that other nodes send, on the
// local network, in a file of the nodes that it knew before, and in a DHT. A seed may also be the
// ticket of a node of package smokesignal: one string with its id, its addresses and its network.
//
// # How it runs
//
// A Driver has one goroutine, the loop, that owns the state machine of the membership protocol
// and the state of the seeds. Other goroutines report what happens (messages read, dials that
// failed, connections lost) by functions that the loop runs. The loop never waits for the
// network. It calls the functions of [Config], which must not block. Each link uses one
// long-lived stream in each direction.
//
// On a host that punches holes, addresses behind relays are dialed as well. A connection through
// a relay is only a step to a direct one: the driver sends and reads nothing over it.
//
// # What an unknown peer can cause
//
// The driver dials an address that a peer states only if it is in a signed record, and only if it
// is of the same kind as the address of that peer, or of a wider one: a peer on the internet
// cannot state private addresses. At most 24 such dials run at once, and eight more that serve to
// answer peers which have disconnected. An address at which no node was ever reached is dialed
// three times in ten minutes, whatever identities state it. A frame has at most 128 KiB, and one
// peer has at most four streams. The state machine remembers at most 128 live nodes that are not
// neighbors.
package discovery
