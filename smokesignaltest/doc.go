// Package smokesignaltest runs whole networks of smokesignal nodes inside a test:
// real nodes, whose packets go through memory instead of sockets, in virtual time.
//
//	func TestEverybodyHears(t *testing.T) {
//		smokesignaltest.Run(t, func(t *testing.T) {
//			net := smokesignaltest.Network(t, 5)
//			net.Cut(0, 1) // nodes 0 and 1 against the other three
//			net.Emit(0, "chat", "is anybody there?")
//			net.Heal()
//			net.EverybodyGot("chat", "is anybody there?")
//			net.OneComponent()
//		})
//	}
//
// In [Run] a minute takes as long as the work that is done in it: time.Sleep, timers
// and deadlines use virtual time, which moves on when every goroutine waits. Run is
// synctest.Test of the package testing/synctest, and its rules hold: no t.Run and no
// t.Parallel inside, and every goroutine of the test has to end with it. A Network
// also works outside of Run, in real time.
//
// The nodes listen on QUIC at addresses of their own, 10.8.0.1 and so on, which
// exist only in the test. Node 0 is the seed of all. Nothing leaves the process.
//
// Chance is seeded: with the same [Seed] the nodes have the same ids, and packets the
// same latencies. The order in which goroutines run, and random numbers that nodes
// draw themselves, are not repeated, so two runs with the same seed are alike and not
// equal.
//
// The test fails at its end if a node cannot be closed. A test that wants to know
// what the nodes do can give them a logger: Options(smokesignal.Logger(h)).
package smokesignaltest
