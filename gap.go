package smokesignal

import "github.com/go-smokesignal/smokesignal/events"

// A Gap is a range of broadcasts of one sender that are missing and will not arrive: no
// neighbor has them any more, or the handlers here were so slow that they had to make
// room. What is delivered and what is reported in Gaps adds up to what the sender sent in
// that run.
type Gap struct {
	From    ID      // the sender of the missing events
	Session [8]byte // the run of the sender that they belong to, see Node.Session
	// First and Last are the sequence numbers of the first and the last missing event.
	// A sender numbers the events of each run from 1.
	First, Last uint64
	// Slow reports that the events arrived but were dropped because the handlers here
	// were too slow. Otherwise no neighbor had them any more.
	Slow bool
}

// Len returns the number of missing events.
func (g Gap) Len() uint64 { return events.Gap(g).Len() }

// String says in one line which events are missing, and why.
func (g Gap) String() string { return events.Gap(g).String() }

// A GapError is a Gap in the loop of Name.All, in the place of the missing events.
type GapError struct{ Gap Gap }

func (e *GapError) Error() string { return "smokesignal: " + e.Gap.String() }
