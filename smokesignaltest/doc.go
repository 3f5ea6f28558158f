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
// Inside [Run], time is virtual: it moves on only while every goroutine waits, so a
// minute takes only the time of its work. time.Sleep, timers and deadlines use it. Run is
// synctest.Test of the package testing/synctest, and its rules hold: no t.Run and no
// t.Parallel inside, and every goroutine of the test has to end with it. A Network
// also works outside of Run, in real time.
//
// The nodes listen on QUIC at addresses of their own, 10.8.0.1 and so on, which
// exist only in the test. Node 0 is the seed of all. Nothing leaves the process.
//
// With the same [Seed], nodes have the same ids and packets the same latencies. The
// order of goroutines and the random numbers inside the nodes still differ, so two runs
// with the same seed are similar but not identical.
//
// The test fails at its end if a node cannot be closed. A test that wants to know
// what the nodes do can give them a logger: Options(smokesignal.Logger(h)).
package smokesignaltest
