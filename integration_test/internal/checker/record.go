// Package checker checks the reports of all nodes of a test run against rules. Every
// node writes a Record for each event that happens to it, in order. Check reads the
// records of all nodes together and returns the violations: which rule, which node,
// and when.
//
// The package knows neither processes nor smokesignal. It sees only records, so a test
// can write a log by hand and see each rule fail.
package checker

import (
	"fmt"
	"strings"
	"time"
)

// A Kind is the kind of event that a Record describes.
type Kind string

// The kinds of record that a node writes. Each comment names the fields of Record that it uses.
const (
	Started     Kind = "started"      // a node listens: Peer is its own id; Addrs, Min, Max and, if known, Session are set too
	AddrsChange Kind = "addresses"    // Addrs are the node's addresses after a change
	Connect     Kind = "connect"      // OnConnect was called: Up is what node.Connected returned inside the handler
	Disconnect  Kind = "disconnect"   // Up
	PeerAdded   Kind = "peer added"   // Peer, Up
	PeerRemoved Kind = "peer removed" // Peer, Up
	ListAdd     Kind = "add"          // Peer; an event of the peer list
	ListRemove  Kind = "remove"       // Peer
	PeerClose   Kind = "close"        // Peer, and the reason in Err
	Netsplit    Kind = "netsplit"     // Seed
	Resolved    Kind = "resolved"     // Seed
	SeedError   Kind = "seed error"   // Seed, Err, Code
	Sent        Kind = "sent"         // Emit returned nil for the events with the numbers Seq to To
	Failed      Kind = "failed"       // Emit returned Err for the event with the number Seq
	Received    Kind = "received"     // events arrived: Peer, Run, Channel, Name, and their numbers Seq to To
	Gap         Kind = "gap"          // the broadcasts Seq to To of the Peer in its Session are lost; the numbers are the library's, not those in payloads
	Damaged     Kind = "damaged"      // an event arrived with a changed payload
	Answer      Kind = "answer"       // the answer to the command with number Cmd
	Snapshot    Kind = "snapshot"     // Peers is the node's peer list
)

// The kinds that the test itself adds.
const (
	Commanded Kind = "told"   // the test commanded Proc to emit the events with the numbers Seq to To
	Fault     Kind = "fault"  // Text is the fault that the test caused at Proc, one of the Fault constants
	Exited    Kind = "exited" // Proc has ended
)

// The faults that a test causes, as the Text of a Fault record. FaultContinue ends FaultStop. A
// killed or closed process has ended.
const (
	FaultKill     = "kill"
	FaultStop     = "stop"
	FaultContinue = "continue"
	FaultClose    = "close"
	FaultLink     = "link" // the test cut one of its links
)

// The channels of events.
const (
	Broadcast = "broadcast"
	Direct    = "direct"
)

// A Record is one event that happened to one node. The comment of its Kind lists the
// fields it uses.
type Record struct {
	At      int64    `json:"t"` // nanoseconds since 1970; all nodes run on one machine and share its clock
	Proc    string   `json:"proc,omitempty"`
	Kind    Kind     `json:"k"`
	Peer    string   `json:"p,omitempty"` // the id of the other peer; for a direct event that was sent, the receiver
	Run     string   `json:"r,omitempty"` // the Proc of the process that sent the event, as its payload says
	Channel string   `json:"c,omitempty"`
	Name    string   `json:"n,omitempty"`
	Seq     uint64   `json:"s,omitempty"` // the first number of the events; a sender counts from 1 per channel and, if direct, per receiver
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

// Time returns the time of the record.
func (r Record) Time() time.Time { return time.Unix(0, r.At) }

// continues reports whether r has the same kind, sender, channel and event name as b, and
// begins with the number after the last number of b, so that one record can hold both.
func (r Record) continues(b Record) bool {
	if r.Kind != b.Kind || (r.Kind != Received && r.Kind != Sent) {
		return false
	}
	return r.Peer == b.Peer && r.Run == b.Run && r.Channel == b.Channel && r.Name == b.Name && r.Seq == b.To+1
}

// Merge appends r to log. If r continues the last record, Merge widens that record
// instead, so that thousands of events in order take one line. This loses no
// information: a gap, a repetition or any other record in between starts a new record.
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

// String returns the record as one readable line.
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

// short returns the last eight characters of a peer id. The first ones are the same for all
// ids.
func short(id string) string {
	if len(id) > 8 {
		return id[len(id)-8:]
	}
	return id
}
