package smokesignal

import "github.com/go-smokesignal/smokesignal/events"

// A Gap is a range of one sender's broadcasts that were not delivered and never will be:
// no neighbor has them any more, or they were dropped because the handlers of this node
// were too slow. For each session of a sender, the broadcasts that were delivered and
// those in Gaps add up to the number that it sent. In the loop of Name.All a Gap is the
// error that stands in the place of the missing events.
type Gap struct {
	From    ID      // the sender of the missing events
	Session [8]byte // the session of the sender in which it sent the missing events, see Node.Session
	// First and Last are the sequence numbers of the first and the last missing event.
	// A sender numbers the events of each session from 1.
	First, Last uint64
	// Slow is true if the events arrived here but were dropped because the handlers of this
	// node were too slow. It is false if no neighbor had the events any more.
	Slow bool
}

// Len returns the number of missing events.
func (g Gap) Len() uint64 { return events.Gap(g).Len() }

// Error says in one line which events are missing, and why.
func (g Gap) Error() string { return "smokesignal: " + events.Gap(g).String() }
