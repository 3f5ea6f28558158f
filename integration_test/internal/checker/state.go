package checker

import (
	"maps"
	"slices"
	"time"
)

// A Stream identifies the events that one process of a sender sent on one channel.
type Stream struct{ Run, Channel string }

// A Proc is the state of one process, or of one node inside the test's process.
type Proc struct {
	Name         string
	ID           string
	Session      string // empty if the process did not report it
	Addrs        []string
	Min, Max     int
	Up           bool // the process has started, and has neither exited nor been killed
	Frozen       bool
	Peers        map[string]time.Time // for the id of each linked peer, the time since which it is linked
	MidChange    bool                 // the node is adding or removing a peer: more records about this link must follow
	LastSnapshot *Record              // the node's last Snapshot record; nil if its peer list has changed since
	Counts       map[Kind]int
	Heard        map[Stream]uint64 // number of events, duplicates included
	HeardBy      map[string]int    // number of events by event name
	Lost         map[string]uint64 // by the id of a sender, the number of its broadcasts that were reported as lost
}

// Has reports whether the node of this process is linked to the peer with this id.
func (p *Proc) Has(id string) bool { _, ok := p.Peers[id]; return ok }

// A State is the state of all processes that follows from the records so far. Make one with
// NewState. It is not safe for concurrent use.
type State struct {
	Procs  map[string]*Proc
	byID   map[string]string // the newest process with this peer id
	answer map[answerKey]Record
}

type answerKey struct {
	Proc string
	Cmd  int
}

// NewState returns the state of an empty log.
func NewState() *State {
	return &State{Procs: map[string]*Proc{}, byID: map[string]string{}, answer: map[answerKey]Record{}}
}

// Proc returns the process with this name. It is never nil: a process without records
// has empty fields.
func (s *State) Proc(name string) *Proc {
	p := s.Procs[name]
	if p == nil {
		p = &Proc{
			Name: name, Peers: map[string]time.Time{}, Counts: map[Kind]int{},
			Heard: map[Stream]uint64{}, HeardBy: map[string]int{}, Lost: map[string]uint64{},
		}
		s.Procs[name] = p
	}
	return p
}

// ByID returns the newest process with this peer id, or nil if there was none.
func (s *State) ByID(id string) *Proc { return s.Procs[s.byID[id]] }

// Answered returns the answer of a process to the command with number cmd, or false if there is
// none yet.
func (s *State) Answered(proc string, cmd int) (Record, bool) {
	r, ok := s.answer[answerKey{proc, cmd}]
	return r, ok
}

// Apply adds one record to the state.
func (s *State) Apply(r Record) {
	p := s.Proc(r.Proc)
	n := 1
	if r.To > r.Seq {
		n = int(r.To - r.Seq + 1)
	}
	p.Counts[r.Kind] += n
	switch r.Kind {
	case Connect, PeerAdded, Disconnect, PeerRemoved, ListRemove:
		p.MidChange = true
	case ListAdd, PeerClose:
		p.MidChange, p.LastSnapshot = false, nil
	case Snapshot:
		p.LastSnapshot = &r
	case Started:
		p.MidChange, p.LastSnapshot = false, nil
	}
	switch r.Kind {
	case Started:
		p.ID, p.Session, p.Addrs, p.Min, p.Max, p.Up = r.Peer, r.Session, r.Addrs, r.Min, r.Max, true
		s.byID[r.Peer] = r.Proc
	case AddrsChange:
		p.Addrs = r.Addrs
	case ListAdd: // the last event of an addition
		p.Peers[r.Peer] = r.Time()
	case PeerClose: // the last event of a removal
		delete(p.Peers, r.Peer)
	case Received:
		p.Heard[Stream{r.Run, r.Channel}] += uint64(n)
		p.HeardBy[r.Name] += n
	case Gap:
		p.Lost[r.Peer] += uint64(n)
	case Answer:
		s.answer[answerKey{r.Proc, r.Cmd}] = r
	case Exited:
		p.Up, p.Frozen = false, false
	case Fault:
		switch r.Text {
		case FaultKill:
			p.Up, p.Frozen = false, false
		case FaultStop:
			p.Frozen = true
		case FaultContinue:
			p.Frozen = false
		}
	}
}

