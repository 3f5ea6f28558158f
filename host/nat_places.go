package host

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/pb"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/multiformats/go-multistream"

	"github.com/go-smokesignal/smokesignal/internal/addr"
)

const (
	// reserveTimeout bounds the dial to a relay and the asking for a place.
	reserveTimeout = 10 * time.Second
	// renewBefore is how long before its end a place is renewed, or half way to
	// its end if that is sooner.
	renewBefore = 5 * time.Minute
	// A relay that gives no place is asked again after 1, 2, 4 ... seconds.
	minReservePause = time.Second
	maxReservePause = time.Minute

	relayTag = "smokesignal-relay"
)

var errNotAsked = errors.New("not asked yet")

// places keeps a place at each of the relays that a user named. libp2p's own
// AutoRelay is made to choose among strangers: it waits half a minute to try again,
// an hour after a refusal, and keeps the reason to itself.
type places struct {
	host   corehost.Host
	log    *slog.Logger
	ctx    context.Context
	cancel context.CancelFunc
	tasks  sync.WaitGroup
	notify *network.NotifyBundle

	mu      sync.Mutex
	list    []*place
	emitter event.Emitter // of what others are told
}

// A place is what is known of one relay; places.mu guards all but the first two.
type place struct {
	relay  peer.AddrInfo
	lost   chan struct{} // 1: the connection was lost, and the place with it
	addrs  []ma.Multiaddr
	err    error
	until  time.Time
	logged string
}

func startPlaces(h corehost.Host, relays []peer.AddrInfo, emitter event.Emitter, log *slog.Logger) *places {
	s := &places{host: h, log: log, emitter: emitter}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	for _, r := range relays {
		s.list = append(s.list, &place{relay: r, lost: make(chan struct{}, 1), err: errNotAsked})
	}
	s.notify = &network.NotifyBundle{DisconnectedF: s.disconnected}
	h.Network().Notify(s.notify)
	for _, p := range s.list {
		// For whoever dials it, maybe as a seed that was given with a TCP address: over
		// QUIC, which libp2p prefers, it sees the port for which holes are punched.
		h.Peerstore().AddAddrs(p.relay.ID, p.relay.Addrs, peerstore.PermanentAddrTTL)
		s.tasks.Go(func() { s.keep(p) })
	}
	return s
}

func (s *places) close() {
	s.host.Network().StopNotify(s.notify)
	s.cancel()
	s.tasks.Wait()
	s.emitter.Close()
}

// keep holds the place until the host closes.
func (s *places) keep(p *place) {
	try := 0
	for s.ctx.Err() == nil {
		select {
		case <-p.lost: // before this attempt
		default:
		}
		until, err := s.reserve(p)
		s.set(p, until, err)
		var pause time.Duration
		if err != nil {
			pause = min(minReservePause<<min(try, 10), maxReservePause)
			pause = pause*4/5 + rand.N(pause*2/5)
			try++
		} else {
			left := time.Until(until)
			pause, try = max(left/2, left-renewBefore, minReservePause), 0
		}
		lost := p.lost
		if err != nil {
			lost = nil // what was lost was an attempt
		}
		if s.wait(pause, lost) {
			s.set(p, time.Time{}, errors.New("the connection was lost"))
		}
	}
}

// wait returns after the pause, when the host closes, or at a loss, which it reports.
func (s *places) wait(pause time.Duration, lost <-chan struct{}) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-lost:
		return true
	case <-timer.C:
	case <-s.ctx.Done():
	}
	return false
}

// reserve asks the relay for a place.
func (s *places) reserve(p *place) (time.Time, error) {
	ctx, cancel := context.WithTimeout(s.ctx, reserveTimeout)
	defer cancel()
	// A direct dial passes over the swarm's back-off; how often is decided here.
	ctx = network.WithForceDirectDial(ctx, "smokesignal relay")
	if err := s.host.Connect(ctx, p.relay); err != nil {
		return time.Time{}, reserveError(err)
	}
	s.host.ConnManager().Protect(p.relay.ID, relayTag)
	r, err := client.Reserve(ctx, s.host, p.relay)
	if err != nil {
		return time.Time{}, reserveError(err)
	}
	return r.Expiration, nil
}

