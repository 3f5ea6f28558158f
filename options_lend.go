package smokesignal

import (
	"context"
	"errors"
	"fmt"
	"slices"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/crypto"
	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/events"
	"github.com/go-smokesignal/smokesignal/host"
	"github.com/go-smokesignal/smokesignal/internal/addr"
	"github.com/go-smokesignal/smokesignal/internal/gate"
	"github.com/go-smokesignal/smokesignal/internal/guard"
	"github.com/go-smokesignal/smokesignal/internal/lent"
	"github.com/go-smokesignal/smokesignal/internal/limits"
	"github.com/go-smokesignal/smokesignal/internal/logging"
	"github.com/go-smokesignal/smokesignal/internal/wiring"
)

// WithHost puts the node on a libp2p host that the application has made and goes on using. The
// node has the id of the host, dials with it, and can be reached where it listens, if it does.
// The key of the host has to be in its peerstore and part of its id (Ed25519 or Secp256k1),
// because other nodes verify signatures with it. Close the node before the host.
//
// The node does not change or close anything of the application. It protects its peers from
// the connection manager under a tag of its own, and corrects in the peerstore which
// protocols its peers speak. Close removes its stream handlers, streams and tags, and those
// connections that it made and nobody else uses. Two nodes whose hosts the application
// connects find each other without seeds, before or after Start.
//
// It is an error at New if there is a node on the host already, or if an option that says how a
// node listens is given too: Listen, Subnet, Advertise, IdentityFile, or one about NATs.
// Without WithPubSub the node makes a pubsub of its own on the host, so there must not be
// another one. If the host limits its resources, use AddLimits.
func WithHost(h corehost.Host) Option {
	return func(c *config) {
		if h == nil {
			c.bad("WithHost(nil): give a libp2p host")
			return
		}
		c.lentHost = h
	}
}

// WithPubSub broadcasts over a pubsub of the application, floodsub or gossipsub, on the host
// given by WithHost. The node joins one topic on it, "smokesignal/" and the name of the network,
// which Close leaves. All promises about broadcasts hold with the defaults of pubsub; with
// PubSubOptions less has to be repaired.
//
// The pubsub has to sign messages as its host (StrictSign, the default) and to pass messages of
// 1 MiB (also the default); otherwise it is an error at New. End it after the node: if it ends
// before, Emit returns ErrPubSubEnded.
func WithPubSub(ps *pubsub.PubSub) Option {
	return func(c *config) {
		if ps == nil {
			c.bad("WithPubSub(nil): give a PubSub")
			return
		}
		c.lentPubSub = ps
	}
}

// WithTopic lends the node a topic that the application has already joined on the pubsub
// given by WithPubSub, because a topic can be joined only once per pubsub. The node does not
// close the topic, and the application may have subscriptions of its own to it. Several calls
// add up.
func WithTopic(t *pubsub.Topic) Option {
	return func(c *config) {
		if t == nil {
			c.bad("WithTopic(nil): give a Topic that was joined on the PubSub")
			return
		}
		if c.topics == nil {
			c.topics = map[string]*pubsub.Topic{}
		}
		c.topics[t.String()] = t
	}
}

// PubSubOptions returns options for a pubsub that the application makes and lends to a node by
// WithPubSub: messages are signed, and queues hold a burst but are limited in bytes. The
// options do not restrict the application's own topics. Options given after them override
// them. They can be used for one pubsub; call PubSubOptions again for another.
func PubSubOptions() []pubsub.Option {
	return guard.New(guard.Config{Shared: true}).Options()
}

// AddLimits adds what a node needs to the limits of the resource manager of an
// application's host:
//
//	limits := rcmgr.DefaultLimits
//	smokesignal.AddLimits(&limits)
//	manager, err := rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(limits.AutoScale()))
//	h, err := libp2p.New(libp2p.ResourceManager(manager))
//
// These limits concern the node's own protocols and service only. The limits of the whole
// system and of each peer have to be high enough as well: a node has four streams in each
// direction with each linked peer, and up to 24 for short times.
func AddLimits(l *rcmgr.ScalingLimitConfig) { limits.Add(l) }

