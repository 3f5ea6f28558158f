// Package limits configures libp2p's resource manager: how many streams, connections and how
// much memory the peers of a node may use.
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

// protocolLimits holds, for each protocol, how many streams one peer may have with a node in
// each direction, and how much memory in bytes they may use. A link needs one stream per
// protocol, or two while an old stream ends; overlay and repair also open streams for a short
// time. libp2p's defaults would allow 64 and more, and a stream can use about 57 KiB.
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

// Add adds to limits the limits for a node's protocols and for its service (all streams of the
// library together). It is for an application that makes the libp2p host itself; package host
// calls it for its own hosts. It changes no other limit.
//
// All limits that Add sets are for streams. A node may have up to 24 streams with one peer in
// each direction for a moment, and has four as long as there is a link. The application's own
// limits per peer have to allow that. If peers of the application share an IP address, the
// application also needs rcmgr.WithLimitPerSubnet and rcmgr.WithConnRateLimiters, because
// libp2p accepts at most eight connections from one address.
func Add(limits *rcmgr.ScalingLimitConfig) {
	perPeer, memory := 0, int64(0)
	for _, p := range protocolLimits {
		limits.AddProtocolLimit(p.id,
			rcmgr.BaseLimit{StreamsInbound: 1024, StreamsOutbound: 1024, Streams: 2048, Memory: 64 << 20},
			rcmgr.BaseLimitIncrease{StreamsInbound: 1024, StreamsOutbound: 1024, Streams: 2048, Memory: 128 << 20})
		limits.AddProtocolPeerLimit(p.id,
			rcmgr.BaseLimit{StreamsInbound: p.perPeer, StreamsOutbound: p.perPeer, Streams: 2 * p.perPeer, Memory: p.memory},
			rcmgr.BaseLimitIncrease{})
		if protocol.IsOurs(p.id) { // pubsub's streams do not count for our service
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
	// connsPerIP is the largest number of connections that one IPv4 address, or one IPv6 /56
	// prefix, may have with this host at the same time. libp2p's default is eight, so that the
	// ninth node behind one NAT, or on one container host, could not connect. 256 are enough
	// for 64 nodes behind one address: each has at most two connections, when both ends dial
	// at the same time, and after a crash of the node they count for up to 40 s more.
	connsPerIP = 256
	// connRatePerIP is how many new connections per second one address may open, after
	// connsPerIP connections that it may open at once. It is twice the rate of 64 nodes that
	// each dial every 8 s.
	connRatePerIP = 16
)

// ResourceManager returns a resource manager with libp2p's default limits for this machine,
// the limits that Add sets, and limits on connections that allow many nodes behind one address.
func ResourceManager() (network.ResourceManager, error) {
	limits := rcmgr.DefaultLimits
	libp2p.SetDefaultServiceLimits(&limits)
	Add(&limits)
	// On a machine with less than 1 GiB of memory, the defaults allow 64 inbound connections
	// and 32 connections in their handshake. The limits below are higher: the total is twice
	// the limit per address, so that one address cannot use up all connections.
	limits.SystemBaseLimit.ConnsInbound = 2 * connsPerIP
	limits.SystemBaseLimit.Conns = 3 * connsPerIP
	limits.TransientBaseLimit.ConnsInbound = connsPerIP / 2
	limits.TransientBaseLimit.Conns = connsPerIP / 2
	limits.TransientBaseLimit.FD = connsPerIP / 2
	return rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(limits.AutoScale()),
		rcmgr.WithMetricsDisabled(),
		// Like the default, this also limits each IPv6 /48 prefix, since one customer of a
		// provider can have a whole /48, with many /56 prefixes in it.
		rcmgr.WithLimitPerSubnet(
			[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 32, ConnCount: connsPerIP}},
			[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 56, ConnCount: connsPerIP}, {PrefixLength: 48, ConnCount: 8 * connsPerIP}},
		),
		rcmgr.WithConnRateLimiters(&rate.Limiter{
			NetworkPrefixLimits: []rate.PrefixLimit{ // no limit for loopback addresses
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
