package overlay

import (
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

// A Contact says how to reach a node. Only Record, the node's signed peer record, travels
// between nodes; the state machine never looks into it. The driver that received the
// record sets Addrs, the addresses that this node may dial, and Seq, the sequence number
// in the record: of two records of one node, the higher number is the newer one.
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
	ReasonFull               // the node has no room for another link
	ReasonNetwork            // the nodes belong to networks of different names
	ReasonSelf               // the address belongs to the requester itself
	ReasonCooldown           // a link between the two ended less than thirty seconds ago
	ReasonEnough             // the requester has found enough links meanwhile
	ReasonClosed             // the node is closing
	ReasonDropped            // the user closed the peer
	ReasonMoved              // the link was handed over to another node
	ReasonUnknown            // a message for a link that does not exist here
	ReasonSilent             // nothing was heard for too long
	ReasonGone               // the last connection was lost
	ReasonUnreachable        // the node could not be dialed, or a message not be sent
	ReasonTimeout            // the handshake took too long
	ReasonRestarted          // the peer was restarted, or has lost its half of the link
	ReasonOffTopic           // the peer left the pubsub topic
	ReasonProtocol           // the node does not speak this protocol
	ReasonSwapped            // replaced by another link; the contact has lost a link as well
	ReasonRelayed            // the node was reached through a relay, but not directly
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

// A Tag names a part of the network: the id of the node whose beacon is heard in all of
// it, and the sequence number of the record in the newest beacon. That number is the
// node's clock in nanoseconds.
type Tag struct {
	ID  peer.ID
	Seq uint64
}

// A Message travels between two nodes. The package documentation says when each is sent.
type Message interface{ number() protowire.Number }

type (
	// Request asks for a link.
	Request struct {
		Session protocol.Session // differs after a restart
		Network string
		Record  []byte // the requester's
		Degree  int    // number of links of the requester
		Urgent  bool   // accept it even if there are Max links
		Manual  bool   // the user wants it: accept it even during the cooldown
		Tag     Tag
		// Leaving, if it has a record, is the neighbor that the requester will leave for
		// this link. A full node may send one of its own neighbors there.
		Leaving Contact
	}
	// Accept answers a Request: the link may be set up.
	Accept struct {
		Session  protocol.Session
		Record   []byte
		Degree   int
		Exchange bool // Leaving will get a neighbor of the sender
		Contacts []Contact
	}
	// Reject answers a Request with a reason and other nodes to ask.
	Reject struct {
		Reason   Reason
		Network  string // with ReasonNetwork, that of the sender
		Tag      Tag
		Contacts []Contact
	}
	// Ready says that the sender sees the receiver on the topic. Greeting belongs to the
	// layer above: its sequence marks.
	Ready struct {
		Degree   int
		Greeting []byte
	}
	// Keepalive says that the sender lives. Stamp is the sender's clock. Echo is the last
	// Stamp that it got from the receiver, and Hold how long ago that was. So both ends
	// can measure the round trip without another message.
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
	// Walk looks for a node that has room for Origin, at most TTL hops away.
	Walk struct {
		Origin Contact
		TTL    int
		Urgent bool // the node at the end of the walk makes room
	}
	// Handover asks the receiver to link to To in place of the sender. Without To, it
	// asks the receiver to leave the sender if the receiver can spare the link.
	Handover struct{ To Contact }
	// Shuffle exchanges addresses with the node at the end of a walk of TTL hops. With a
	// TTL of zero it is a check: the node that receives it shows that it lives. Path has
	// the nodes that passed it on, its origin first.
	Shuffle struct {
		Path     []peer.ID
		TTL      int
		Tag      Tag
		Origin   Contact
		Contacts []Contact
	}
	// ShuffleReply goes back the way the Shuffle came. Path has the nodes that have yet
	// to pass it on, the next one last. It is empty at the origin.
	ShuffleReply struct {
		Path     []peer.ID
		Tag      Tag
		Contacts []Contact
	}
	// Beacon is the newest record of the node that owns the tag of its part of the
	// network. It is flooded.
	Beacon struct{ Owner Contact }
	// Lookup walks until it reaches Target, or a node that knows the record of Target.
	Lookup struct {
		Path   []peer.ID
		TTL    int
		Token  uint64 // chosen by the origin
		Target peer.ID
		Origin Contact // for Target to dial, in case it cannot be dialed itself
	}
	// Found goes back the way the Lookup came, like a ShuffleReply.
	Found struct {
		Path   []peer.ID
		Token  uint64
		Target Contact
	}
	// Signal is flooded over the links for the layer above. The state machine never sees
	// one.
	Signal struct{ Payload []byte }
)

// An Input is something that happened.
type Input interface{ input() }

type (
	// Tick says only that time has passed.
	Tick struct{}
	// Received is a message from a peer whose identity the connection has proved.
	Received struct {
		From    Contact // its ID, and the addresses in its Record if it sent one
		Message Message
	}
	// Unreachable says that the peer could not be dialed or written to. Reason is
	// ReasonUnreachable, ReasonRelayed or ReasonProtocol.
	Unreachable struct {
		Peer   peer.ID
		Reason Reason
	}
	// Disconnected says that the last connection to the peer was lost.
	Disconnected struct{ Peer peer.ID }
	// OnTopic says that the peer joined or left the topic.
	OnTopic struct {
		Peer    peer.ID
		Present bool
	}
	// SeedFound, SeedFailed and SeedSelf answer an AskSeed: a node was found at the
	// seed's address, nobody was reached there, or it is this node. Seeds are numbered
	// from zero.
	SeedFound struct {
		Seed    int
		Contact Contact
	}
	SeedFailed struct{ Seed int }
	SeedSelf   struct{ Seed int }
	// SeedLost says that the seed can no longer be heard through the overlay, and
	// SeedHeard that it can be again.
	SeedLost  struct{ Seed int }
	SeedHeard struct{ Seed int }
	// Learned is an address from elsewhere, such as mDNS.
	Learned struct{ Contact Contact }
	// Find asks for the address of a node of the network. One or more Located with the
	// Token follow; the last of them is Done.
	Find struct {
		Target peer.ID
		Token  uint64
	}
	// EndFind ends a Find.
	EndFind struct{ Token uint64 }
	// RecordRenewed is this node's own signed peer record. The driver sends it when the
	// addresses have changed, and as the answer to RenewRecord. Each has a higher number
	// than the one before.
	RecordRenewed struct {
		Record []byte
		Seq    uint64
	}
	// Woke says that this machine was asleep. The silence of others in that time is no
	// sign of their death.
	Woke struct{}
	// Add asks for a link to one node, even if there are Min links, but not beyond Max.
	// Exactly one Added with the Token follows.
	Add struct {
		Contact Contact
		Token   uint64
	}
	// Drop ends the link to a peer on the user's wish.
	Drop struct{ Peer peer.ID }
	// Close ends all links. After it the state machine does nothing.
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

// An Output is something that the driver has to do. Outputs are done in their order.
type Output interface{ output() }

type (
	// Send sends a message. The driver dials first if there is no connection.
	Send struct {
		To      Contact
		Message Message
	}
	// Pending says that a link to the peer is being set up: the driver lets the peer onto
	// the topic and holds back its direct events. Linked or Unlinked follows.
	Pending struct{ Peer peer.ID }
	// Probe asks for an OnTopic with the present state, as pubsub can miss a join that
	// follows a leave.
	Probe struct{ Peer peer.ID }
	// Linked says that the link stands on both sides. Greeting is the peer's.
	Linked struct {
		Peer     peer.ID
		Addrs    []ma.Multiaddr // its addresses that this node may dial
		Greeting []byte
	}
	// Unlinked ends a link after Pending or Linked. WasLinked reports whether there was a
	// Linked.
	Unlinked struct {
		Peer      peer.ID
		Reason    Reason
		WasLinked bool
	}
	// Refused says why a request of this node failed.
	Refused struct {
		Peer    peer.ID
		Reason  Reason
		Network string
	}
	// AskSeed asks which node is at that seed's address. SeedNext returns the time of the
	// next attempt.
	AskSeed struct{ Seed int }
	// RenewRecord asks for a RecordRenewed with a new number.
	RenewRecord struct{}
	// DialBack asks for a connection to a node that looks for this one. Nothing is sent.
	DialBack struct{ To Contact }
	// Located is an answer to a Find. An answer may be out of date, so others may follow.
	// Done says that none will; the last one may have no Contact.
	Located struct {
		Token   uint64
		Contact Contact
		Done    bool
	}
	// Added is the outcome of an Add. ReasonNone is success.
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
