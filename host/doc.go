// Package host makes the libp2p host of a node: its identity, the addresses it
// listens on and announces, and its limits.
//
//	h, err := host.New(host.Config{Listen: []string{":8495"}})
//	if err != nil {
//		return err
//	}
//	defer h.Close()
//	h.SetStreamHandler("/hello/1.0.0", hello) // before anybody can call
//	if err := h.Listen(); err != nil {
//		return err
//	}
//	fmt.Println(h.Dialable()) // ready to paste: /ip4/192.168.2.100/tcp/8495/p2p/12D3KooW...
//
// A [Host] is an ordinary libp2p host with three promises more. Exactly the
// addresses asked for are bound, or none, and the error names each that could
// not be. What it announces can be dialed: never port 0, never "all
// interfaces". And it does nothing unasked: no relay, port mapping or probing
// without [Config.NAT], nothing in global registries, no line on stderr, and no goroutine after
// Close.
//
// Behind a router, [NAT] has a host found through relays and hole punching, or by a
// mapped port.
//
// An identity is a key in memory, or a file that one node at a time can open
// ([OpenIdentity]).
package host
