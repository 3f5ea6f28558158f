package lan

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/go-smokesignal/smokesignal/discovery/internal/dialguard"
	"github.com/go-smokesignal/smokesignal/internal/notify"
)

const (
	mdnsPort = 5353
	// announceInterval is the least time between two announcements on an interface,
	// whatever the number of questions (RFC 6762 section 6).
	announceInterval = time.Second
	// maxQueryInterval is the longest pause between two questions of this node. The pause
	// begins with one second and doubles.
	maxQueryInterval = time.Minute
	// maxPacket is the largest size of an mDNS packet in bytes (RFC 6762 section 17).
	maxPacket = 9000
)

var (
	mdnsGroup4 = net.IPv4(224, 0, 0, 251)
	mdnsGroup6 = net.ParseIP("ff02::fb")
)

// An mdnsSocket is a multicast socket with two goroutines. One reads packets; the other
// sends questions and announcements.
type mdnsSocket struct {
	owner *finder
	place place
	conn  *net.UDPConn
	// send sends a multicast packet on the interface of this socket. read reads a
	// packet and returns its source. The result ours of read is false for a packet that
	// arrived on another interface, or that was not sent to the multicast group.
	send func([]byte) error
	mute bool // a failure of send was logged already; used only by sendLoop
	read func([]byte) (n int, from net.Addr, ours bool, err error)

	asked notify.Signal // set when another node asks for announcements
	done  chan struct{}
	tasks sync.WaitGroup
}

func openSocket(l *finder, key socketKey, place place) (*mdnsSocket, error) {
	k := &mdnsSocket{owner: l, place: place, asked: notify.NewSignal(), done: make(chan struct{})}
	var err error
	if key.v6 {
		err = k.open6()
	} else {
		err = k.open4()
	}
	if err != nil {
		if k.conn != nil {
			k.conn.Close()
		}
		return nil, err
	}
	k.tasks.Go(k.readLoop)
	k.tasks.Go(k.sendLoop)
	return k, nil
}

// open4 opens the socket for IPv4. The socket is bound to the wildcard address, so it also
// receives packets from other interfaces on which some program has joined the group.
// Therefore read checks on which interface each packet arrived. Where the system cannot tell
// that (Windows), only the subnet of the source is checked.
func (k *mdnsSocket) open4() (err error) {
	k.conn, err = net.ListenMulticastUDP("udp4", &k.place.ifi, &net.UDPAddr{IP: mdnsGroup4, Port: mdnsPort})
	if err != nil {
		return err
	}
	p := ipv4.NewPacketConn(k.conn)
	p.SetControlMessage(ipv4.FlagInterface|ipv4.FlagDst, true)
	p.SetMulticastTTL(255)
	if err := p.SetMulticastInterface(&k.place.ifi); err != nil {
		return err
	}
	if err := p.SetMulticastLoopback(true); err != nil { // so that nodes on this machine receive it
		return err
	}
	to := &net.UDPAddr{IP: mdnsGroup4, Port: mdnsPort}
	k.send = func(b []byte) error {
		_, err := p.WriteTo(b, nil, to)
		return err
	}
	k.read = func(b []byte) (int, net.Addr, bool, error) {
		n, cm, from, err := p.ReadFrom(b)
		return n, from, cm == nil || cm.IfIndex == k.place.ifi.Index && cm.Dst.Equal(mdnsGroup4), err
	}
	return nil
}

