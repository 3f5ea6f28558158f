package cluster

import (
	"encoding/json"
	"fmt"
	"os"
	"time"
)

// EnvSpec is the environment variable that turns a test binary into a node:
// its value is a Spec as JSON.
const EnvSpec = "SMOKESIGNAL_TEST_NODE"

// A Spec says how a node is made. Zero fields leave the library's defaults.
type Spec struct {
	Name         string        `json:"name"`             // unique within a cluster; Start adds +1, +2 ... when it is taken
	Listen       []string      `json:"listen,omitempty"` // as smokesignal.Listen takes them
	Seeds        []string      `json:"seeds,omitempty"`
	Advertise    []string      `json:"advertise,omitempty"`
	Limits       *[2]int       `json:"limits,omitempty"` // min and max peers
	PingInterval time.Duration `json:"pingInterval,omitempty"`
	PingTimeout  time.Duration `json:"pingTimeout,omitempty"`
	Network      string        `json:"network,omitempty"`
	Identity     string        `json:"identity,omitempty"` // a file
	KeepFor      time.Duration `json:"keepFor,omitempty"`
	HolePunching bool          `json:"holePunching,omitempty"`
	Relays       []string      `json:"relays,omitempty"`
	RelayService bool          `json:"relayService,omitempty"`
	PortMapping  bool          `json:"portMapping,omitempty"`
	Env          []string      `json:"-"` // added to the environment
	// In calls start, on the calling goroutine, where the process is to be started:
	// in another network namespace. Nil calls it here.
	In func(start func() error) error `json:"-"`
}

// The listen addresses of a node on a free port of the loopback interface.
const (
	TCP  = "/ip4/127.0.0.1/tcp/0"
	QUIC = "/ip4/127.0.0.1/udp/0/quic-v1"
)

// SpecFromEnv returns the Spec this process was started with, false if it was
// not started as a node.
func SpecFromEnv() (Spec, bool, error) {
	text, ok := os.LookupEnv(EnvSpec)
	if !ok {
		return Spec{}, false, nil
	}
	var s Spec
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return Spec{}, true, fmt.Errorf("cluster: %s: %w", EnvSpec, err)
	}
	return s, true, nil
}

// A Do names what a Command orders.
type Do string

// The orders a node understands. Every one is answered by a checker.Answer
// record with the command's number once it is carried out; Err and Code say
// what went wrong.
const (
	Emit      Do = "emit"       // broadcast Count events Name of Size bytes, numbered from Seq
	Direct    Do = "direct"     // the same to the peer To
	AddPeer   Do = "add peer"   // To is an address; the answer's Peer is its id
	ClosePeer Do = "close peer" // To is an id
	Peers     Do = "peers"      // a checker.Snapshot record comes before the answer
	Seeds     Do = "seeds"      // the answer's Text is the JSON of node.Seeds()
	Ready     Do = "ready"      // within Within
	Flush     Do = "flush"      // within Within
	Close     Do = "close"      // the process ends after its answer
)

// A Command is one line of JSON on a node's standard input.
type Command struct {
	No     int           `json:"no"`
	Do     Do            `json:"do"`
	To     string        `json:"to,omitempty"`
	Name   string        `json:"name,omitempty"`
	Seq    uint64        `json:"seq,omitempty"`
	Count  int           `json:"count,omitempty"`
	Size   int           `json:"size,omitempty"`
	Within time.Duration `json:"within,omitempty"`
	Every  time.Duration `json:"every,omitempty"` // from one event emitted to the next; zero: as fast as Emit returns
}
