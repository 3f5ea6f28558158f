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

// The packets have the form of the libp2p specification (discovery/mdns.md) and its service
// name, so other libp2p programs see our nodes. One more TXT string, the network tag, tells
// the nodes of one network from all others. It is a digest, since the name of a network is
// private.
const (
	serviceName   = "_p2p._udp.local."
	ttlSeconds    = 120 // seconds, RFC 6762 section 10
	dnsaddrPrefix = "dnsaddr="
	networkPrefix = "smokesignal="
	// maxRecords bounds the records read from one packet. maxAddrs bounds the addresses
	// announced, and those read from one node.
	maxRecords = 64
	maxAddrs   = 8
	// cacheFlush marks records that only their sender has (RFC 6762 section 10.2).
	cacheFlush = dnsmessage.ClassINET | 1<<15
)

// networkTag returns the TXT string that all nodes of a network announce.
func networkTag(network string) string {
	sum := sha256.Sum256([]byte("smokesignal/" + network))
	return networkPrefix + hex.EncodeToString(sum[:8])
}

// query returns the packet that asks for nodes.
func query() []byte {
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{})
	b.EnableCompression()
	check(b.StartQuestions())
	check(b.Question(dnsmessage.Question{
		Name: dnsmessage.MustNewName(serviceName), Type: dnsmessage.TypePTR, Class: dnsmessage.ClassINET,
	}))
	return finish(b)
}

// announcement returns the packet that announces this node. instance is a random label, in
// which the specification wants no meaning. ips are those of the interface, and addrs end
// in /p2p/ID. A ttl of zero means that the node leaves.
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
		// A TXT string has at most 255 bytes.
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
	// libp2p itself reads only TXT, but the resolvers below it need the rest.
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

// check panics on an error: the builder fails only on wrong names and on calls in a wrong
// order, and both are fixed here.
func check(err error) {
	if err != nil {
		panic(err)
	}
}

// parsePacket reads a packet of a stranger. It reports whether the packet asks for nodes,
// and returns the nodes with our tag that it announces. Unknown records are skipped.
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

// readTexts reads the TXT records of one section.
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

// readNode reads the strings of one TXT record, which belongs to one node. Addresses with
// another id than the first are skipped.
func readNode(texts []string, tag string) (info peer.AddrInfo, ok bool) {
	tagged := false
	for _, t := range texts {
		if t == tag {
			tagged = true
			continue
		}
		text, ok := strings.CutPrefix(t, dnsaddrPrefix)
		if !ok || len(info.Addrs) == maxAddrs {
			continue
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