// validateLent checks the host, the pubsub and the topics that the application lends.
func (c *config) validateLent() {
	if c.lentPubSub != nil && c.lentHost == nil {
		c.bad("WithPubSub: give the host of the PubSub, too, by WithHost")
	}
	if len(c.topics) > 0 && c.lentPubSub == nil {
		c.bad("WithTopic: give the PubSub of the Topic, too, by WithPubSub")
	}
	if c.lentHost == nil {
		return
	}
	for _, option := range []struct {
		name  string
		given bool
	}{
		{"Listen", len(c.listen) > 0},
		{"Subnet", c.subnet != nil},
		{"Advertise", len(c.advertise) > 0},
		{"IdentityFile", c.identity != nil},
		{"HolePunching", c.nat.HolePunching},
		{"Relays", len(c.nat.Relays) > 0},
		{"RelayService", c.nat.RelayService},
		{"PortMapping", c.nat.PortMapping},
	} {
		if option.given {
			c.bad("%s: the host given by WithHost is the application's; configure it there", option.name)
		}
	}
}

// An endpoint is the node's host, made for it or lent by the application.
type endpoint interface {
	corehost.Host // Close leaves a lent host open
	// Listen opens the listening addresses. It does nothing on a lent host.
	Listen() error
	// Dialable returns the addresses at which others can dial the host, each with its id.
	Dialable() []ma.Multiaddr
	// Relayed returns the peers that are connected through relays and not directly.
	Relayed() []peer.ID
	// Spare reports whether only the node uses the connection c, so that it may close it.
	Spare(c network.Conn) bool
}

// madeHost is a host that was made for the node.
type madeHost struct {
	corehost.Host
	made *host.Host
	node *wiring.HostParts
}

func (h madeHost) Listen() error { return h.made.Listen() }

func (h madeHost) Dialable() []ma.Multiaddr { return h.made.Dialable() }

func (h madeHost) Relayed() []peer.ID { return addr.RelayedPeers(h.Network()) }

func (madeHost) Spare(c network.Conn) bool { return !lent.UsedByOthers(c, nil) }

// openHost makes the node's host, or uses the host that the application lends, and returns
// the key of the host.
func (n *Node) openHost() (key crypto.PrivKey, err error) {
	if n.cfg.lentHost != nil {
		return n.borrowHost()
	}
	if n.cfg.identity != nil {
		if n.identity, err = host.OpenIdentity(*n.cfg.identity); err != nil {
			return nil, err
		}
		key = n.identity.Key
	}
	node := &wiring.HostParts{ListenUDP: n.cfg.listenUDP}
	made, err := host.New(host.Config{
		Key: key, Listen: n.cfg.listen, Subnet: n.cfg.within, Advertise: n.cfg.advertise,
		NAT: n.cfg.nat, Log: logging.Package("host", n.cfg.logger), Node: node,
	})
	if err != nil {
		return nil, err
	}
	n.face = made.Host()
	n.host = madeHost{n.face, made, node}
	// lent.Claim reserves the node's own host, which Node.Host returns. So New fails if the
	// application gives this host to another node by WithHost.
	n.unclaim, err = lent.Claim(n.face)
	return n.face.Peerstore().PrivKey(n.face.ID()), err
}

// borrowHost puts the node on the host that is lent, and returns the key of the host.
func (n *Node) borrowHost() (crypto.PrivKey, error) {
	h := n.cfg.lentHost
	var err error
	if n.unclaim, err = lent.Claim(h); err != nil {
		return nil, errors.New("WithHost: there is a node on the host already, and they would take each other's streams; use that one, close it first, or give each a host")
	}
	key := h.Peerstore().PrivKey(h.ID())
	if key == nil { // a host may keep its key elsewhere, but the node needs it for signing
		return nil, errors.New("WithHost: the private key of the host is not in its peerstore; put it there, since the node signs with it")
	}
	// Signatures of broadcasts are verified with the key in the sender's id. RSA keys are too
	// long to be part of an id.
	if _, err := h.ID().ExtractPublicKey(); err != nil {
		return nil, fmt.Errorf("WithHost: the host's key is of type %s, which is not a part of its id, so others could not tell who signed; give a host with an Ed25519 key", key.Type())
	}
	// Two pubsubs on one host would register the same protocols, and the later one gets all
	// streams.
	if ids := lent.PubSubProtocols(h); len(ids) > 0 && n.cfg.lentPubSub == nil {
		return nil, fmt.Errorf("WithHost: the host serves pubsub already (%s), and a second would take its streams; give that one by WithPubSub", ids[0])
	}
	var sharesTopic func(peer.ID) bool // nil: the pubsub is the node's
	if n.cfg.lentPubSub != nil {
		sharesTopic = n.sharesTopic
	}
	n.host, n.face = lent.Wrap(h, sharesTopic), h
	return key, nil
}

