package smokesignal

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"
	"unicode/utf8"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	corediscovery "github.com/libp2p/go-libp2p/core/discovery"
	corehost "github.com/libp2p/go-libp2p/core/host"

	"github.com/go-smokesignal/smokesignal/discovery"
	"github.com/go-smokesignal/smokesignal/events"
	"github.com/go-smokesignal/smokesignal/health"
	"github.com/go-smokesignal/smokesignal/host"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
	"github.com/go-smokesignal/smokesignal/internal/testhook"
)

// Unlimited, given as the max of PeerLimits, means that there is none. No other option
// takes it.
const Unlimited = -1

// Defaults of the options, where they are not zero.
const (
	DefaultNetwork      = discovery.DefaultNetwork // "default"
	DefaultMinPeers     = 3                        // the original's minPeerNo
	DefaultMaxPeers     = 5                        // the original's maxPeerNo
	DefaultPingInterval = 10 * time.Second
	DefaultPingTimeout  = 3 * time.Second // the original's pingTimeout
	DefaultMaxEventSize = 512 << 10
	DefaultCloseTimeout = 5 * time.Second
	DefaultKeepFor      = events.DefaultStoreAge
	DefaultKeepBytes    = events.DefaultStoreBytes
)

// maxMaxEventSize keeps an event with its envelope within the 768 KiB of a batch,
// which is within what pubsub peers of any kind accept.
const maxMaxEventSize = 767 << 10

// An Option sets one property of a node at New. Options cannot fail; New checks
// them and names the one that is wrong.
type Option func(*config)

type config struct {
	listen       []string
	seeds        []string
	minPeers     int
	maxPeers     int
	pingInterval time.Duration
	pingTimeout  time.Duration
	network      string
	networkSet   bool
	lan          bool
	subnetText   *string // as given
	subnet       netip.Prefix
	advertise    []string
	identity     string
	identitySet  bool
	book         string
	bookSet      bool
	rendezvous   []func(corehost.Host) (corediscovery.Discovery, error)
	maxEvent     int
	codec        events.Codec
	closeTimeout time.Duration
	storeAge     time.Duration
	storeBytes   int
	last         int
	logger       slog.Handler
	nat          host.NAT
	hostSet      bool // WithHost was given
	lentHost     corehost.Host
	lentPubSub   *pubsub.PubSub
	pubsubSet    bool                     // WithPubSub was given
	topics       map[string]*pubsub.Topic // by WithTopic
	noTopic      bool                     // WithTopic(nil)
	// listenUDP is for tests, see package testhook.
	listenUDP testhook.Listener
}

func defaultConfig() config {
	return config{
		minPeers:     DefaultMinPeers,
		maxPeers:     DefaultMaxPeers,
		pingInterval: DefaultPingInterval,
		pingTimeout:  DefaultPingTimeout,
		network:      DefaultNetwork,
		maxEvent:     DefaultMaxEventSize,
		closeTimeout: DefaultCloseTimeout,
		storeAge:     DefaultKeepFor,
		storeBytes:   DefaultKeepBytes,
	}
}

// Listen sets the addresses to listen on, as host:port (TCP and QUIC on the same
// number) or as a multiaddr, which may also name WebSocket, WebTransport or
// WebRTC-direct. An empty host means all interfaces, port 0 a free port. Only
// what is named is bound. The default is a free port on all interfaces. Several
// calls add up.
func Listen(addrs ...string) Option {
	return func(c *config) { c.listen = append(c.listen, addrs...) }
}

// Seeds names nodes through which to join. A seed is one of
//
//   - host:port, with a DNS name or an IP address: TCP and QUIC are tried;
//   - a multiaddr, with or without /p2p/ID;
//   - /dnsaddr/example.org, also with /p2p/ID, which stands for the multiaddrs
//     in the DNS records of _dnsaddr.example.org (TXT, "dnsaddr=/ip4/..."): the
//     seeds can then change without the programs;
//   - a ticket that another node's Ticket returned.
//
// Names are looked up at each try, all addresses of a seed are tried at once, and
// one that answers is enough. A seed given with an id, as a ticket always is, is
// refused when another node answers there. With a ticket the node joins the
// ticket's network; if Network says another, or tickets are of different networks,
// that is an error at New. Several calls add up; without any seed the node waits to
// be joined, or looks on the local network with LAN.
func Seeds(addrs ...string) Option {
	return func(c *config) { c.seeds = append(c.seeds, addrs...) }
}

// PeerLimits sets how many peers the node wants at least and takes at most
// (default 3 and 5). Below min it looks for others. Zero min means that it looks
// for nobody but its seeds, zero max that it takes none, Unlimited max that it takes
// all. For a moment there may be two more than a max above zero, since a node that is
// alone is never turned away. A negative min, another negative max, and a min above max
// are errors at New.
func PeerLimits(min, max int) Option {
	return func(c *config) { c.minPeers, c.maxPeers = min, max }
}

// PingInterval sets how long a seed may go unheard before it is pinged through
// the overlay (default ten seconds). A netsplit is reported after two intervals
// and the PingTimeout. Zero turns the watchdog off; a negative interval, or one of more
// than 24 hours, is an error at New.
func PingInterval(d time.Duration) Option {
	return func(c *config) { c.pingInterval = d }
}

