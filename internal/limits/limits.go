// Package limits bounds the resources of a host that the peers of a node can use.
package limits

import (
	"net/netip"
	"time"

	"github.com/libp2p/go-libp2p"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/network"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/x/rate"

	"github.com/go-smokesignal/smokesignal/internal/protocol"
)

// protocolLimits are the streams that one peer may have with a node, in each direction
// and for each protocol. A link needs one of them, or two while an old one ends. Overlay
// and repair also open short ones. libp2p would grant 64 and more, at some 57 KiB each.
var protocolLimits = []struct {
	id      protocol.ID
	perPeer int
	memory  int64
}{
	{protocol.Overlay, 8, 4 << 20},
	{protocol.Events, 4, 16 << 20},
	{protocol.Repair, 8, 16 << 20},
	{pubsub.FloodSubID, 4, 16 << 20},
}

// Add adds the limits of a node's protocols and of its service to those of a resource
// manager. It is for an application that makes the libp2p host itself; package host does
// it for its own hosts. It reduces no other limit.
//
// All of these limits are on streams. With one peer a node has up to 24 streams in each
// direction for moments, and four for as long as there is a link; the application's
// limits per peer have to allow that. An application whose peers share an IP address also
// needs rcmgr.WithLimitPerSubnet and rcmgr.WithConnRateLimiters, since libp2p accepts at
// most eight connections from one address.
func Add(limits *rcmgr.ScalingLimitConfig) {
	perPeer, memory := 0, int64(0)
	for _, p := range protocolLimits {
		limits.AddProtocolLimit(p.id,
			rcmgr.BaseLimit{StreamsInbound: 1024, StreamsOutbound: 1024, Streams: 2048, Memory: 64 << 20},
			rcmgr.BaseLimitIncrease{StreamsInbound: 1024, StreamsOutbound: 1024, Streams: 2048, Memory: 128 << 20})
		limits.AddProtocolPeerLimit(p.id,
			rcmgr.BaseLimit{StreamsInbound: p.perPeer, StreamsOutbound: p.perPeer, Streams: 2 * p.perPeer, Memory: p.memory},
			rcmgr.BaseLimitIncrease{})
		if protocol.IsOurs(p.id) { // pubsub accounts its streams itself
			perPeer += p.perPeer
			memory += p.memory
		}
	}
	limits.AddServiceLimit(protocol.Service,
		rcmgr.BaseLimit{StreamsInbound: 3072, StreamsOutbound: 3072, Streams: 6144, Memory: 192 << 20},
		rcmgr.BaseLimitIncrease{StreamsInbound: 3072, StreamsOutbound: 3072, Streams: 6144, Memory: 384 << 20})
	limits.AddServicePeerLimit(protocol.Service,
		rcmgr.BaseLimit{StreamsInbound: perPeer, StreamsOutbound: perPeer, Streams: 2 * perPeer, Memory: memory},
		rcmgr.BaseLimitIncrease{})
}

const (
	// connsPerIP is how many connections one IPv4 address or IPv6 /56 may have with this
	// host at a time. With the eight of libp2p, the ninth node behind a NAT or in one
	// container host is locked out. This allows 64 nodes: each has at most two connections
	// (both ends dial at once), and as many again are still counted after a crash (over
	// QUIC for 40 s).
	connsPerIP = 256
	// connRatePerIP is how many new connections per second one address may open, after a
	// burst of connsPerIP: 64 nodes that try again every 8 s, twice over.
	connRatePerIP = 16
)

// ResourceManager returns a resource manager with libp2p's default limits for this
// machine, the limits of our protocols, and enough connections for many nodes behind one
// address.
func ResourceManager() (network.ResourceManager, error) {
	limits := rcmgr.DefaultLimits
	libp2p.SetDefaultServiceLimits(&limits)
	Add(&limits)
	// On a machine with less than 1 GiB the defaults allow 64 inbound connections, and 32
	// that are being made. This is twice the limit of one address, so that no address can
	// use up all of them.
	limits.SystemBaseLimit.ConnsInbound = 2 * connsPerIP
	limits.SystemBaseLimit.Conns = 3 * connsPerIP
	limits.TransientBaseLimit.ConnsInbound = connsPerIP / 2
	limits.TransientBaseLimit.Conns = connsPerIP / 2
	limits.TransientBaseLimit.FD = connsPerIP / 2
	return rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(limits.AutoScale()),
		rcmgr.WithMetricsDisabled(),
		// As by default, there is a limit on /48 too, since one customer can have many /56.
		rcmgr.WithLimitPerSubnet(
			[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 32, ConnCount: connsPerIP}},
			[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 56, ConnCount: connsPerIP}, {PrefixLength: 48, ConnCount: 8 * connsPerIP}},
		),
		rcmgr.WithConnRateLimiters(&rate.Limiter{
			NetworkPrefixLimits: []rate.PrefixLimit{ // loopback has no limit
				{Prefix: netip.MustParsePrefix("127.0.0.0/8")},
				{Prefix: netip.MustParsePrefix("::1/128")},
			},
			SubnetRateLimiter: rate.SubnetLimiter{
				IPv4SubnetLimits: []rate.SubnetLimit{{PrefixLength: 32, Limit: rate.Limit{RPS: connRatePerIP, Burst: connsPerIP}}},
				IPv6SubnetLimits: []rate.SubnetLimit{
					{PrefixLength: 56, Limit: rate.Limit{RPS: connRatePerIP, Burst: connsPerIP}},
					{PrefixLength: 48, Limit: rate.Limit{RPS: 8 * connRatePerIP, Burst: 8 * connsPerIP}},
				},
				GracePeriod: time.Minute,
			},
		}),
	)
}