// openPubSub makes a pubsub for the node, or uses the pubsub that the application lends. The
// gate decides to which peers a pubsub of the node has streams.
func (n *Node) openPubSub() (err error) {
	if n.cfg.lentPubSub != nil {
		n.pubsub = n.cfg.lentPubSub
		return n.checkTopics()
	}
	n.gate = gate.New(n.host, gate.Config{
		Recheck: n.protocols.Recheck, Log: logging.Package("host", n.cfg.logger),
	})
	options := guard.New(guard.Config{
		Topic: n.topic, Log: logging.Dependency("pubsub", n.cfg.logger), Counters: &n.pubsubCounters,
	}).Options()
	n.pubsub, err = pubsub.NewFloodSub(n.ctx, n.gate.Host(), options...)
	return err
}

// checkTopics returns an error if a topic of WithTopic belongs to another pubsub than the
// lent one. To find out, it joins the topic on the lent pubsub. A topic can be joined only
// once, so if that succeeds, the application had not joined it there.
func (n *Node) checkTopics() error {
	for name := range n.cfg.topics {
		if t, err := n.pubsub.Join(name); err == nil {
			t.Close()
			return fmt.Errorf("WithTopic: the topic %q is not joined on the PubSub given by WithPubSub; give the Topic that its Join returned, and do not close it before the node", name)
		}
	}
	return nil
}

// explainPubSub adds advice to err, the error of a broadcast that could not be made on a lent
// pubsub: how to make a pubsub on which it can.
func (n *Node) explainPubSub(err error) error {
	if n.cfg.lentPubSub == nil {
		return err // the node's own pubsub: there is nothing that the application could change
	}
	switch {
	case errors.Is(err, events.ErrOtherHost):
		return fmt.Errorf("WithPubSub: %w; give its host by WithHost", err)
	case errors.Is(err, events.ErrUnsigned):
		return fmt.Errorf("WithPubSub: %w; make it with pubsub.WithMessageSignaturePolicy(pubsub.StrictSign)", err)
	case errors.Is(err, events.ErrOtherAuthor):
		return fmt.Errorf("WithPubSub: %w; make it without pubsub.WithMessageAuthor", err)
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("WithPubSub: %w: the PubSub has been ended; its context has to outlive the node", err)
	case errors.Is(err, events.ErrNotPublished):
		return fmt.Errorf("WithPubSub: %w; the PubSub's validators have to let the topic pass", err)
	}
	return fmt.Errorf("WithPubSub: %w; if the application has joined it, give it by WithTopic, and if there is a subscription filter, let it pass", err)
}

// sharesTopic reports whether p is on a topic of the application. If so, the application's
// pubsub needs the connection to p, and the node must not close it.
func (n *Node) sharesTopic(p peer.ID) bool {
	for _, topic := range n.pubsub.GetTopics() {
		// The node's own topic is the application's only if the application has joined it.
		if topic == n.topic && n.cfg.topics[topic] == nil {
			continue
		}
		if slices.Contains(n.pubsub.ListPeers(topic), p) {
			return true
		}
	}
	return false
}

// servesAnother returns an error if the application has made a pubsub on the lent host since
// New, although the node has a pubsub of its own there.
func (n *Node) servesAnother() error {
	if n.cfg.lentHost == nil || n.cfg.lentPubSub != nil {
		return nil // the host is not lent, or the node uses the application's pubsub, so there is only one
	}
	for _, id := range lent.PubSubProtocols(n.face) {
		// The node's pubsub is a floodsub; other protocols are those of another pubsub.
		if id != pubsub.FloodSubID {
			return fmt.Errorf("smokesignal: WithHost: the host serves another pubsub since New (%s), which takes the node's streams; make that first and give it by WithPubSub", id)
		}
	}
	return nil
}