// reserveError puts in one line why there is no place.
func reserveError(err error) error {
	if refused, ok := errors.AsType[client.ReservationError](err); ok {
		switch refused.Status {
		case pb.Status_RESERVATION_REFUSED, pb.Status_RESOURCE_LIMIT_EXCEEDED:
			return errors.New("it has no place left")
		case pb.Status_PERMISSION_DENIED:
			return errors.New("it does not let this node in")
		}
		if inner := errors.Unwrap(refused); inner != nil {
			err = inner
		}
	}
	if _, ok := errors.AsType[multistream.ErrNotSupported[protocol.ID]](err); ok {
		return errors.New("it is no relay")
	}
	if dial, ok := errors.AsType[*swarm.DialError](err); ok && len(dial.DialErrors) > 0 {
		err = dial.DialErrors[0].Cause
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return errors.New("timeout")
	}
	for inner := err; inner != nil; inner = errors.Unwrap(inner) {
		err = inner // what the system said, without what was tried
	}
	return err
}

// set notes how things stand, and tells the others when that changes what they
// have to know.
func (s *places) set(p *place, until time.Time, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	had := p.addrs
	p.until, p.err, p.addrs = until, err, nil
	if err == nil {
		p.addrs = s.circuits(p.relay)
	}
	s.tell(p)
	if slices.EqualFunc(had, p.addrs, ma.Multiaddr.Equal) || s.ctx.Err() != nil {
		return
	}
	var all []ma.Multiaddr
	for _, p := range s.list {
		all = append(all, p.addrs...)
	}
	if err := s.emitter.Emit(event.EvtAutoRelayAddrsUpdated{RelayAddrs: all}); err != nil {
		s.log.Error("cannot announce the addresses behind relays", "err", err)
	}
}

// tell logs what has changed.
func (s *places) tell(p *place) {
	text := ""
	if p.err != nil {
		text = p.err.Error()
	}
	switch {
	case s.ctx.Err() != nil || text == p.logged && p.err != nil:
		return
	case p.err != nil:
		s.log.Warn("no place at the relay", "relay", p.relay, "err", p.err)
	case len(p.addrs) > 0 && p.logged != "":
		s.log.Info("reached through the relay", "addrs", p.addrs)
	}
	p.logged = text
}

// circuits returns the addresses at which the host is reached behind the relay:
// those where it was found, not those it says it has, since they become part of
// what this host signs.
func (s *places) circuits(relay peer.AddrInfo) (list []ma.Multiaddr) {
	behind := ma.StringCast("/p2p/" + relay.ID.String() + "/p2p-circuit")
	for _, c := range s.host.Network().ConnsToPeer(relay.ID) {
		a := c.RemoteMultiaddr()
		if c.Stat().Direction == network.DirOutbound && !addr.IsRelayed(a) && !ma.Contains(list, a.Encapsulate(behind)) {
			list = append(list, a.Encapsulate(behind))
		}
	}
	slices.SortFunc(list, ma.Multiaddr.Compare)
	return list
}

// disconnected has the place asked for again when the connection to its relay was
// lost, as the relay then gives it up too.
func (s *places) disconnected(n network.Network, c network.Conn) {
	id := c.RemotePeer()
	if addr.HasDirect(n, id) {
		return
	}
	for _, p := range s.list {
		if p.relay.ID == id {
			select {
			case p.lost <- struct{}{}:
			default:
			}
		}
	}
}

func (s *places) status() (list []RelayStatus) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.list {
		list = append(list, RelayStatus{
			Relay: p.relay.Addrs[0].Encapsulate(ma.StringCast("/p2p/" + p.relay.ID.String())), Err: p.err, Until: p.until,
		})
	}
	return list
}
