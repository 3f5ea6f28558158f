package events

import "github.com/go-smokesignal/smokesignal/internal/event"

// An Event is an event that arrived. All its handlers share it. They may use it
// concurrently and keep it, but must not change its bytes.
type Event = event.Event
