// Package limits bounds what the peers of a node can take of its host.
package limits

import (
	"net/netip"
	"time"

	"github.com/libp2p/go-libp2p"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/x/rate"
)

// protocolLimits are the streams one peer may have of each protocol of a node,
// in each direction. A link needs one, or two while an old one ends; overlay
// and repair open short ones besides. libp2p would grant 64 and more, at some
// 57 KiB each.
var protocolLimits = []struct {
	id      protocol.ID
	perPeer int
	memory  int64
}{
	{"/smokesignal/overlay/1.0.0", 8, 4 << 20},
	{"/smokesignal/events/1.0.0", 4, 16 << 20},
	{"/smokesignal/repair/1.0.0", 8, 16 << 20},
	{pubsub.FloodSubID, 4, 16 << 20},
}

// service is under which name libp2p accounts the streams of a node, those of pubsub
// aside.
const service = "smokesignal"

// Add adds the limits of smokesignal's protocols, and of its service, to those
// of a resource manager, for an application which makes the libp2p host itself.
// Hosts made by package host have them. It takes nothing from the others.
//
// It is about streams: of one peer a node has up to 24 in each direction for moments,
// and four for as long as there is a link, which the limits of a peer have to allow.
// An application whose peers share an IP address also wants
// rcmgr.WithLimitPerSubnet and rcmgr.WithConnRateLimiters, since libp2p accepts no
// more than eight connections from one.
func Add(limits *rcmgr.ScalingLimitConfig) {
	perPeer, memory := 0, int64(0)
	for _, p := range protocolLimits {
		limits.AddProtocolLimit(p.id,
			rcmgr.BaseLimit{StreamsInbound: 1024, StreamsOutbound: 1024, Streams: 2048, Memory: 64 << 20},
			rcmgr.BaseLimitIncrease{StreamsInbound: 1024, StreamsOutbound: 1024, Streams: 2048, Memory: 128 << 20})
		limits.AddProtocolPeerLimit(p.id,
			rcmgr.BaseLimit{StreamsInbound: p.perPeer, StreamsOutbound: p.perPeer, Streams: 2 * p.perPeer, Memory: p.memory},
			rcmgr.BaseLimitIncrease{})
		if p.id != pubsub.FloodSubID {
			perPeer += p.perPeer
			memory += p.memory
		}
	}
	limits.AddServiceLimit(service,
		rcmgr.BaseLimit{StreamsInbound: 3072, StreamsOutbound: 3072, Streams: 6144, Memory: 192 << 20},
		rcmgr.BaseLimitIncrease{StreamsInbound: 3072, StreamsOutbound: 3072, Streams: 6144, Memory: 384 << 20})
	limits.AddServicePeerLimit(service,
		rcmgr.BaseLimit{StreamsInbound: perPeer, StreamsOutbound: perPeer, Streams: 2 * perPeer, Memory: memory},
		rcmgr.BaseLimitIncrease{})
}

const (
	// connsPerIP is how many connections may come from, or go to, one IPv4
	// address or IPv6 /56 at a time. libp2p's eight lock out the ninth node
	// behind a NAT, or in one container host. 64 nodes take at most two each
	// (both ends dial at once), and as many again while those of a life that
	// ended without a word (QUIC, 40 s) are still counted.
	connsPerIP = 256
	// connRatePerIP is new connections per second from one address, after a
	// burst of connsPerIP: 64 nodes that try again every 8 s, twice over.
	connRatePerIP = 16
)

// ResourceManager returns libp2p's default limits for this machine, with
// those of our protocols, and room for many nodes behind one address.
func ResourceManager() (network.ResourceManager, error) {
	limits := rcmgr.DefaultLimits
	libp2p.SetDefaultServiceLimits(&limits)
	Add(&limits)
	// On a machine with less than 1 GiB the defaults let 64 in, and 32 at once.
	// Twice what one address may have, so that none can take all.
	limits.SystemBaseLimit.ConnsInbound = 2 * connsPerIP
	limits.SystemBaseLimit.Conns = 3 * connsPerIP
	limits.TransientBaseLimit.ConnsInbound = connsPerIP / 2
	limits.TransientBaseLimit.Conns = connsPerIP / 2
	limits.TransientBaseLimit.FD = connsPerIP / 2
	return rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(limits.AutoScale()),
		rcmgr.WithMetricsDisabled(),
		// As by default, /48 is for those who have been given many /56.
		rcmgr.WithLimitPerSubnet(
			[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 32, ConnCount: connsPerIP}},
			[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 56, ConnCount: connsPerIP}, {PrefixLength: 48, ConnCount: 8 * connsPerIP}},
		),
		rcmgr.WithConnRateLimiters(&rate.Limiter{
			NetworkPrefixLimits: []rate.PrefixLimit{ // no limit on loopback
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
