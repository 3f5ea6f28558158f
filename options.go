package smokesignal

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"
	"unicode/utf8"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	corediscovery "github.com/libp2p/go-libp2p/core/discovery"
	corehost "github.com/libp2p/go-libp2p/core/host"

	"github.com/go-smokesignal/smokesignal/host"
	"github.com/go-smokesignal/smokesignal/internal/addr"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
	"github.com/go-smokesignal/smokesignal/internal/seed"
	"github.com/go-smokesignal/smokesignal/internal/testhook"
)

// Unlimited, as the max of PeerLimits, means that there is no maximum. Only PeerLimits
// accepts it.
const Unlimited = -1

// DefaultMaxEventSize is the largest event in bytes, unless MaxEventSize sets another.
const DefaultMaxEventSize = 512 << 10

// These are the defaults that users find in the documentation of the options.
const (
	defaultNetwork      = protocol.DefaultNetwork // "default"
	defaultMinPeers     = 3                       // the original's minPeerNo
	defaultMaxPeers     = 5                       // the original's maxPeerNo
	defaultPingInterval = 10 * time.Second
	defaultPingTimeout  = 3 * time.Second // the original's pingTimeout
	defaultCloseTimeout = 5 * time.Second
)

// maxMaxEventSize is the highest limit that MaxEventSize accepts. An event and its envelope
// have to fit into a batch of 768 KiB, the size that every kind of pubsub peer accepts.
const maxMaxEventSize = 767 << 10

// An Option sets one property of a node. An option cannot fail by itself: New checks all
// of them together, and its error has one sentence for each that is wrong.
type Option func(*config)

// config holds what the options set. A field is a pointer where the zero value would be a
// mistake of the user; it is nil until the option is given.
type config struct {
	// Where the node is.
	identity  *string // path
	listen    []string
	subnet    *string
	within    netip.Prefix // subnet, parsed by validate
	advertise []string
	nat       host.NAT

	// The network of the node, and where it looks for other nodes.
	network    string
	netName    *string // as Network was given; validate sets network
	seeds      []string
	lan        bool
	book       *string // path
	rendezvous []func(corehost.Host) (corediscovery.Discovery, error)
	minPeers   int
	maxPeers   int

	// Watchdog.
	pingInterval time.Duration
	pingTimeout  time.Duration

	// Events.
	maxEvent   int
	cbor       bool // events are encoded as CBOR, not JSON
	storeAge   time.Duration
	storeBytes int
	last       int

	// What the application lends.
	lentHost   corehost.Host
	lentPubSub *pubsub.PubSub
	topics     map[string]*pubsub.Topic

	closeTimeout time.Duration
	logger       slog.Handler
	// listenUDP is for tests, see package testhook.
	listenUDP testhook.Listener
	now       func() time.Time

	problems []error // one sentence for each option that is wrong
}

// bad adds a sentence to problems. The sentence begins with the name of the option.
func (c *config) bad(format string, args ...any) {
	c.problems = append(c.problems, fmt.Errorf("smokesignal: "+format, args...))
}

func defaultConfig() config {
	return config{
		minPeers:     defaultMinPeers,
		maxPeers:     defaultMaxPeers,
		pingInterval: defaultPingInterval,
		pingTimeout:  defaultPingTimeout,
		network:      defaultNetwork,
		maxEvent:     DefaultMaxEventSize,
		closeTimeout: defaultCloseTimeout,
		storeAge:     time.Minute,
		storeBytes:   16 << 20,
	}
}

// Listen sets the addresses to listen on, as host:port (TCP and QUIC on the same number) or
// as a multiaddr, which may also name WebSocket, WebTransport or WebRTC-direct. An empty host
// means all interfaces, port 0 a free port. Nothing else is bound. The default is a free
// port on all interfaces. Several calls add up.
func Listen(addrs ...string) Option {
	return func(c *config) { c.listen = append(c.listen, addrs...) }
}

