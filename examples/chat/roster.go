package main

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-smokesignal/smokesignal"
)

const (
	// absence is the time within which everybody has to answer a roll call (a greeting that
	// asks for greetings). People who do not answer count as gone.
	absence = 5 * time.Second
	// maxRoster is the largest number of people in a roster, so that strangers cannot fill
	// the memory of this program.
	maxRoster = 1000
)

// greeting announces the sender's name to everybody. A greeting with Ask is a roll call:
// everybody answers it with a greeting without Ask, and people who do not answer count as gone.
type greeting struct {
	Name string `json:"name"`
	Ask  bool   `json:"ask,omitempty"`
}

// roster lists the people in the chat and their names. It is built from greetings, because the
// node's own list of peers has only its direct neighbors. It performs no I/O and reads no
// clock.
type roster struct {
	self string

	mu     sync.Mutex
	people map[smokesignal.ID]*person
	called time.Time // when everybody was last asked for a greeting (a roll call); zero once the people who did not answer were removed
}

type person struct {
	name    string    // the name that this chat shows for the person, unique in the roster
	claimed string    // the name in the person's last greeting; empty before the first one
	heard   time.Time // when the last sign of life came
}

func newRoster(self string) *roster {
	return &roster{self: self, people: make(map[smokesignal.ID]*person)}
}

// noteAlive records that the person id gave a sign of life at the time now and, unless it is
// empty, the name that the person claims. It returns the name shown for the person: the claimed
// name, followed by the short id if somebody else has this name, or the short id while no name
// is known. news reports whether the person or the name is new.
func (r *roster) noteAlive(id smokesignal.ID, claimed string, now time.Time) (shown string, news bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	claimed = cleanName(claimed)
	if p, ok := r.people[id]; ok {
		if p.heard = now; claimed == "" || claimed == p.claimed {
			return p.name, false
		}
		delete(r.people, id)
	}
	if len(r.people) >= maxRoster {
		return shortID(id), false
	}
	name := claimed
	if name == "" {
		name = shortID(id)
	}
	if r.taken(name) {
		name += "-" + shortID(id)
	}
	for r.taken(name) {
		name += "-" // somebody claimed even the name with the short id
	}
	r.people[id] = &person{name, claimed, now}
	return name, true
}

func (r *roster) taken(name string) bool {
	if strings.EqualFold(name, r.self) {
		return true
	}
	for _, p := range r.people {
		if strings.EqualFold(name, p.name) {
			return true
		}
	}
	return false
}

// remove removes the person id and returns the name that was shown for the person. known
// reports whether the person was in the roster.
func (r *roster) remove(id smokesignal.ID) (shown string, known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p, ok := r.people[id]
	if !ok {
		return "", false
	}
	delete(r.people, id)
	return p.name, true
}

// startRollCall records that everybody was asked for a greeting at now.
func (r *roster) startRollCall(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.called = now
}

// removeSilent removes the people who did not answer the last roll call (the request that
// everybody send a greeting) and returns their names. It does nothing until absence has passed
// since the roll call.
func (r *roster) removeSilent(now time.Time) (gone []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.called.IsZero() || now.Sub(r.called) < absence {
		return nil
	}
	for id, p := range r.people {
		if p.heard.Before(r.called) {
			gone = append(gone, p.name)
			delete(r.people, id)
		}
	}
	r.called = time.Time{}
	slices.Sort(gone)
	return gone
}

// clear removes everybody.
func (r *roster) clear() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.people)
	r.called = time.Time{}
}

// names returns everybody's name, sorted.
func (r *roster) names() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	names := make([]string, 0, len(r.people))
	for _, p := range r.people {
		names = append(names, p.name)
	}
	slices.SortFunc(names, func(a, b string) int {
		return strings.Compare(strings.ToLower(a), strings.ToLower(b))
	})
	return names
}

// all returns everybody's name, by id.
func (r *roster) all() map[smokesignal.ID]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make(map[smokesignal.ID]string, len(r.people))
	for id, p := range r.people {
		all[id] = p.name
	}
	return all
}

// find returns the id of the person with this name, in upper or lower case, or with this short id.
func (r *roster) find(name string) (smokesignal.ID, bool) {
	for id, n := range r.all() {
		if strings.EqualFold(n, name) || shortID(id) == name {
			return id, true
		}
	}
	return "", false
}

// shortID returns the last six characters of an id, which are enough to tell a few people
// apart. The first characters are the same in all ids of one key type.
func shortID(id smokesignal.ID) string {
	s := id.String()
	return s[max(0, len(s)-6):]
}
