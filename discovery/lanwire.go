package discovery

import (
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"strings"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"golang.org/x/net/dns/dnsmessage"
)

// The form is that of the libp2p specification (discovery/mdns.md), under the
// service name libp2p uses everywhere, so nodes of other programs see ours. One
// TXT string more tells ours apart, so that we dial no others: networkTag. It is
// a digest, as the name of a network is nobody's business.
const (
	lanService    = "_p2p._udp.local."
	lanTTL        = 120 // seconds, RFC 6762 section 10
	dnsaddrPrefix = "dnsaddr="
	networkPrefix = "smokesignal="
	// maxLANRecords bounds the records read of one packet, maxLANAddrs the
	// addresses announced and those read of one node.
	maxLANRecords = 64
	maxLANAddrs   = 8
	// cacheFlush marks records of which there is only one (section 10.2).
	cacheFlush = dnsmessage.ClassINET | 1<<15
)

// networkTag returns the TXT string that all nodes of a network announce.
func networkTag(network string) string {
	sum := sha256.Sum256([]byte("smokesignal/" + network))
	return networkPrefix + hex.EncodeToString(sum[:8])
}

// lanQuery returns the packet that asks who is there.
func lanQuery() []byte {
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{})
	b.EnableCompression()
	check(b.StartQuestions())
	check(b.Question(dnsmessage.Question{
		Name: dnsmessage.MustNewName(lanService), Type: dnsmessage.TypePTR, Class: dnsmessage.ClassINET,
	}))
	return finish(b)
}

// lanAnnouncement returns the packet that says who is here: instance is a
// random label (the specification wants no meaning in it), ips are those of the
// interface, addrs have /p2p/ID. A ttl of zero says good-bye.
func lanAnnouncement(instance, tag string, ips []netip.Addr, addrs []ma.Multiaddr, ttl uint32) []byte {
	service := dnsmessage.MustNewName(lanService)
	name := dnsmessage.MustNewName(instance + "." + lanService)
	host := dnsmessage.MustNewName(instance + ".local.")
	header := func(n dnsmessage.Name, class dnsmessage.Class) dnsmessage.ResourceHeader {
		return dnsmessage.ResourceHeader{Name: n, Class: class, TTL: ttl}
	}
	texts := []string{tag}
	var port uint16
	for _, a := range addrs {
		text := dnsaddrPrefix + a.String()
		if len(text) > 255 || len(texts) > maxLANAddrs {
			continue
		}
		texts = append(texts, text)
		if port == 0 {
			port = addrPort(a).Port()
		}
	}
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{Response: true, Authoritative: true})
	b.EnableCompression()
	check(b.StartAnswers())
	check(b.PTRResource(header(service, dnsmessage.ClassINET), dnsmessage.PTRResource{PTR: name}))
	check(b.StartAdditionals())
	// libp2p reads nothing but TXT, but the resolvers beneath want the rest.
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

func finish(b dnsmessage.Builder) []byte {
	packet, err := b.Finish()
	check(err)
	return packet
}

// check panics: the builder fails only on names and orders that are fixed here.
func check(err error) {
	if err != nil {
		panic(err)
	}
}

// parseLAN reads a packet of a stranger: whether it asks for nodes, and the
// nodes with our tag that it announces. Whatever is not understood is skipped.
func parseLAN(packet []byte, tag string) (asked bool, nodes []peer.AddrInfo) {
	var p dnsmessage.Parser
	header, err := p.Start(packet)
	if err != nil {
		return false, nil
	}
	if !header.Response {
		for range maxLANRecords {
			q, err := p.Question()
			if err != nil {
				return false, nil
			}
			if strings.EqualFold(q.Name.String(), lanService) && (q.Type == dnsmessage.TypePTR || q.Type == dnsmessage.TypeALL) {
				return true, nil
			}
		}
		return false, nil
	}
	if p.SkipAllQuestions() != nil {
		return false, nil
	}
	budget := maxLANRecords
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
		if h.Type != dnsmessage.TypeTXT || h.TTL == 0 || !strings.HasSuffix(name, "."+lanService) {
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

// readNode reads the strings of one TXT record; the record of one node names
// one id.
func readNode(texts []string, tag string) (info peer.AddrInfo, ok bool) {
	tagged := false
	for _, t := range texts {
		if t == tag {
			tagged = true
			continue
		}
		text, ok := strings.CutPrefix(t, dnsaddrPrefix)
		if !ok || len(info.Addrs) == maxLANAddrs {
			continue
		}
		whole, err := ma.NewMultiaddr(text)
		if err != nil {
			continue
		}
		addr, id := peer.SplitAddr(whole)
		if len(addr) == 0 || id == "" || info.ID != "" && info.ID != id {
			continue
		}
		info.ID = id
		info.Addrs = append(info.Addrs, addr)
	}
	return info, tagged && info.ID != ""
}