// Seeds names nodes through which to join. A seed is one of
//
//   - host:port, with a DNS name or an IP address: TCP and QUIC are tried;
//   - a multiaddr, with or without /p2p/ID;
//   - /dnsaddr/example.org, also with /p2p/ID, for the multiaddrs in the DNS records of
//     _dnsaddr.example.org (TXT, "dnsaddr=/ip4/..."), so that seeds can change without the
//     programs;
//   - a ticket that another node's Ticket returned.
//
// Names are looked up at each try. All addresses of a seed are tried at once, and one answer
// is enough. If a seed has an id, as every ticket has, another node that answers there is
// refused. With a ticket the node joins the network of the ticket; it is an error at New if
// Network names another one, or if tickets are of different networks. Several calls add up.
// Without any seed the node waits to be joined, or looks on the local network with LAN.
func Seeds(addrs ...string) Option {
	return func(c *config) { c.seeds = append(c.seeds, addrs...) }
}

// PeerLimits sets how many peers the node wants at least and accepts at most (default 3 and
// 5). Below min it looks for more. A min of zero means that it looks for nobody but its
// seeds, a max of zero that it accepts nobody, and Unlimited that there is no maximum. A
// node that has no peer at all is never turned away, so there may be two more peers than max
// for a moment. A negative min, a negative max other than Unlimited, and a min above max are
// errors at New.
func PeerLimits(min, max int) Option {
	return func(c *config) { c.minPeers, c.maxPeers = min, max }
}

// PingInterval sets how long a seed may go unheard before it is pinged through the overlay
// (default ten seconds). A netsplit is reported after two intervals and the PingTimeout. Zero
// turns the watchdog off. A negative interval, or one of more than 24 hours, is an error at
// New.
func PingInterval(d time.Duration) Option {
	return func(c *config) { c.pingInterval = d }
}

// PingTimeout sets how long the watchdog waits for the answer to a ping (default three
// seconds). A netsplit is reported when a seed was not heard for two PingIntervals and one
// PingTimeout. Zero adds nothing to the two intervals. A negative timeout, or one of more
// than 24 hours, is an error at New.
func PingTimeout(d time.Duration) Option {
	return func(c *config) { c.pingTimeout = d }
}

// Network sets the name of the network, 1 to 128 bytes of UTF-8 (default: that of the tickets
// among the Seeds, or "default"). Nodes of different networks do not link to each other. The
// name is not a secret: anybody who knows it can join. Another length is an error at New.
func Network(name string) Option {
	return func(c *config) { c.netName = &name }
}

// LAN looks for nodes of the same network on the local network by multicast DNS, and lets
// others find this one. It is off by default. It needs a Network of your own: with the
// default name the node would join programs of strangers, so that is an error at New. On a
// node that listens on loopback only, or a machine without multicast, it does nothing but
// log a warning.
func LAN() Option {
	return func(c *config) { c.lan = true }
}

// Subnet binds and advertises only this machine's addresses in the subnet, given as
// "192.168.2.0/24" or "192.168.2.1/255.255.255.0". It narrows Listen addresses without a
// host. It is an error at New if a Listen address is outside the subnet, or if this machine
// has no address in it. It is an error at Start if a name given to Listen has an address
// outside the subnet.
func Subnet(subnet string) Option {
	return func(c *config) { c.subnet = &subnet }
}

// Advertise sets the addresses that the node tells other nodes, as host:port or multiaddr, in
// place of the addresses that it listens on. Use it for a node behind a forwarded port.
// Several calls add up.
func Advertise(addrs ...string) Option {
	return func(c *config) { c.advertise = append(c.advertise, addrs...) }
}

// IdentityFile keeps the node's key in the file at path, so that the node has the same ID
// each time. By default each node has a new ID. The file is created if it does not exist, in
// a directory that does, readable by its owner only, and locked while the node lives. It is
// an error at New if another node on this machine has locked it (ErrIdentityInUse), if it is
// damaged, or if others may read it; it is never replaced.
func IdentityFile(path string) Option {
	return func(c *config) { c.identity = &path }
}

// PeerBook remembers the nodes of the network in the file at path, so that a node that is
// started again finds the network even if all seeds are gone. It holds the peers, other nodes
// that this node knows, and those it knew before, 256 at most; a node that was not found for
// seven days is dropped.
//
// The file is created if it does not exist, in a directory that does, readable by its owner
// only. It is replaced as a whole when the peers change, at most every thirty seconds, and at
// Close. Nodes of one network may share a file; each keeps the entries of the others. Damaged
// lines are skipped with a warning in the log. It is an error at New if the file is something
// else, or the peer book of another network; it is then left untouched.
func PeerBook(path string) Option {
	return func(c *config) { c.book = &path }
}

