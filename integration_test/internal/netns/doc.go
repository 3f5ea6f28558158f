// Package netns makes networks for tests out of network namespaces of Linux:
// machines with addresses, routes and cables of their own, on which real processes
// run. Not a packet leaves them.
//
//	if inside, err := netns.Enter(t); !inside {
//		if err != nil {
//			t.Skip("SKIPPED: ", err)
//		}
//		return // the test has run, as root of a user namespace
//	}
//	halves, err := netns.NewHalves()
//	...
//	machine, err := halves.Machine(0)
//	err = machine.Do(cmd.Start) // the process runs on that machine
//	err = halves.Cut()
//
// A namespace has no name, but is held by an open file. So it is gone with all that
// is in it once it is closed and its processes have ended, also if the test was
// killed.
//
// It needs the commands ip and, to cut, nft (packages iproute2 and nftables).
package netns
