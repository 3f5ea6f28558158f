package main

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-smokesignal/smokesignal"
)

const (
	// absence is how long after a roll call a silent one counts as gone.
	absence = 5 * time.Second
	// maxRoster bounds what strangers can make us remember.
	maxRoster = 1000
)

// greeting tells a name to everybody. Whoever hears one that asks answers with
// one that does not, so it is also a roll call: who stays silent is gone.
type greeting struct {
	Name string `json:"name"`
	Ask  bool   `json:"ask,omitempty"`
}

// roster is who is here, and under what names. The node's peers are only a few
// of them: the others are known by their greetings. It performs no I/O and reads
// no clock.
type roster struct {
	self string

	mu     sync.Mutex
	people map[smokesignal.ID]*person
	called time.Time // the last roll call not settled yet; zero if none
}

type person struct {
	name    string // as shown
	claimed string // as told; empty until a greeting came
	heard   time.Time
}

func newRoster(self string) *roster {
	return &roster{self: self, people: make(map[smokesignal.ID]*person)}
}

// heard notes a sign of life of id, with the name it claims or none, and returns
// how it is shown here: under that name, with the short id after it if somebody
// else has the name, or under the short id while no name is known. News is
// whether id, or its name, is new.
func (r *roster) heard(id smokesignal.ID, claimed string, now time.Time) (shown string, news bool) {
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
		name += "-" // somebody took that one on purpose
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

// left strikes id and returns the name it had; known is false if it had none.
func (r *roster) left(id smokesignal.ID) (shown string, known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p, ok := r.people[id]
	if !ok {
		return "", false
	}
	delete(r.people, id)
	return p.name, true
}

// call notes that everybody was asked to answer.
func (r *roster) call(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.called = now
}

// settle strikes those who did not answer the last roll call, once they had
// time for it, and returns their names.
func (r *roster) settle(now time.Time) (gone []string) {
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

// clear strikes everybody.
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

// all returns the names by id.
func (r *roster) all() map[smokesignal.ID]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make(map[smokesignal.ID]string, len(r.people))
	for id, p := range r.people {
		all[id] = p.name
	}
	return all
}

// find returns who has that name, whatever its case, or that short id.
func (r *roster) find(name string) (smokesignal.ID, bool) {
	for id, n := range r.all() {
		if strings.EqualFold(n, name) || shortID(id) == name {
			return id, true
		}
	}
	return "", false
}

// shortID is enough of an id to tell a few people apart: its end, since the
// beginning is the same for all keys of one kind.
func shortID(id smokesignal.ID) string {
	s := id.String()
	return s[max(0, len(s)-6):]
}