// PingTimeout sets how long an answer may take beyond two PingIntervals (default
// three seconds). Zero adds nothing to the intervals; a negative timeout, or one of more
// than 24 hours, is an error at New.
func PingTimeout(d time.Duration) Option {
	return func(c *config) { c.pingTimeout = d }
}

// Network sets the name of the network (default "default", or that of the tickets
// among the Seeds), 1 to 128 bytes of UTF-8; another one is an error at New. Nodes of
// different networks do not link to each other. The name is no secret and keeps nobody
// out who knows it.
func Network(name string) Option {
	return func(c *config) { c.network, c.networkSet = name, true }
}

// LAN looks for nodes of the same network on the local network by multicast DNS,
// and lets itself be found. It is off by default. On a node that listens on loopback
// only, or a machine without multicast, it does nothing but log a warning.
func LAN() Option {
	return func(c *config) { c.lan = true }
}

// Subnet binds and advertises only this machine's addresses in the subnet, as
// "192.168.2.0/24" or "192.168.2.1/255.255.255.0". It narrows Listen addresses without
// a host. A Listen address outside of the subnet, and a subnet in which this machine has
// no address, are errors at New; a name that leads outside is one of Start.
func Subnet(subnet string) Option {
	return func(c *config) { c.subnetText = &subnet }
}

// Advertise sets the addresses others are told, as host:port or multiaddr, in
// place of those the node listens on. It is meant for a node behind a port
// forwarding. Several calls add up.
func Advertise(addrs ...string) Option {
	return func(c *config) { c.advertise = append(c.advertise, addrs...) }
}

// IdentityFile keeps the node's key in the file, so that it has the same ID each
// time. The file is made if it does not exist, in a directory that does, readable by its
// owner alone, and locked while the node lives: of another node of this machine it is
// host.ErrIdentityInUse at New. A damaged file, or one that others may read, is an error,
// never replaced. By default each node has a new identity.
func IdentityFile(path string) Option {
	return func(c *config) { c.identity, c.identitySet = path, true }
}

// PeerBook keeps in the file where the nodes of the network are, so that a node
// which is started again finds the network though all seeds are gone: its peers,
// the other nodes it knows, and those it knew before, 256 at most. A node that was
// not found again for seven days is left out. The file is made if it does not
// exist, in a directory that does, readable by its owner alone; it is written when the peers change, at most
// every thirty seconds, and at Close, each time as a whole in one step. Nodes of
// one network may share a file, then each keeps what the others wrote. Lines that
// are damaged are left out, with a warning in the log; a file that is no peer book,
// or that of another network, is an error at New, and never written to.
func PeerBook(path string) Option {
	return func(c *config) { c.book, c.bookSet = path, true }
}

// WithDiscovery looks for nodes of the same network, and advertises this one, where
// the application says that they meet: in any Discovery of libp2p, such as a DHT.
// New calls open once, with the node's host, which does not listen yet; from Start
// to Close the node uses what open returned, under the namespace
// "smokesignal/" and the name of the network. While it has no peers it looks after
// 1, 2, 4, 8, 8 ... seconds, with fewer than it wants after 30 seconds, with enough
// of them after 5 minutes; it advertises again before the time to live ends. What is
// found there is dialled with the same caution as what strangers tell: few times,
// and in the local network only by a node that is not reached from farther away.
// What open has made is the application's to close, after the node. Several calls
// add up. See examples/rendezvous.
func WithDiscovery(open func(h corehost.Host) (corediscovery.Discovery, error)) Option {
	return func(c *config) { c.rendezvous = append(c.rendezvous, open) }
}

// MaxEventSize sets the largest event, name and arguments encoded, in bytes
// (default 512 KiB, at most 767 KiB). Larger ones are refused with ErrTooLarge
// before anything is sent. All nodes of a network should agree on it. Less than one byte,
// or more than 767 KiB, is an error at New.
func MaxEventSize(n int) Option {
	return func(c *config) { c.maxEvent = n }
}

// KeepFor sets how long broadcasts are kept for neighbours that have missed them
// (default one minute). What was sent during a longer cut is lost to those behind
// it, and reported to them as a gap. Zero keeps them until the handlers here have
// returned; a negative time is an error at New.
func KeepFor(d time.Duration) Option {
	return func(c *config) { c.storeAge = d }
}

// KeepBytes bounds the broadcasts that are kept, for neighbours and for handlers
// that are slow (default 16 MiB). Beyond it the oldest of the sender of whom most is
// kept go. Less than 1 MiB, which is room for an event of any size, is an error at New.
func KeepBytes(n int) Option {
	return func(c *config) { c.storeBytes = n }
}

// Last makes a node that joins begin with the last n broadcasts of each sender, as
// far as its neighbours keep them, and those that went out together with the first
// of these. The default is zero: it begins with what is sent from now on. A negative
// number is an error at New.
func Last(n int) Option {
	return func(c *config) { c.last = n }
}

