package overlay

import (
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/encoding/protowire"
)

// A Session is drawn at random by each process. It tells a restarted node from
// the one that was linked before.
type Session [8]byte

// A Contact is what it takes to reach a node. Record, its signed peer record,
// is what travels; Addrs is what this node may dial of it, set by whoever took
// the record from the wire, and so is Seq, the sequence number in the record: of
// two records of one node the one with the higher number is the newer. The state
// machine never looks into a record.
type Contact struct {
	ID     peer.ID
	Record []byte
	Seq    uint64
	Addrs  []ma.Multiaddr
}

// A Reason says why a link was refused or ended.
type Reason uint8

const (
	ReasonNone        Reason = iota
	ReasonFull               // no room
	ReasonNetwork            // the nodes belong to networks of different names
	ReasonSelf               // the address belongs to the asker itself
	ReasonCooldown           // the pair parted less than thirty seconds ago
	ReasonEnough             // the asker found enough links meanwhile
	ReasonClosed             // the node is closing
	ReasonDropped            // the user closed the peer
	ReasonMoved              // the link was handed over to another node
	ReasonUnknown            // keepalive for a link that does not exist here
	ReasonSilent             // nothing heard for too long
	ReasonGone               // the last connection was lost
	ReasonUnreachable        // it could not be dialled, or a message not be sent
	ReasonTimeout            // the handshake took too long
	ReasonRestarted          // the peer came back as a new process, or anew
	ReasonOffTopic           // the peer left the pubsub topic
	ReasonProtocol           // the node does not speak this protocol
	ReasonSwapped            // exchanged for another; the contact has lost one likewise
	ReasonRelayed            // it was reached through a relay, and not directly
	reasonEnd
)

var reasonText = [...]string{
	ReasonNone:        "no reason given",
	ReasonFull:        "its peer list is full",
	ReasonNetwork:     "it belongs to another network",
	ReasonSelf:        "it is this node itself",
	ReasonCooldown:    "the two nodes parted a moment ago",
	ReasonEnough:      "enough peers were found meanwhile",
	ReasonClosed:      "the node was closed",
	ReasonDropped:     "the peer was closed",
	ReasonMoved:       "the link was handed over to another peer",
	ReasonUnknown:     "the other side does not know the link",
	ReasonSilent:      "nothing was heard of it",
	ReasonGone:        "the connection was lost",
	ReasonUnreachable: "it could not be reached",
	ReasonTimeout:     "the handshake was not completed in time",
	ReasonRestarted:   "it was restarted",
	ReasonOffTopic:    "it left the topic",
	ReasonProtocol:    "it is not a smokesignal node",
	ReasonSwapped:     "the link was exchanged for one to another peer",
	ReasonRelayed:     "it was only reached through a relay, no direct connection came about",
}

func (r Reason) String() string {
	if int(r) < len(reasonText) {
		return reasonText[r]
	}
	return fmt.Sprintf("reason %d", uint8(r))
}

// A Tag names a part of the network: the id of the node whose beacon is heard in
// all of it, and the sequence number of the record in the last one heard, which is
// its owner's clock in nanoseconds.
type Tag struct {
	ID  peer.ID
	Seq uint64
}

// A Message travels between two nodes; see the package doc for who sends what
// when.
type Message interface{ number() protowire.Number }

type (
	// Request asks for a link.
	Request struct {
		Session Session
		Network string
		Record  []byte // of the asker
		Degree  int    // links the asker has
		Urgent  bool   // asks for a place beyond max
		Manual  bool   // the user wants it: in spite of ReasonRecent
		Tag     Tag
		// Leaving, if it has a record, is the neighbour that the asker will leave for
		// this link: a full node may send one of its own there.
		Leaving Contact
	}
	// Accept answers a Request: the link may be set up.
	Accept struct {
		Session  Session
		Record   []byte
		Degree   int
		Exchange bool // Leaving is offered to a neighbour of the sender
		Contacts []Contact
	}
	// Reject answers a Request with the reason and other nodes to ask.
	Reject struct {
		Reason   Reason
		Network  string // of the refusing node, with ReasonNetwork
		Tag      Tag
		Contacts []Contact
	}
	// Ready says that the sender sees the receiver on the topic. Greeting is what
	// the layer above sends along: its sequence marks.
	Ready struct {
		Degree   int
		Greeting []byte
	}
	// Keepalive says that the sender lives. Stamp is the sender's clock; Echo is the
	// last Stamp it got from the receiver and Hold how long it has kept it, so
	// that both ends know the round trip without a message of its own.
	Keepalive struct {
		Degree int
		Stamp  time.Duration
		Echo   time.Duration
		Hold   time.Duration
	}
	// Leave ends a link.
	Leave struct {
		Reason   Reason
		Contacts []Contact
	}
	// Walk looks for nodes with room for Origin, at most TTL hops away.
	Walk struct {
		Origin Contact
		TTL    int
		Urgent bool // the end of the walk makes room
	}
	// Handover asks the receiver to link to To in place of the sender, or if there
	// is no To to leave the sender if it can spare the link.
	Handover struct{ To Contact }
	// Shuffle exchanges addresses with the node at the end of a walk of TTL hops, or
	// with a known node at once, which also tells whether that one lives. Path is
	// the way it came: the nodes that have passed it on, its origin first.
	Shuffle struct {
		Path     []peer.ID
		TTL      int
		Tag      Tag
		Origin   Contact
		Contacts []Contact
	}
	// ShuffleReply goes back the way the Shuffle came. Path are the nodes that have
	// yet to pass it on, the next one last; it is empty at the origin.
	ShuffleReply struct {
		Path     []peer.ID
		Tag      Tag
		Contacts []Contact
	}
	// Beacon is flooded by the node that gives its part of the network the tag:
	// its newest record.
	Beacon struct{ Owner Contact }
	// Lookup walks until it comes to a node that knows the record of Target, or to
	// Target itself.
	Lookup struct {
		Path   []peer.ID
		TTL    int
		Token  uint64 // of the origin
		Target peer.ID
		Origin Contact // whom Target calls if it cannot be dialled
	}
	// Found goes back the way the Lookup came, as a ShuffleReply does.
	Found struct {
		Path   []peer.ID
		Token  uint64
		Target Contact
	}
	// Signal is flooded over the links for the layer above; the state machine
	// never sees one.
	Signal struct{ Payload []byte }
)

