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
	"github.com/go-smokesignal/smokesignal/internal/backoff"
	"github.com/go-smokesignal/smokesignal/internal/notify"
	"github.com/go-smokesignal/smokesignal/internal/wiring"
)

const (
	// reserveTimeout bounds the dial to a relay and the request for a reservation.
	reserveTimeout = 10 * time.Second
	// renewBefore is how long before its end a reservation at a relay is renewed. A
	// reservation shorter than twice renewBefore is renewed when half of its time has
	// passed.
	renewBefore = 5 * time.Minute
	// A relay that refuses a reservation is asked again after 1, 2, 4 ... seconds: the
	// pause begins with minReservePause and doubles up to maxReservePause.
	minReservePause = time.Second
	maxReservePause = time.Minute

	relayTag = "smokesignal-relay"
)

var (
	errNotAsked = errors.New("not asked yet")
	// errOnlyRelayed is returned when this host is connected to a relay only through another
	// relay. A relay grants no reservation over such a connection.
	errOnlyRelayed = errors.New("it is only reached through another relay")
)

// reservations keeps a reservation at each of the relays that the user named: the right to
// be reached through the relay. libp2p's AutoRelay is not used, because it is made for
// choosing among unknown relays: it waits half a minute before it tries again, an hour
// after a refusal, and does not report the reason.
type reservations struct {
	host   corehost.Host
	log    *slog.Logger
	ctx    context.Context
	cancel context.CancelFunc
	tasks  sync.WaitGroup
	notify *network.NotifyBundle

	mu      sync.Mutex
	list    []*reservation
	emitter event.Emitter // of the addresses to announce
}

// A reservation is the state of this host's reservation at one relay. reservations.mu
// guards all fields but the first two.
type reservation struct {
	relay  peer.AddrInfo
	lost   notify.Signal // set when the connection to the relay has ended, which also ends the reservation
	addrs  []ma.Multiaddr
	err    error
	until  time.Time
	logged string // the text of the error that was last logged; empty if success was logged last
}

func startReservations(h corehost.Host, relays []peer.AddrInfo, emitter event.Emitter, log *slog.Logger) *reservations {
	s := &reservations{host: h, log: log, emitter: emitter}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	for _, r := range relays {
		s.list = append(s.list, &reservation{relay: r, lost: notify.NewSignal(), err: errNotAsked})
	}
	s.notify = &network.NotifyBundle{DisconnectedF: s.disconnected}
	h.Network().Notify(s.notify)
	for _, p := range s.list {
		// The user may also have given the relay as a seed, with a TCP address
		// only. If the peerstore has all addresses of the relay, it is dialed over
		// QUIC, which libp2p prefers. Over QUIC, the relay sees the port of this
		// host that other nodes need for hole punching.
		h.Peerstore().AddAddrs(p.relay.ID, p.relay.Addrs, peerstore.PermanentAddrTTL)
		s.tasks.Go(func() { s.maintain(p) })
	}
	return s
}

func (s *reservations) close() {
	s.host.Network().StopNotify(s.notify)
	s.cancel()
	s.tasks.Wait()
	s.emitter.Close()
}

// maintain makes and renews the reservation at the relay of p until the host closes.
func (s *reservations) maintain(p *reservation) {
	try := 0
	for s.ctx.Err() == nil {
		select {
		case <-p.lost: // a connection of before this attempt
		default:
		}
		until, err := s.reserve(p)
		s.setState(p, until, err)
		var pause time.Duration
		if err != nil {
			pause = min(minReservePause<<min(try, 10), maxReservePause)
			pause = pause*4/5 + rand.N(pause*2/5) // random, since many nodes may have lost the same relay at the same time
			try++
		} else {
			left := time.Until(until)
			pause, try = max(left/2, left-renewBefore, minReservePause), 0
		}
		lost := p.lost
		if err != nil {
			lost = nil // there is no reservation, so it does not matter whether the connection to the relay ends
		}
		if s.wait(pause, lost) {
			s.setState(p, time.Time{}, errors.New("the connection was lost"))
		}
	}
}