// Running returns the processes that are up, sorted by name.
func (s *State) Running() []*Proc {
	var up []*Proc
	for _, name := range slices.Sorted(maps.Keys(s.Procs)) {
		if p := s.Procs[name]; p.Up {
			up = append(up, p)
		}
	}
	return up
}

// Components returns the connected components of the running nodes, the largest first.
// A link counts only if both sides have it.
func (s *State) Components() [][]string {
	seen := map[string]bool{}
	var parts [][]string
	for _, p := range s.Running() {
		if seen[p.Name] {
			continue
		}
		seen[p.Name] = true
		part := []string{p.Name}
		for i := 0; i < len(part); i++ {
			at := s.Procs[part[i]]
			for id := range at.Peers {
				q := s.ByID(id)
				if q == nil || !q.Up || seen[q.Name] || !q.Has(at.ID) {
					continue
				}
				seen[q.Name] = true
				part = append(part, q.Name)
			}
		}
		slices.Sort(part)
		parts = append(parts, part)
	}
	slices.SortStableFunc(parts, func(a, b []string) int { return len(b) - len(a) })
	return parts
}

// Half returns the links between running nodes that only one of the two nodes has, as "a has
// b".
func (s *State) Half() []string {
	var half []string
	for _, p := range s.Running() {
		for id := range p.Peers {
			if q := s.ByID(id); q != nil && q.Up && !q.Has(p.ID) {
				half = append(half, p.Name+" has "+q.Name)
			}
		}
	}
	slices.Sort(half)
	return half
}

// Want returns the least number of peers that the node should have if n nodes run: its minimum,
// or all others if they are fewer.
func (p *Proc) Want(n int) int { return max(0, min(p.Min, n-1)) }

// Gathered reports whether exactly n nodes run, they form one component, every link exists on
// both sides, and every node has enough peers. Nodes may still have more peers than their
// maximum, see AboveMax.
func (s *State) Gathered(n int) bool {
	up := s.Running()
	if len(up) != n || len(s.Components()) != 1 || len(s.Half()) > 0 {
		return false
	}
	for _, p := range up {
		if len(p.Peers) < p.Want(n) {
			return false
		}
	}
	return true
}

// Settled reports whether no node is in the middle of adding or removing a peer, and the last
// Snapshot of each node agrees with its links. If whole is true, the network must also be whole
// as Config.Whole requires.
func (s *State) Settled(whole bool) bool {
	up := s.Running()
	for _, p := range up {
		if !p.Frozen && (p.MidChange || p.LastSnapshot != nil && (len(p.LastSnapshot.Peers) != len(p.Peers) || !allMatch(p.LastSnapshot.Peers, p.Has))) {
			return false
		}
	}
	return !whole || s.Gathered(len(up)) && len(s.AboveMax()) == 0
}

// allMatch reports whether match is true for every id.
func allMatch(ids []string, match func(string) bool) bool {
	return !slices.ContainsFunc(ids, func(id string) bool { return !match(id) })
}

// AboveMax returns the names of the running nodes with more peers than their
// maximum.
func (s *State) AboveMax() []string {
	var above []string
	for _, p := range s.Running() {
		if p.Max >= 0 && len(p.Peers) > p.Max {
			above = append(above, p.Name)
		}
	}
	return above
}

// Degrees returns, for each number of peers, how many running nodes have that many.
func (s *State) Degrees() map[int]int {
	d := map[int]int{}
	for _, p := range s.Running() {
		d[len(p.Peers)]++
	}
	return d
}