// WithDiscovery looks for nodes of the same network in a Discovery of libp2p, such as a DHT,
// and advertises this node there. New calls open once, with the node's host, which does not
// listen yet. From Start to Close the node uses what open returned, under the namespace
// "smokesignal/" and the name of the network. Several calls add up. See examples/rendezvous.
//
// A node without peers looks after 1, 2, 4, 8, 8 ... seconds, one with too few after 30
// seconds, and one with enough after 5 minutes. It advertises again before the time to live
// of its entry ends. An address found there is dialed three times in ten minutes at most, and
// addresses of private networks are dialed only by a node that has no public address. The
// application closes what open returned, after it has closed the node.
func WithDiscovery(open func(h corehost.Host) (corediscovery.Discovery, error)) Option {
	return func(c *config) {
		if open == nil {
			c.bad("WithDiscovery(nil): give a function that returns a Discovery")
			return
		}
		c.rendezvous = append(c.rendezvous, open)
	}
}

// MaxEventSize sets the largest event, name and arguments encoded, in bytes (default 512 KiB).
// Larger ones are refused with ErrTooLarge before anything is sent. All nodes of a network
// should agree on it. Less than one byte, or more than 767 KiB, is an error at New.
func MaxEventSize(n int) Option {
	return func(c *config) { c.maxEvent = n }
}

// KeepFor sets how long broadcasts are kept for neighbors that have missed them (default one
// minute). Nodes that are cut off for longer miss broadcasts, which are reported to them as a
// Gap. Zero keeps broadcasts only until the handlers of this node have returned. A negative
// time is an error at New.
func KeepFor(d time.Duration) Option {
	return func(c *config) { c.storeAge = d }
}

// KeepBytes limits the memory for broadcasts that are kept, for neighbors and for slow
// handlers, in bytes (default 16 MiB). When the limit is reached, the oldest broadcasts of the
// sender that uses the most memory are dropped. Less than 1 MiB, which has space for an event
// of any size, is an error at New.
func KeepBytes(n int) Option {
	return func(c *config) { c.storeBytes = n }
}

// Last lets a node that joins receive the last n broadcasts of each sender, as far as its
// neighbors still keep them. It may receive a few more, because the broadcasts of one batch
// come together. The default is zero: the node receives only broadcasts that are sent after
// it has joined. A negative number is an error at New.
func Last(n int) Option {
	return func(c *config) { c.last = n }
}

// CBOR encodes the arguments of this node's events as CBOR, except a []byte, which is sent
// as it is, and a proto.Message, which is sent as protobuf. The default is JSON. Each
// argument says how it was encoded, so every node reads what the others send.
func CBOR() Option {
	return func(c *config) { c.cbor = true }
}

// CloseTimeout limits each of the three waits of Close: for neighbors to acknowledge what was
// sent, for the callbacks of the disconnect, and for handlers to return (default five
// seconds). Zero means not to wait. A negative timeout is an error at New.
func CloseTimeout(d time.Duration) Option {
	return func(c *config) { c.closeTimeout = d }
}

// Logger sends the log of this node to h. Without this option, or with nil, the log goes to
// go-log, whose level is set by GOLOG_LOG_LEVEL or by the application. If neither sets a
// level, only panics in the application's own functions are shown, by slog.Default.
func Logger(h slog.Handler) Option {
	return func(c *config) { c.logger = h }
}

func init() {
	testhook.ListenUDP = func(listen testhook.Listener) any {
		return Option(func(c *config) { c.listenUDP = listen })
	}
	testhook.Clock = func(now func() time.Time) any {
		return Option(func(c *config) { c.now = now })
	}
}

// validate returns the seeds, and an error with one sentence for each option that is
// wrong.
func (c *config) validate() ([]*seed.Seed, error) {
	seeds := c.validateSeeds()
	c.validateNetwork(seeds)
	c.validatePeers()
	c.validateFiles()
	c.validateEvents()
	c.validateLent()
	return seeds, errors.Join(c.problems...)
}