// wait waits until pause is over, lost receives a value, or the host closes. It reports
// whether lost received a value.
func (s *reservations) wait(pause time.Duration, lost <-chan struct{}) bool {
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

// reserve asks the relay of p for a reservation and returns the time at which the
// reservation ends.
func (s *reservations) reserve(p *reservation) (time.Time, error) {
	ctx, cancel := context.WithTimeout(s.ctx, reserveTimeout)
	defer cancel()
	// The swarm's back-off may be minutes long. maintain makes pauses of its own between the
	// dials.
	backoff.Clear(s.host, p.relay.ID)
	if err := s.host.Connect(ctx, p.relay); err != nil {
		return time.Time{}, reserveError(err)
	}
	if addr.HasOnlyRelayed(s.host.Network(), p.relay.ID) {
		return time.Time{}, errOnlyRelayed
	}
	s.host.ConnManager().Protect(p.relay.ID, relayTag)
	r, err := client.Reserve(ctx, s.host, p.relay)
	if err != nil {
		return time.Time{}, reserveError(err)
	}
	return r.Expiration, nil
}

// reserveError returns an error of one line that says why the relay has granted no
// reservation.
func reserveError(err error) error {
	if refused, ok := errors.AsType[client.ReservationError](err); ok {
		switch refused.Status {
		case pb.Status_RESERVATION_REFUSED, pb.Status_RESOURCE_LIMIT_EXCEEDED:
			return errors.New("it has no reservation left")
		case pb.Status_PERMISSION_DENIED:
			return errors.New("it does not admit this node")
		}
		if inner := errors.Unwrap(refused); inner != nil {
			err = inner
		}
	}
	if _, ok := errors.AsType[multistream.ErrNotSupported[protocol.ID]](err); ok {
		return errors.New("it is not a relay")
	}
	if dial, ok := errors.AsType[*swarm.DialError](err); ok && len(dial.DialErrors) > 0 {
		err = dial.DialErrors[0].Cause
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return errors.New("timeout")
	}
	for inner := err; inner != nil; inner = errors.Unwrap(inner) {
		err = inner // the innermost error is the system's
	}
	return err
}

// setState records the result of an attempt to get the reservation p: it is granted until
// the time until, or err says why not. If that changes the addresses at which the host is
// reached through relays, the host announces the new ones.
func (s *reservations) setState(p *reservation, until time.Time, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	had := p.addrs
	p.until, p.err, p.addrs = until, err, nil
	if err == nil {
		p.addrs = s.addrsBehind(p.relay)
	}
	s.logChange(p)
	if slices.EqualFunc(had, p.addrs, ma.Multiaddr.Equal) || s.ctx.Err() != nil {
		return
	}
	var all []ma.Multiaddr
	for _, p := range s.list {
		all = append(all, p.addrs...)
	}
	if err := s.emitter.Emit(event.EvtAutoRelayAddrsUpdated{RelayAddrs: all}); err != nil {
		s.log.Error("cannot announce the addresses behind relays", "error", err)
	}
}

// logChange logs the state of the reservation p if it differs from the state that was last
// logged.
func (s *reservations) logChange(p *reservation) {
	text := ""
	if p.err != nil {
		text = p.err.Error()
	}
	switch {
	case s.ctx.Err() != nil || text == p.logged && p.err != nil:
		return
	case p.err != nil:
		s.log.Warn("no reservation at the relay", "relay", p.relay, "error", p.err)
	case len(p.addrs) > 0 && p.logged != "":
		s.log.Info("reached through the relay", "addrs", p.addrs)
	}
	p.logged = text
}

// addrsBehind returns the addresses at which the host is reached through the relay. They
// contain the addresses at which this host has dialed the relay, and not those that the
// relay states: this host signs them, so they should be true.
func (s *reservations) addrsBehind(relay peer.AddrInfo) (list []ma.Multiaddr) {
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

// disconnected tells maintain that a relay, to which c was the last direct connection, is
// no longer connected, so the reservation at this relay is lost.
func (s *reservations) disconnected(n network.Network, c network.Conn) {
	id := c.RemotePeer()
	if addr.HasDirect(n, id) {
		return
	}
	for _, p := range s.list {
		if p.relay.ID == id {
			p.lost.Set()
		}
	}
}

// status returns the state of all reservations.
func (s *reservations) status() (list []wiring.RelayStatus) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.list {
		list = append(list, wiring.RelayStatus{
			Relay: p.relay.Addrs[0].Encapsulate(ma.StringCast("/p2p/" + p.relay.ID.String())), Err: p.err, Until: p.until,
		})
	}
	return list
}
