// Package netns builds networks for tests from Linux network namespaces. Each namespace
// is a machine with its own addresses, routes and cables, and real processes run on it.
// No packet leaves these networks.
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
// An open file keeps a namespace alive; it has no name. So the kernel removes it once
// the file is closed and its processes have ended, even if the test was killed.
//
// The package runs the command ip and, for cuts, nft (packages iproute2 and nftables).
package netns
