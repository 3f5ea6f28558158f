package lan

import (
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"strings"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/go-smokesignal/smokesignal/internal/addr"
)

// The packets have the form and the service name of the libp2p specification
// (discovery/mdns.md), so that other libp2p programs find smokesignal nodes. One more TXT
// string, the network tag, is the same for all nodes of one network. It is a digest of the
// name of the network, since that name is private.
const (
	serviceName   = "_p2p._udp.local."
	ttlSeconds    = 120 // RFC 6762 section 10
	dnsaddrPrefix = "dnsaddr="
	networkPrefix = "smokesignal="
	// maxRecords bounds the DNS records that are read from one mDNS packet.
	maxRecords = 64
	// maxAddrs bounds the addresses that this node announces, and the addresses that it
	// reads from the announcement of another node.
	maxAddrs = 8
	// cacheFlush marks a record as the only valid one for its name (RFC 6762 section 10.2).
	cacheFlush = dnsmessage.ClassINET | 1<<15
)

// networkTag returns the network tag of the network with that name: the TXT string that all
// nodes of the network announce.
func networkTag(network string) string {
	sum := sha256.Sum256([]byte("smokesignal/" + network))
	return networkPrefix + hex.EncodeToString(sum[:8])
}

// query returns the packet that asks all nodes to announce themselves.
func query() []byte {
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{})
	b.EnableCompression()
	check(b.StartQuestions())
	check(b.Question(dnsmessage.Question{
		Name: dnsmessage.MustNewName(serviceName), Type: dnsmessage.TypePTR, Class: dnsmessage.ClassINET,
	}))
	return finish(b)
}

// announcement returns the packet that announces this node under the name instance. tag is
// the network tag, ips are the addresses of the interface, and each of addrs ends in
// /p2p/ID. A ttl of zero means that the node leaves.
func announcement(instance, tag string, ips []netip.Addr, addrs []ma.Multiaddr, ttl uint32) []byte {
	service := dnsmessage.MustNewName(serviceName)
	name := dnsmessage.MustNewName(instance + "." + serviceName)
	host := dnsmessage.MustNewName(instance + ".local.")
	header := func(n dnsmessage.Name, class dnsmessage.Class) dnsmessage.ResourceHeader {
		return dnsmessage.ResourceHeader{Name: n, Class: class, TTL: ttl}
	}
	texts := []string{tag}
	var port uint16
	for _, a := range addrs {
		text := dnsaddrPrefix + a.String()
		// A TXT string has at most 255 bytes, so a longer address is left out. So
		// are addresses after the first maxAddrs; texts has one string more than
		// that, the tag.
		if len(text) > 255 || len(texts) > maxAddrs {
			continue
		}
		texts = append(texts, text)
		if port == 0 {
			port = portOf(a)
		}
	}
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{Response: true, Authoritative: true})
	b.EnableCompression()
	check(b.StartAnswers())
	check(b.PTRResource(header(service, dnsmessage.ClassINET), dnsmessage.PTRResource{PTR: name}))
	check(b.StartAdditionals())
	// libp2p itself reads only the TXT record, but general mDNS resolvers also need the
	// SRV record and the address records.
	check(b.SRVResource(header(name, cacheFlush), dnsmessage.SRVResource{Port: port, Target: host}))
	check(b.TXTResource(header(name, cacheFlush), dnsmessage.TXTResource{TXT: texts}))
	for _, ip := range ips {
		if ip.Is4() {
			check(b.AResource(header(host, cacheFlush), dnsmessage.AResource{A: ip.As4()}))
		} else {
			check(b.AAAAResource(header(host, cacheFlush), dnsmessage.AAAAResource{AAAA: ip.As16()}))
		}
	}
	return finish(b)
}

// portOf returns the port of a, an address that forLAN accepts.
func portOf(a ma.Multiaddr) uint16 {
	ap, _ := addr.AddrPort(a)
	return ap.Port()
}

func finish(b dnsmessage.Builder) []byte {
	packet, err := b.Finish()
	check(err)
	return packet
}

// check panics if the builder fails. It fails only for an invalid name or for calls in the
// wrong order, and both would be an error in this file.
func check(err error) {
	if err != nil {
		panic(err)
	}
}

// parsePacket parses a packet from the local network. It reports whether the packet asks
// nodes to announce themselves, and returns the announced nodes that have the given network
// tag. Unknown records are skipped.
func parsePacket(packet []byte, tag string) (asked bool, nodes []peer.AddrInfo) {
	var p dnsmessage.Parser
	header, err := p.Start(packet)
	if err != nil {
		return false, nil
	}
	if !header.Response {
		for range maxRecords {
			q, err := p.Question()
			if err != nil {
				return false, nil
			}
			if strings.EqualFold(q.Name.String(), serviceName) && (q.Type == dnsmessage.TypePTR || q.Type == dnsmessage.TypeALL) {
				return true, nil
			}
		}
		return false, nil
	}
	if p.SkipAllQuestions() != nil {
		return false, nil
	}
	budget := maxRecords
	nodes = readTexts(&p, p.AnswerHeader, p.SkipAnswer, tag, &budget)
	if p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil {
		return false, nodes
	}
	return false, append(nodes, readTexts(&p, p.AdditionalHeader, p.SkipAdditional, tag, &budget)...)
}

// readTexts returns the nodes in the TXT records of one section of the packet p that have
// the network tag tag. next reads the header of the next record of that section, and skip
// skips the record. budget is the number of records that may still be read from the packet;
// readTexts reduces it.
func readTexts(p *dnsmessage.Parser, next func() (dnsmessage.ResourceHeader, error), skip func() error, tag string, budget *int) (nodes []peer.AddrInfo) {
	for ; *budget > 0; *budget-- {
		h, err := next()
		if err != nil {
			return nodes
		}
		name := strings.ToLower(h.Name.String())
		// A TTL of zero means that the node leaves.
		if h.Type != dnsmessage.TypeTXT || h.TTL == 0 || !strings.HasSuffix(name, "."+serviceName) {
			if skip() != nil {
				return nodes
			}
			continue
		}
		txt, err := p.TXTResource()
		if err != nil {
			return nodes
		}
		if info, ok := readNode(txt.TXT, tag); ok {
			nodes = append(nodes, info)
		}
	}
	return nodes
}

// readNode returns the node in the strings of one TXT record. It reports false if the
// strings have another network tag or no address. Addresses with another id than that of
// the first address are skipped.
func readNode(texts []string, tag string) (info peer.AddrInfo, ok bool) {
	tagged := false
	for _, t := range texts {
		if t == tag {
			tagged = true
			continue
		}
		text, ok := strings.CutPrefix(t, dnsaddrPrefix)
		if !ok || len(info.Addrs) == maxAddrs {
			continue // the string is not an address, or the node has more addresses than needed
		}
		whole, err := ma.NewMultiaddr(text)
		if err != nil {
			continue
		}
		at, id := peer.SplitAddr(whole)
		if len(at) == 0 || id == "" || info.ID != "" && info.ID != id {
			continue
		}
		info.ID = id
		info.Addrs = append(info.Addrs, at)
	}
	return info, tagged && info.ID != ""
}
