// Package checker adds up what the nodes of a test run reported. Every node
// writes Records, one for each thing that happened to it, in the order in
// which it happened; Check reads the records of all nodes together and reports
// which promise was broken, by which node and when.
//
// The package knows neither processes nor smokesignal: it sees records only,
// so that a log can be written by hand to see each rule fail.
package checker

import (
	"fmt"
	"strings"
	"time"
)

// A Kind names what a Record tells.
type Kind string

// The kinds that a node reports about itself.
const (
	Started     Kind = "started"      // Peer is the node's own id; Addrs, Min, Max; Session if it is known
	AddrsChange Kind = "addresses"    // Addrs, whenever they have changed since
	Connect     Kind = "connect"      // Up is what Connected said inside the handler
	Disconnect  Kind = "disconnect"   // Up as above
	PeerAdded   Kind = "peer added"   // Peer, Up
	PeerRemoved Kind = "peer removed" // Peer, Up
	ListAdd     Kind = "add"          // Peer: the peer list's own event
	ListRemove  Kind = "remove"       // Peer
	PeerClose   Kind = "close"        // Peer, Err is the reason
	Netsplit    Kind = "netsplit"     // Seed
	Resolved    Kind = "resolved"     // Seed
	SeedError   Kind = "seed error"   // Seed, Err, Code
	Sent        Kind = "sent"         // Emit returned nil for the numbers Seq to To
	Failed      Kind = "failed"       // Emit returned Err for the number Seq
	Received    Kind = "received"     // Peer, Run, Channel, Name, Seq to To
	Gap         Kind = "gap"          // broadcasts Seq to To of Peer's Session are lost; its own numbers, which count what Emit accepted
	Damaged     Kind = "damaged"      // an event whose payload is not what its sender wrote
	Answer      Kind = "answer"       // the answer to command number Cmd
	Snapshot    Kind = "snapshot"     // Peers is the list as the node reads it
)

// The kinds that the test itself adds.
const (
	Commanded Kind = "told"   // Proc was told to emit the numbers Seq to To
	Fault     Kind = "fault"  // Text says what was done to Proc: see the Fault... texts
	Exited    Kind = "exited" // Proc is no more
)

// What a Fault record's Text may say. A frozen process runs on after
// FaultContinue, a killed or closed one has ended.
const (
	FaultKill     = "kill"
	FaultStop     = "stop"
	FaultContinue = "continue"
	FaultClose    = "close"
	FaultLink     = "link" // one of its links was cut on purpose
)

// The channels an event can take.
const (
	Broadcast = "broadcast"
	Direct    = "direct"
)

// A Record is one thing that happened to one node. Which fields it uses is
// said at its Kind.
type Record struct {
	At      int64    `json:"t"` // nanoseconds since 1970, on the clock of the machine that all nodes share
	Proc    string   `json:"proc,omitempty"`
	Kind    Kind     `json:"k"`
	Peer    string   `json:"p,omitempty"` // a peer id: the other side, for Direct events sent the receiver
	Run     string   `json:"r,omitempty"` // the Proc that sent it, as it says itself
	Channel string   `json:"c,omitempty"`
	Name    string   `json:"n,omitempty"`
	Seq     uint64   `json:"s,omitempty"` // first number, counted from 1 per sender and channel (and receiver, if direct)
	To      uint64   `json:"to,omitempty"`
	Up      bool     `json:"up,omitempty"`
	Min     int      `json:"min,omitempty"`
	Max     int      `json:"max,omitempty"` // negative: no limit
	Cmd     int      `json:"cmd,omitempty"`
	Session string   `json:"session,omitempty"` // of a sender, in hexadecimal digits
	Seed    string   `json:"seed,omitempty"`
	Err     string   `json:"err,omitempty"`
	Code    string   `json:"code,omitempty"` // a short word for Err that does not change with its text
	Addrs   []string `json:"addrs,omitempty"`
	Peers   []string `json:"peers,omitempty"`
	Text    string   `json:"text,omitempty"`
}

// Time is the moment of the record.
func (r Record) Time() time.Time { return time.Unix(0, r.At) }

// continues reports whether r tells the number that follows the last of b, so
// that both can be told in one record.
func (r Record) continues(b Record) bool {
	if r.Kind != b.Kind || (r.Kind != Received && r.Kind != Sent) {
		return false
	}
	return r.Peer == b.Peer && r.Run == b.Run && r.Channel == b.Channel && r.Name == b.Name && r.Seq == b.To+1
}

// Merge appends r to log, or widens the last record when r only carries its
// numbers on: thousands of events in order take one line. Nothing is lost by
// it, as a gap, a repetition or anything in between starts a new record.
func Merge(log []Record, r Record) []Record {
	if r.To == 0 {
		r.To = r.Seq
	}
	if n := len(log); n > 0 && r.continues(log[n-1]) {
		log[n-1].To = r.To
		return log
	}
	return append(log, r)
}

// String is one readable line.
func (r Record) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %-8s %-12s", r.Time().Format("15:04:05.000"), r.Proc, r.Kind)
	field := func(name, v string) {
		if v != "" {
			fmt.Fprintf(&b, " %s=%s", name, v)
		}
	}
	field("peer", short(r.Peer))
	field("run", r.Run)
	field("on", r.Channel)
	field("name", r.Name)
	if r.Seq > 0 {
		fmt.Fprintf(&b, " %d-%d", r.Seq, r.To)
	}
	if r.Cmd > 0 {
		fmt.Fprintf(&b, " cmd=%d", r.Cmd)
	}
	field("session", r.Session)
	field("seed", r.Seed)
	field("code", r.Code)
	field("err", r.Err)
	field("text", r.Text)
	for _, p := range r.Peers {
		field("has", short(p))
	}
	return b.String()
}

// short is the end of a peer id, which is what differs between ids.
func short(id string) string {
	if len(id) > 8 {
		return id[len(id)-8:]
	}
	return id
}