// open6 opens the socket for IPv6, in the same way as open4.
func (k *mdnsSocket) open6() (err error) {
	k.conn, err = net.ListenMulticastUDP("udp6", &k.place.ifi, &net.UDPAddr{IP: mdnsGroup6, Port: mdnsPort})
	if err != nil {
		return err
	}
	p := ipv6.NewPacketConn(k.conn)
	p.SetControlMessage(ipv6.FlagInterface|ipv6.FlagDst, true)
	p.SetMulticastHopLimit(255)
	if err := p.SetMulticastInterface(&k.place.ifi); err != nil {
		return err
	}
	if err := p.SetMulticastLoopback(true); err != nil {
		return err
	}
	to := &net.UDPAddr{IP: mdnsGroup6, Port: mdnsPort, Zone: k.place.ifi.Name}
	k.send = func(b []byte) error {
		_, err := p.WriteTo(b, nil, to)
		return err
	}
	k.read = func(b []byte) (int, net.Addr, bool, error) {
		n, cm, from, err := p.ReadFrom(b)
		return n, from, cm == nil || cm.IfIndex == k.place.ifi.Index && cm.Dst.Equal(mdnsGroup6), err
	}
	return nil
}

// close announces that the node leaves, and ends both goroutines.
func (k *mdnsSocket) close() {
	close(k.done)
	k.conn.SetReadDeadline(time.Unix(1, 0))
	k.tasks.Wait()
	k.conn.Close()
}

func (k *mdnsSocket) readLoop() {
	buf := make([]byte, maxPacket)
	for {
		n, from, ours, err := k.read(buf)
		select {
		case <-k.done:
			return
		default:
		}
		if err != nil {
			// The interface is down. The finder will close this socket; until then, wait.
			select {
			case <-time.After(time.Second):
			case <-k.done:
				return
			}
			continue
		}
		// A packet from another port, or from another subnet, does not come from a node on
		// this local network (RFC 6762 sections 6.7 and 11).
		udp, ok := from.(*net.UDPAddr)
		if !ours || !ok || udp.Port != mdnsPort || !k.near(udp) {
			continue
		}
		asked, nodes := parsePacket(buf[:n], k.owner.tag)
		if asked {
			k.asked.Set()
		}
		for _, info := range nodes {
			k.owner.report(k.place, info)
		}
	}
}

// multicast sends a packet. It logs only the first failure, since the system may forbid all
// packets.
func (k *mdnsSocket) multicast(packet []byte) {
	if err := k.send(packet); err != nil && !k.mute {
		k.mute = true
		k.owner.log.Warn("cannot look for peers on the local network", "interface", k.place.ifi.Name, "error", err)
	}
}

// near reports whether the source of a packet is in a subnet of the interface.
func (k *mdnsSocket) near(from *net.UDPAddr) bool {
	ip, ok := netip.AddrFromSlice(from.IP)
	return ok && dialguard.In(ip.Unmap(), k.place.prefixes)
}

// sendLoop sends a question and an announcement at once, and again a second later. Then it
// asks with growing pauses, and announces this node when another one asks.
func (k *mdnsSocket) sendLoop() {
	announce := func(ttl uint32) []byte {
		return announcement(k.owner.instance, k.owner.tag, k.place.ips, k.place.addrs, ttl)
	}
	hello, question := announce(ttlSeconds), query()
	// The random delay keeps machines that were switched on together from sending at the
	// same moment.
	ask := time.NewTimer(rand.N(120 * time.Millisecond))
	defer ask.Stop()
	answer := time.NewTimer(time.Hour)
	answer.Stop()
	pause := announceInterval
	unasked := 2     // the number of announcements that are still to be sent without a question
	waiting := false // the timer answer is running, so an announcement will be sent soon
	var last time.Time
	for {
		select {
		case <-ask.C:
			k.multicast(question)
			ask.Reset(pause)
			pause = min(2*pause, maxQueryInterval)
			if unasked == 0 {
				continue // from now on, announce only when asked
			}
			unasked--
		case <-k.asked:
		case <-answer.C:
			waiting = false
			last = time.Now()
			k.multicast(hello)
			continue
		case <-k.done:
			k.multicast(announce(0)) // a TTL of zero means that the node leaves
			return
		}
		if !waiting {
			waiting = true
			// The random delay, of up to 120 ms, keeps all nodes from answering the same
			// question at the same moment (RFC 6762 section 6).
			answer.Reset(max(announceInterval-time.Since(last), 20*time.Millisecond+rand.N(100*time.Millisecond)))
		}
	}
}
