package event

import "github.com/libp2p/go-libp2p/core/peer"

// Arena makes the Event values for one stream. It parses each event into the same Event
// value, whose bytes stay where they were read. If a handler may keep the event, Kept
// makes a copy. Eight small copies share an allocation, so keeping one can keep seven
// others and their bytes in memory, at most 32 KiB together. An event of more than 4
// KiB has an allocation of its own.
type Arena struct {
	From   peer.ID
	event  Event // the event that Borrowed returned last
	events []Event
}

const (
	eventSlab = 8       // how many events share an allocation; together they have 448 bytes, a size class of Go
	OwnEvent  = 4 << 10 // an event with more bytes than this has an allocation of its own
)

// Borrowed returns the event that b contains. The event is valid until the next call,
// and as long as b is not changed.
func (m *Arena) Borrowed(b []byte) (*Event, error) {
	e := &m.event
	if err := e.parse(b, e.Name); err != nil {
		return nil, err
	}
	if e.From == "" {
		e.From = m.From
	}
	return e, nil
}

// Kept returns a copy of the last event that Borrowed returned, which may be kept for
// good. The copy's bytes are body: the event's own bytes, or a copy of them.
func (m *Arena) Kept(body []byte) *Event {
	var e *Event
	if len(body) > OwnEvent {
		e = new(Event)
	} else {
		if len(m.events) == 0 {
			m.events = make([]Event, eventSlab)
		}
		e = &m.events[0]
		m.events = m.events[1:]
	}
	*e = Event{m.event.From, m.event.Name, body}
	return e
}