// An Input is something that happened.
type Input interface{ input() }

type (
	// Tick says only that time has passed.
	Tick struct{}
	// Received is a message from a peer whose identity the connection proved.
	Received struct {
		From    Contact // the ID, and the addresses of its Record if it sent one
		Message Message
	}
	// Unreachable says that the peer could not be dialled or written to. Reason is
	// ReasonUnreachable, ReasonRelayed or ReasonProtocol.
	Unreachable struct {
		Peer   peer.ID
		Reason Reason
	}
	// Disconnected says that the last connection to the peer was lost.
	Disconnected struct{ Peer peer.ID }
	// OnTopic says that the peer announced the topic, or left it.
	OnTopic struct {
		Peer    peer.ID
		Present bool
	}
	// SeedFound, SeedFailed and SeedSelf answer an AskSeed: who is at the seed's
	// address, that nobody could be reached there, or that it is this node. Seeds
	// are numbered from zero.
	SeedFound struct {
		Seed    int
		Contact Contact
	}
	SeedFailed struct{ Seed int }
	SeedSelf   struct{ Seed int }
	// SeedLost says that the seed is not heard any more through the overlay, and
	// SeedHeard that it is again.
	SeedLost  struct{ Seed int }
	SeedHeard struct{ Seed int }
	// Learned is an address from elsewhere, such as mDNS.
	Learned struct{ Contact Contact }
	// Find asks for the address of a node of the network. One or more Located with
	// the Token follow, the last of them Done.
	Find struct {
		Target peer.ID
		Token  uint64
	}
	// EndFind ends a Find.
	EndFind struct{ Token uint64 }
	// RecordRenewed is the node's own signed peer record: when the addresses have changed,
	// and as the answer to Renew with a higher number than before.
	RecordRenewed struct {
		Record []byte
		Seq    uint64
	}
	// Woke says that this machine has slept: what was not heard meanwhile is not
	// held against others.
	Woke struct{}
	// Add asks for a link to one node, beyond min up to max. Exactly one Added with
	// the Token follows.
	Add struct {
		Contact Contact
		Token   uint64
	}
	// Drop ends the link to a peer on the user's wish.
	Drop struct{ Peer peer.ID }
	// Close ends all links. The state machine then stays silent.
	Close struct{}
)

func (Tick) input()          {}
func (Received) input()      {}
func (Unreachable) input()   {}
func (Disconnected) input()  {}
func (OnTopic) input()       {}
func (SeedFound) input()     {}
func (SeedFailed) input()    {}
func (SeedSelf) input()      {}
func (SeedLost) input()      {}
func (SeedHeard) input()     {}
func (Learned) input()       {}
func (Find) input()          {}
func (EndFind) input()       {}
func (RecordRenewed) input() {}
func (Woke) input()          {}
func (Add) input()           {}
func (Drop) input()          {}
func (Close) input()         {}

// An Output is something the driver has to do, in the order given.
type Output interface{ output() }

type (
	// Send sends a message, dialling first if need be.
	Send struct {
		To      Contact
		Message Message
	}
	// Pending says that a link to the peer is being set up: let it onto the topic,
	// hold back its direct events. Linked or Unlinked follows.
	Pending struct{ Peer peer.ID }
	// Probe asks for an OnTopic of the present state; pubsub can swallow a leave
	// that is followed by a join.
	Probe struct{ Peer peer.ID }
	// Linked says that the link stands on both sides. Greeting is the peer's.
	Linked struct {
		Peer     peer.ID
		Addrs    []ma.Multiaddr // where it says to be reached, that may be dialled
		Greeting []byte
	}
	// Unlinked ends what Pending or Linked began; Was tells whether it was Linked.
	Unlinked struct {
		Peer      peer.ID
		Reason    Reason
		WasLinked bool
	}
	// Refused says why a request of ours came to nothing.
	Refused struct {
		Peer    peer.ID
		Reason  Reason
		Network string
	}
	// AskSeed asks who is at that seed's address; see SeedNext for the next attempt.
	AskSeed struct{ Seed int }
	// RenewRecord asks for a Sealed with a new number.
	RenewRecord struct{}
	// DialBack asks to connect to a node that looks for this one; nothing is sent.
	DialBack struct{ To Contact }
	// Located is an answer to a Find, or with Done and no Contact its end. An
	// answer may be out of date, so others may follow.
	Located struct {
		Token   uint64
		Contact Contact
		Done    bool
	}
	// Added is the outcome of an Add; ReasonNone is success.
	Added struct {
		Token   uint64
		Peer    peer.ID
		Reason  Reason
		Network string
	}
)

func (Send) output()        {}
func (Pending) output()     {}
func (Probe) output()       {}
func (Linked) output()      {}
func (Unlinked) output()    {}
func (Refused) output()     {}
func (RenewRecord) output() {}
func (DialBack) output()    {}
func (AskSeed) output()     {}
func (Located) output()     {}
func (Added) output()       {}
