package cluster

import (
	"encoding/json"
	"fmt"
	"os"
	"time"
)

// EnvSpec is the environment variable that makes a test binary run as a node. Its value
// is a Spec as JSON.
const EnvSpec = "SMOKESIGNAL_TEST_NODE"

// A Spec describes a node. Zero fields mean the defaults of the library.
type Spec struct {
	Name         string        `json:"name"`             // if another process has this name, Start appends +1, +2 and so on
	Listen       []string      `json:"listen,omitempty"` // arguments of smokesignal.Listen
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
	// In, if set, is called to start the process. It must call start on the same goroutine.
	// It can enter another network namespace first, so that the process runs there.
	In func(start func() error) error `json:"-"`
}

// Arguments for Spec.Listen: a free port of the loopback interface, over TCP or QUIC.
const (
	TCP  = "/ip4/127.0.0.1/tcp/0"
	QUIC = "/ip4/127.0.0.1/udp/0/quic-v1"
)

// SpecFromEnv returns the Spec of this process, or false if the process was not started as a
// node. The error says why the text in EnvSpec is not a Spec.
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

// A Do is the action of a Command.
type Do string

// The actions of a node. After each, the node writes a checker.Answer record with the
// number of the command, and with Err and Code if the action failed.
const (
	Emit      Do = "emit"       // broadcast Count events named Name, of Size bytes each, numbered from Seq
	Direct    Do = "direct"     // send Count direct events named Name, of Size bytes each, to the peer To
	AddPeer   Do = "add peer"   // connect to the address To; the field Peer of the answer has the peer's id
	ClosePeer Do = "close peer" // disconnect the peer with the id To
	Peers     Do = "peers"      // write a checker.Snapshot record before the answer
	Seeds     Do = "seeds"      // put node.Seeds(), as JSON, into the field Text of the answer
	Ready     Do = "ready"      // wait for Ready, at most Within
	Flush     Do = "flush"      // flush, at most Within
	Close     Do = "close"      // close the node; the process ends after the answer
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
	Every  time.Duration `json:"every,omitempty"` // the interval between events; zero means as fast as Emit returns
}
