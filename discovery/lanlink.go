package discovery

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

const (
	mdnsPort = 5353
	// answerPause is the least time between two announcements on an interface,
	// however many ask (RFC 6762 section 6).
	answerPause = time.Second
	// maxQueryPause is what the pause between questions grows to from a second.
	maxQueryPause = time.Minute
	// maxPacket is the largest mDNS packet (RFC 6762 section 17).
	maxPacket = 9000
)

var (
	mdnsGroup4 = net.IPv4(224, 0, 0, 251)
	mdnsGroup6 = net.ParseIP("ff02::fb")
)

// A lanLink is one socket with its two goroutines: one reads, the other asks
// and announces.
type lanLink struct {
	lan   *lan
	place lanPlace
	conn  *net.UDPConn
	// send multicasts on this interface. read returns a packet and its source,
	// and false for one that came in elsewhere or was not sent to the group.
	send func([]byte) error
	mute bool // send has failed; of sendLoop
	read func([]byte) (n int, from net.Addr, ours bool, err error)

	asked chan struct{} // a token when somebody asked
	done  chan struct{}
	tasks sync.WaitGroup
}

func openLANLink(l *lan, key lanKey, place lanPlace) (*lanLink, error) {
	link := &lanLink{lan: l, place: place, asked: make(chan struct{}, 1), done: make(chan struct{})}
	var err error
	if key.v6 {
		err = link.open6()
	} else {
		err = link.open4()
	}
	if err != nil {
		if link.conn != nil {
			link.conn.Close()
		}
		return nil, err
	}
	link.tasks.Go(link.readLoop)
	link.tasks.Go(link.sendLoop)
	return link, nil
}

// The socket is bound to the wildcard address, so it also gets what arrives on
// interfaces that other programs have joined: each packet is asked where it
// came in. Where the system cannot say (Windows), the source's subnet decides.
func (k *lanLink) open4() (err error) {
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
	if err := p.SetMulticastLoopback(true); err != nil { // other nodes on this machine
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

func (k *lanLink) open6() (err error) {
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

// close says good-bye and ends both goroutines.
func (k *lanLink) close() {
	close(k.done)
	k.conn.SetReadDeadline(time.Unix(1, 0))
	k.tasks.Wait()
	k.conn.Close()
}

func (k *lanLink) readLoop() {
	buf := make([]byte, maxPacket)
	for {
		n, from, ours, err := k.read(buf)
		select {
		case <-k.done:
			return
		default:
		}
		if err != nil {
			// An interface that went down; refresh will close this link.
			select {
			case <-time.After(time.Second):
			case <-k.done:
				return
			}
			continue
		}
		// Who asks from another port or another subnet is no part of this network
		// (RFC 6762 sections 6.7 and 11).
		udp, ok := from.(*net.UDPAddr)
		if !ours || !ok || udp.Port != mdnsPort || !k.near(udp) {
			continue
		}
		asked, nodes := parseLAN(buf[:n], k.lan.tag)
		if asked {
			select {
			case k.asked <- struct{}{}:
			default:
			}
		}
		for _, info := range nodes {
			k.lan.report(k.place, info)
		}
	}
}

// multicast sends a packet. That it cannot be sent is told once: it may be forbidden.
func (k *lanLink) multicast(packet []byte) {
	if err := k.send(packet); err != nil && !k.mute {
		k.mute = true
		k.lan.log.Warn("cannot look for peers on the local network", "interface", k.place.ifi.Name, "err", err)
	}
}

// near reports whether the sender of a packet is in the interface's subnet.
func (k *lanLink) near(from *net.UDPAddr) bool {
	ip, ok := netip.AddrFromSlice(from.IP)
	return ok && within(ip.Unmap(), k.place.prefixes)
}

// sendLoop asks and announces at once and a second later, then asks ever more
// rarely and announces when asked.
func (k *lanLink) sendLoop() {
	here := func(ttl uint32) []byte {
		return lanAnnouncement(k.lan.instance, k.lan.tag, k.place.ips, k.place.addrs, ttl)
	}
	announcement, question := here(lanTTL), lanQuery()
	// A random start, so that machines switched on together do not speak at once.
	query := time.NewTimer(rand.N(120 * time.Millisecond))
	defer query.Stop()
	answer := time.NewTimer(time.Hour)
	answer.Stop()
	pause := answerPause
	unasked := 2
	waiting := false // answer is set
	var last time.Time
	for {
		select {
		case <-query.C:
			k.multicast(question)
			query.Reset(pause)
			pause = min(2*pause, maxQueryPause)
			if unasked == 0 {
				continue
			}
			unasked--
		case <-k.asked:
		case <-answer.C:
			waiting = false
			last = time.Now()
			k.multicast(announcement)
			continue
		case <-k.done:
			k.multicast(here(0))
			return
		}
		if !waiting {
			waiting = true
			// Up to 120 ms, since all others answer the same question (section 6).
			answer.Reset(max(answerPause-time.Since(last), 20*time.Millisecond+rand.N(100*time.Millisecond)))
		}
	}
}
