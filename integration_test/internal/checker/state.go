package checker

import (
	"maps"
	"slices"
	"time"
)

// A Stream is what one node hears of one run of a sender on one channel.
type Stream struct{ Run, Channel string }

// Proc is what is known of one process, or of one node within a test.
type Proc struct {
	Name         string
	ID           string
	Session      string // empty if the process did not tell
	Addrs        []string
	Min, Max     int
	Up           bool // it has started and neither exited nor been killed
	Frozen       bool
	Peers        map[string]time.Time // the ids linked, and since when
	MidChange    bool                 // of the events of an addition or a removal some are still to come
	LastSnapshot *Record              // the list as it was read last, nil again when it changes
	Counts       map[Kind]int
	Heard        map[Stream]uint64 // how many events, however often and in whatever order
	HeardBy      map[string]int    // how many by event name
	Lost         map[string]uint64 // how many broadcasts were reported as lost, by the sender's id
}

// Has reports whether the peer with this id is linked.
func (p *Proc) Has(id string) bool { _, ok := p.Peers[id]; return ok }

// State is what a log adds up to so far. The zero value is not usable, see
// NewState. It is not safe for concurrent use.
type State struct {
	Procs  map[string]*Proc
	byID   map[string]string // id to the newest process that has it
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

// Proc returns the process of that name, with empty fields if it has not been
// heard of; it is never nil.
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

// ByID returns the newest process with this peer id, nil if there was none.
func (s *State) ByID(id string) *Proc { return s.Procs[s.byID[id]] }

// Answered returns the answer of a process to its command number cmd.
func (s *State) Answered(proc string, cmd int) (Record, bool) {
	r, ok := s.answer[answerKey{proc, cmd}]
	return r, ok
}

// Apply carries the state on by one record.
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
	case ListAdd: // the last that is told of an addition
		p.Peers[r.Peer] = r.Time()
	case PeerClose: // and of a removal
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

// Running returns the processes that are up, by name.
func (s *State) Running() []*Proc {
	var up []*Proc
	for _, name := range slices.Sorted(maps.Keys(s.Procs)) {
		if p := s.Procs[name]; p.Up {
			up = append(up, p)
		}
	}
	return up
}

// Components returns the connected parts of the graph of the running nodes, a
// link counting only when both sides have it; the largest part comes first.
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

// Half returns the links that one running node has and the other, running too,
// has not, as "a has b".
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

// Want is the number of peers that node should reach among n running ones.
func (p *Proc) Want(n int) int { return max(0, min(p.Min, n-1)) }

// Gathered reports whether the n running nodes are in one component, with no
// half link, and everybody has as many peers as it wants. Nodes above their
// maximum may still be handing over, see AboveMax.
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

// Settled reports whether no node is in the middle of an addition or a removal, and
// with whole whether there is nothing at present that Config.Whole forbids.
func (s *State) Settled(whole bool) bool {
	up := s.Running()
	for _, p := range up {
		if !p.Frozen && (p.MidChange || p.LastSnapshot != nil && (len(p.LastSnapshot.Peers) != len(p.Peers) || !all(p.LastSnapshot.Peers, p.Has))) {
			return false
		}
	}
	return !whole || s.Gathered(len(up)) && len(s.AboveMax()) == 0
}

func all(ids []string, is func(string) bool) bool {
	return !slices.ContainsFunc(ids, func(id string) bool { return !is(id) })
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

// Degrees counts how many running nodes have how many peers.
func (s *State) Degrees() map[int]int {
	d := map[int]int{}
	for _, p := range s.Running() {
		d[len(p.Peers)]++
	}
	return d
}
