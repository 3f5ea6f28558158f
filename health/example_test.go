package health_test

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/health"
)

func Example() {
	type overlay struct { // as the rest of a node provides it
		Peers func() []peer.ID
		Flood func(msg []byte, except peer.ID)
	}
	watch := func(key crypto.PrivKey, addrs func() []ma.Multiaddr, links overlay) error {
		w, err := health.New(health.Config{
			Key:          key,
			PingInterval: 10 * time.Second,
			PingTimeout:  3 * time.Second,
			Seeds:        []health.WatchedSeed{{Text: "192.168.2.100:8495", Addrs: []netip.AddrPort{netip.MustParseAddrPort("192.168.2.100:8495")}}},
			Addrs:        addrs,
			Neighbors:    links.Peers, // the peers linked in the overlay
			Flood:        links.Flood, // to all of them but one; they call Heard and Receive
			OnNetsplit:   func(seed string) { fmt.Println("lost", seed) },
			OnResolved:   func(seed string) { fmt.Println("back", seed) },
		})
		if err != nil {
			return err
		}
		w.Start()
		defer w.Close()
		// ...
		return nil
	}
	fmt.Println(watch(nil, nil, overlay{}))
	// Output: health: Config.Key is missing
}