func (c *config) validateSeeds() (seeds []*seed.Seed) {
	for _, text := range c.seeds {
		seed, err := seed.Parse(text)
		if err != nil {
			c.bad("Seeds: %w", err)
			continue
		}
		// Whether the application's own host punches holes does not depend on the node's
		// options.
		if seed.Relayed() && !c.punchesHoles() && c.lentHost == nil {
			c.bad("Seeds: seed %q: %w", text, errNoHolePunching)
		}
		seeds = append(seeds, seed)
	}
	return seeds
}

// punchesHoles reports whether the options include HolePunching.
func (c *config) punchesHoles() bool {
	return c.nat.HolePunching || len(c.nat.Relays) > 0 || c.nat.RelayService
}

func (c *config) validateNetwork(seeds []*seed.Seed) {
	if c.netName != nil {
		c.network = *c.netName
	}
	if err := c.joinTickets(seeds); err != nil {
		c.bad("Seeds: %w", err)
	}
	switch {
	case c.network == "":
		c.bad("Network(%q): the name must not be empty", c.network)
	case len(c.network) > protocol.MaxNetwork:
		c.bad("Network: the name has %d bytes, at most %d are allowed", len(c.network), protocol.MaxNetwork)
	case !utf8.ValidString(c.network):
		c.bad("Network(%q): the name is not valid UTF-8", c.network)
	case c.lan && c.network == defaultNetwork:
		// Seeds say which nodes are meant. Multicast finds all programs of anybody
		// that left the name at its default, and their events would mix.
		c.bad("LAN: the name of the network is %q, as in every program that does not set one, so the node would join strangers on the local network; give your program a name with Network", defaultNetwork)
	}
}

func (c *config) validatePeers() {
	switch {
	case c.minPeers < 0:
		c.bad("PeerLimits(%d, %d): min must not be negative", c.minPeers, c.maxPeers)
	case c.maxPeers < Unlimited:
		c.bad("PeerLimits(%d, %d): max must not be negative, except for Unlimited", c.minPeers, c.maxPeers)
	case c.maxPeers != Unlimited && c.minPeers > c.maxPeers:
		c.bad("PeerLimits(%d, %d): min is greater than max", c.minPeers, c.maxPeers)
	}
	switch {
	case c.pingInterval < 0:
		c.bad("PingInterval(%v): must not be negative; zero turns the watchdog off", c.pingInterval)
	case c.pingInterval > protocol.MaxPingInterval:
		c.bad("PingInterval(%v): must not be more than %v; zero turns the watchdog off", c.pingInterval, protocol.MaxPingInterval)
	}
	switch {
	case c.pingTimeout < 0:
		c.bad("PingTimeout(%v): must not be negative", c.pingTimeout)
	case c.pingTimeout > protocol.MaxPingInterval:
		c.bad("PingTimeout(%v): must not be more than %v", c.pingTimeout, protocol.MaxPingInterval)
	}
	if c.subnet != nil {
		prefix, err := addr.ParseSubnet(*c.subnet)
		if err != nil {
			c.bad("Subnet(%q): %w", *c.subnet, err)
		}
		c.within = prefix
	}
}

func (c *config) validateFiles() {
	if c.identity != nil && *c.identity == "" {
		c.bad(`IdentityFile(""): give the path of a file`)
	}
	if c.book != nil && *c.book == "" {
		c.bad(`PeerBook(""): give the path of a file`)
	}
}

func (c *config) validateEvents() {
	if c.maxEvent < 1 || c.maxEvent > maxMaxEventSize {
		c.bad("MaxEventSize(%d): must be between 1 and %d bytes", c.maxEvent, maxMaxEventSize)
	}
	if c.closeTimeout < 0 {
		c.bad("CloseTimeout(%v): must not be negative; zero means not to wait", c.closeTimeout)
	}
	if c.storeAge < 0 {
		c.bad("KeepFor(%v): must not be negative", c.storeAge)
	}
	if c.storeBytes < minKeepBytes {
		c.bad("KeepBytes(%d): must be at least %d bytes, since handlers read from there", c.storeBytes, minKeepBytes)
	}
	if c.last < 0 {
		c.bad("Last(%d): must not be negative", c.last)
	}
}

// minKeepBytes has space for an event of any size.
const minKeepBytes = 1 << 20