// The codecs that Codec takes. Package events describes them.
const (
	JSON = events.JSON
	CBOR = events.CBOR
)

// Codec sets how the arguments of this node's events are encoded that are
// neither a []byte, which goes as it is, nor a proto.Message, which goes as
// protobuf (default JSON). Each argument says how it was encoded, so a node
// reads what the others send whatever their codec.
func Codec(c events.Codec) Option {
	return func(cfg *config) { cfg.codec = c }
}

// CloseTimeout bounds each of the three waits of Close: for neighbours to acknowledge
// what was sent, for the callbacks of the disconnect, and for handlers to return (default
// five seconds). Zero means not to wait; a negative timeout is an error at New.
func CloseTimeout(d time.Duration) Option {
	return func(c *config) { c.closeTimeout = d }
}

// Logger sends the log of this node to h. Without it, or with nil, it goes to go-log,
// which shows nothing of it, not even that a handler panicked, until GOLOG_LOG_LEVEL or
// the application says so.
func Logger(h slog.Handler) Option {
	return func(c *config) { c.logger = h }
}

func init() {
	testhook.ListenUDP = func(listen testhook.Listener) any {
		return Option(func(c *config) { c.listenUDP = listen })
	}
}

// validate returns one sentence for each option that is wrong.
func (c *config) validate() ([]*discovery.Seed, error) {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("smokesignal: "+format, args...))
	}
	var seeds []*discovery.Seed
	for _, text := range c.seeds {
		seed, err := discovery.ParseSeed(text)
		if err != nil {
			bad("Seeds: %w", err)
			continue
		}
		if seed.Relayed() && !c.nat.Punches() && !c.hostSet { // a lent host may punch holes
			bad("Seeds: seed %q: %w", text, errNoHolePunching)
		}
		seeds = append(seeds, seed)
	}
	if err := c.joinTickets(seeds); err != nil {
		bad("Seeds: %w", err)
	}
	switch {
	case c.minPeers < 0:
		bad("PeerLimits(%d, %d): min must not be negative", c.minPeers, c.maxPeers)
	case c.maxPeers < Unlimited:
		bad("PeerLimits(%d, %d): max must not be negative, except for Unlimited", c.minPeers, c.maxPeers)
	case c.maxPeers != Unlimited && c.minPeers > c.maxPeers:
		bad("PeerLimits(%d, %d): min is greater than max", c.minPeers, c.maxPeers)
	}
	switch {
	case c.pingInterval < 0:
		bad("PingInterval(%v): must not be negative; zero turns the watchdog off", c.pingInterval)
	case c.pingInterval > health.MaxInterval:
		bad("PingInterval(%v): must not be more than %v; zero turns the watchdog off", c.pingInterval, health.MaxInterval)
	}
	switch {
	case c.pingTimeout < 0:
		bad("PingTimeout(%v): must not be negative", c.pingTimeout)
	case c.pingTimeout > health.MaxInterval:
		bad("PingTimeout(%v): must not be more than %v", c.pingTimeout, health.MaxInterval)
	}
	switch {
	case c.network == "":
		bad("Network(%q): the name must not be empty", c.network)
	case len(c.network) > protocol.MaxNetwork:
		bad("Network: the name has %d bytes, at most %d are allowed", len(c.network), protocol.MaxNetwork)
	case !utf8.ValidString(c.network):
		bad("Network(%q): the name is not valid UTF-8", c.network)
	}
	if c.subnetText != nil {
		prefix, err := host.ParseSubnet(*c.subnetText)
		if err != nil {
			bad("Subnet(%q): %w", *c.subnetText, err)
		}
		c.subnet = prefix
	}
	if c.identitySet && c.identity == "" {
		bad(`IdentityFile(""): give the path of a file`)
	}
	if c.bookSet && c.book == "" {
		bad(`PeerBook(""): give the path of a file`)
	}
	if slices.ContainsFunc(c.rendezvous, func(open func(corehost.Host) (corediscovery.Discovery, error)) bool { return open == nil }) {
		bad("WithDiscovery(nil): give a function that returns a Discovery")
	}
	if c.maxEvent < 1 || c.maxEvent > maxMaxEventSize {
		bad("MaxEventSize(%d): must be between 1 and %d bytes", c.maxEvent, maxMaxEventSize)
	}
	if !c.codec.Valid() {
		bad("Codec(%d): there is no such codec; take JSON or CBOR", uint8(c.codec))
	}
	if c.closeTimeout < 0 {
		bad("CloseTimeout(%v): must not be negative; zero means not to wait", c.closeTimeout)
	}
	if c.storeAge < 0 {
		bad("KeepFor(%v): must not be negative", c.storeAge)
	}
	if c.storeBytes < minKeepBytes {
		bad("KeepBytes(%d): must be at least %d bytes, since handlers read from there", c.storeBytes, minKeepBytes)
	}
	if c.last < 0 {
		bad("Last(%d): must not be negative", c.last)
	}
	c.validateLent(bad)
	return seeds, errors.Join(errs...)
}

// minKeepBytes is room for an event of any size.
const minKeepBytes = 1 << 20
