package event

import "github.com/libp2p/go-libp2p/core/peer"

// Arena makes the events of one stream. There is one event which is used
// again and again, with its bytes where they were read; a handler that may
// keep its event gets a copy. Small copies share allocations: keeping one event may
// keep seven others and their bytes in memory, at most 32 KiB together. An event
// above 4 KiB has an allocation of its own.
type Arena struct {
	From   peer.ID
	event  Event // the last one
	events []Event
}

const (
	eventSlab = 8       // events, which are 448 bytes, a size class of Go
	OwnEvent  = 4 << 10 // bytes above which an event has an allocation of its own
)

// Borrowed returns the event in b, which is valid as long as b is, until the
// next call.
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

// Kept returns the event that borrowed returned last for good. body is the
// event's own or a copy.
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
