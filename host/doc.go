// Package host makes the libp2p host of a node, with its identity, the addresses that it
// listens on and announces, and its limits.
//
//	h, err := host.New(host.Config{Listen: []string{":8495"}})
//	if err != nil {
//		return err
//	}
//	defer h.Close()
//	h.Host().SetStreamHandler("/hello/1.0.0", hello) // before anybody can call
//	if err := h.Listen(); err != nil {
//		return err
//	}
//	fmt.Println(h.Dialable()) // ready to paste: /ip4/192.168.2.100/tcp/8495/p2p/12D3KooW...
//
// The libp2p host that the method Host of a [Host] returns keeps three promises beyond those of
// libp2p:
//
//   - Either exactly the configured addresses are bound, or none. The error names each
//     address that could not be bound.
//   - The addresses that it announces can be dialed: never port 0, never "all
//     interfaces".
//   - It does nothing unasked. Without [Config.NAT] it uses no relay, maps no port and
//     probes nothing. It registers nothing globally, prints nothing to stderr, and leaves
//     no goroutine behind after Close.
//
// Behind a router, [NAT] makes a host reachable through relays and hole punching, or by a
// mapped port.
//
// An identity is a key in memory, or in a file that one node at a time can open
// ([OpenIdentity]).
package host
