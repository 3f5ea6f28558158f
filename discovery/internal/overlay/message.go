package overlay

import (
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

// A Contact says how to reach a node. Only Record travels between nodes. The driver fills
// in the other fields from the record; the state machine itself never decodes a record.
type Contact struct {
	ID     peer.ID
	Record []byte         // the node's signed peer record
	Seq    uint64         // the sequence number in Record; a newer record of the same node has a higher one
	Addrs  []ma.Multiaddr // the addresses in Record that this node may dial
}

// A Reason says why a link was refused or ended.
type Reason uint8

const (
	ReasonNone        Reason = iota
	ReasonFull               // the node has no room for another link: it has Max links
	ReasonNetwork            // the nodes belong to networks of different names
	ReasonSelf               // the address belongs to the requester itself
	ReasonCooldown           // a link between the two nodes ended less than thirty seconds ago
	ReasonEnough             // the sender had found enough other links before the handshake of this link ended
	ReasonClosed             // the node is closing
	ReasonDropped            // the user closed the peer
	ReasonMoved              // the sender has replaced this link by a link to another node
	ReasonUnknown            // a node got a message for a link of which it does not know
	ReasonSilent             // the neighbor sent nothing for too long
	ReasonGone               // the last connection to the peer was lost
	ReasonUnreachable        // the peer could not be dialed, or a message could not be sent to it
	ReasonTimeout            // the handshake took too long
	ReasonRestarted          // the peer was restarted, or no longer knows of the link
	ReasonOffTopic           // the peer left the pubsub topic
	ReasonProtocol           // the peer does not speak this protocol
	// The sender ended the link in a swap. Contacts in its message names another node that lost
	// a link in that swap.
	ReasonSwapped
	ReasonRelayed // the peer was reached through a relay, but not directly
	reasonEnd     // the number of reasons
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
	ReasonSilent:      "it was silent for too long",
	ReasonGone:        "the connection was lost",
	ReasonUnreachable: "it could not be reached",
	ReasonTimeout:     "the handshake was not completed in time",
	ReasonRestarted:   "it was restarted",
	ReasonOffTopic:    "it left the topic",
	ReasonProtocol:    "it is not a smokesignal node",
	ReasonSwapped:     "the link was exchanged for one to another peer",
	ReasonRelayed:     "it was reached through a relay only, and no direct connection could be made",
}

func (r Reason) String() string {
	if int(r) < len(reasonText) {
		return reasonText[r]
	}
	return fmt.Sprintf("reason %d", uint8(r))
}

// A Tag names a part of a split network. A part is a set of nodes that links connect. In each
// part one node, the owner of the tag, floods beacons to all others.
type Tag struct {
	ID peer.ID // the owner
	// Seq is the sequence number of the newest beacon of the node ID: that node's clock in
	// nanoseconds.
	Seq uint64
}

// A Message travels from one node to another. The package documentation says when each
// kind is sent.
type Message interface{ number() protowire.Number }

type (
	// Request asks for a link.
	Request struct {
		Session protocol.Session // differs after a restart
		Network string
		Record  []byte // the requester's signed peer record
		Degree  int    // the number of links of the requester
		Urgent  bool   // asks the receiver to accept the link even if the receiver has Max links
		// Manual says that a user asked for this link. Then it does not matter that one of the
		// two nodes ended their last link by decision a moment ago.
		Manual bool
		Tag    Tag // the requester's part of the network
		// Leaving, if it has a record, is the neighbor that the requester will leave in
		// exchange for this link. A full receiver may send one of its own neighbors to that
		// neighbor.
		Leaving Contact
	}
	// Accept answers a Request for a link: the sender agrees to the link.
	Accept struct {
		Session protocol.Session
		Record  []byte // the sender's signed peer record
		Degree  int    // the number of links of the sender
		// Exchange says that the sender will send one of its neighbors to the node in the field
		// Leaving of the Request.
		Exchange bool
		Contacts []Contact // other nodes that the receiver may link to
	}
	// Reject answers a Request for a link: the sender refuses the link.
	Reject struct {
		Reason   Reason
		Network  string    // the sender's network, if Reason is ReasonNetwork
		Tag      Tag       // the sender's part of the network
		Contacts []Contact // other nodes that the receiver may ask
	}
	// Ready means that the sender sees the receiver on the pubsub topic. A link is
	// complete when both nodes have sent and received it.
	Ready struct {
		Degree int // the number of links of the sender
		// Greeting has bytes that this package does not read; package events puts its high-water
		// marks into them.
		Greeting []byte
	}
	// Keepalive shows that the sender is alive. From the durations in it, both nodes of a link
	// measure the round trip time without another message.
	Keepalive struct {
		Degree int           // the number of links of the sender
		Stamp  time.Duration // the sender's clock, since its start
		Echo   time.Duration // the Stamp in the last Keepalive that the sender got from the receiver
		// Hold is the time that has passed since the sender got the last Keepalive of the
		// receiver.
		Hold time.Duration
	}
	// Leave ends a link.
	Leave struct {
		Reason   Reason
		Contacts []Contact // other nodes that the receiver may link to
	}
	// Walk travels from node to node over random links, at most TTL hops, until it meets a node
	// that has room for a link. That node sends a Request for a link to the node Origin, which
	// began the walk.
	Walk struct {
		Origin Contact
		TTL    int
		// Urgent means that, if no node on the way has room, the last one asks Origin for a
		// link even if it has Max links.
		Urgent bool
	}
	// Handover asks the receiver to link to the node To, and then to leave the sender.
	// If To is empty, it asks the receiver to leave the sender at once, unless the
	// receiver would then have fewer than Min links.
	Handover struct{ To Contact }
	// Shuffle exchanges contacts with the node at the end of a random walk of at most TTL hops.
	// With a TTL of zero it checks whether the receiver is alive: the receiver answers at once.
	Shuffle struct {
		// Path has the nodes that the message has passed; the first one is the node that began
		// it.
		Path     []peer.ID
		TTL      int
		Tag      Tag       // the origin's part of the network
		Origin   Contact   // the node that began the shuffle
		Contacts []Contact // nodes that the origin knows
	}
	// ShuffleReply answers a Shuffle, an exchange of contacts. It returns over the nodes that
	// the Shuffle has passed.
	ShuffleReply struct {
		// Path has the nodes that the reply has yet to reach; the next one is the last in the
		// list.
		Path     []peer.ID
		Tag      Tag       // the part of the network in which the node that answers is
		Contacts []Contact // nodes that the answering node knows
	}
	// Beacon says which node owns the tag, the name of the sender's part of the network. The
	// owner floods a Beacon over all links of its part every ten seconds.
	Beacon struct{ Owner Contact }
	// Lookup searches for the address of the node Target. It is passed on over random links
	// until it reaches Target, or a node that knows the signed record of Target.
	Lookup struct {
		// Path has the nodes that the message has passed; the first one is the node that began
		// it.
		Path []peer.ID
		TTL  int
		// Token is a number chosen by the node that searches for Target, which the answer Found
		// repeats.
		Token  uint64
		Target peer.ID
		Origin Contact // the node that searches; Target dials it, in case it cannot dial Target
	}
	// Found answers a Lookup, the search for the address of a node. It returns over the nodes
	// that the Lookup has passed.
	Found struct {
		// Path has the nodes that the answer has yet to reach; the next one is the last in the
		// list.
		Path   []peer.ID
		Token  uint64 // the number in the Lookup that this message answers
		Target Contact
	}
	// Signal carries bytes that the packages above this one exchange. The driver floods it over
	// the links; the state machine never receives one.
	Signal struct{ Payload []byte }
)

// An Input is something that happened.
type Input interface{ input() }

type (
	// Tick means only that time has passed.
	Tick struct{}
	// Received is a message from a peer whose identity the connection has proved.
	Received struct {
		From    Contact // the sender; only ID is set, unless the message carries the sender's record
		Message Message
	}
	// Unreachable means that a peer could not be dialed, or that a message could not be sent to
	// it. Reason is ReasonUnreachable, ReasonRelayed or ReasonProtocol.
	Unreachable struct {
		Peer   peer.ID
		Reason Reason
	}
	// Disconnected means that the last connection to a peer was lost.
	Disconnected struct{ Peer peer.ID }
	// OnTopic means that a peer has joined or left the pubsub topic.
	OnTopic struct {
		Peer    peer.ID
		Present bool // true if it joined
	}
	// SeedFound, SeedFailed and SeedSelf answer an AskSeed: another node was found at the
	// seed's address, no node was reached there, or this node itself was. Seed is the
	// index of the seed.
	SeedFound struct {
		Seed    int
		Contact Contact
	}
	SeedFailed struct{ Seed int }
	SeedSelf   struct{ Seed int }
	// SeedLost means that the watchdog no longer hears the seed through the overlay, and
	// SeedHeard that it hears the seed again.
	SeedLost  struct{ Seed int }
	SeedHeard struct{ Seed int }
	// Learned brings the contact of a node that was found outside the overlay, for example by
	// mDNS.
	Learned struct{ Contact Contact }
	// Find asks the state machine to search for the address of a member. One or more outputs
	// Located with the same Token answer it; the last one has Done set.
	Find struct {
		Target peer.ID
		Token  uint64
	}
	// EndFind stops the search for the address of a node that a Find with the same Token began.
	EndFind struct{ Token uint64 }
	// RecordRenewed brings this node's own newly signed peer record. The driver sends it when
	// this node's addresses have changed, and as the answer to RenewRecord. Each new record has
	// a higher sequence number Seq.
	RecordRenewed struct {
		Record []byte
		Seq    uint64
	}
	// Woke means that this machine was asleep, so that the silence of other nodes does
	// not mean that they are dead.
	Woke struct{}
	// Add asks for a link to one node that the user named. It works even if this node has Min
	// links, but not if it has Max. Exactly one output Added with the same Token tells the
	// outcome.
	Add struct {
		Contact Contact
		Token   uint64
	}
	// Drop ends the link to a peer because the user asked for that.
	Drop struct{ Peer peer.ID }
	// Close ends all links of the node. After that, the state machine only answers each Add
	// with an error.
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

// An Output is something that the driver has to do. The driver performs the outputs in the
// order in which Step returns them.
type Output interface{ output() }

type (
	// Send asks the driver to send a message to a peer. If there is no connection to the peer,
	// the driver dials it first.
	Send struct {
		To      Contact
		Message Message
	}
	// Pending means that a link to the peer is being set up. The driver lets the peer onto the
	// pubsub topic and holds back direct events from it, until Linked or Unlinked for the same
	// peer follows.
	Pending struct{ Peer peer.ID }
	// Probe asks the driver whether the peer is on the pubsub topic now. The driver answers
	// with OnTopic. The question is needed since pubsub can miss a peer that joins right after
	// it left.
	Probe struct{ Peer peer.ID }
	// Linked means that the link to a peer is complete at both nodes.
	Linked struct {
		Peer     peer.ID
		Addrs    []ma.Multiaddr // the addresses of the peer that this node may dial
		Greeting []byte         // the bytes in the field Greeting of the peer's Ready
	}
	// Unlinked means that the link to a peer has ended: one that was complete, or one for which
	// only Pending came before.
	Unlinked struct {
		Peer      peer.ID
		Reason    Reason
		WasLinked bool // there was a Linked
	}
	// Refused means that a peer has refused this node's request for a link, or could not be
	// reached.
	Refused struct {
		Peer    peer.ID
		Reason  Reason
		Network string // the peer's network, if Reason is ReasonNetwork
	}
	// AskSeed asks the driver which node is at the address of a seed. Seed is the index of the
	// seed. One SeedFound, SeedFailed or SeedSelf answers.
	AskSeed struct{ Seed int }
	// RenewRecord asks the driver to sign a new peer record of this node, with a higher
	// sequence number. The driver answers with RecordRenewed.
	RenewRecord struct{}
	// DialBack asks the driver to dial a node that searches for this node's address. No message
	// is sent over the connection.
	DialBack struct{ To Contact }
	// Located answers a Find with an address of the node that it asked for. The address may be
	// out of date, so further answers may follow.
	Located struct {
		Token   uint64
		Contact Contact // empty in the last answer if nothing more was found
		Done    bool    // this is the last answer
	}
	// Added is the outcome of an Add.
	Added struct {
		Token   uint64
		Peer    peer.ID
		Reason  Reason // ReasonNone means that the link exists
		Network string // the peer's network, if Reason is ReasonNetwork
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
