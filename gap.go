package smokesignal

import "github.com/go-smokesignal/smokesignal/events"

// Gap is broadcasts of a sender that are missing and will not come.
type Gap = events.Gap

// A GapError is a Gap in the loop of Name.All, in the place of the missing events.
type GapError struct{ Gap Gap }

func (e *GapError) Error() string { return "smokesignal: " + e.Gap.String() }
