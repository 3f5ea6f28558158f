package discovery

import (
	"context"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	madns "github.com/multiformats/go-multiaddr-dns"

	"github.com/go-smokesignal/smokesignal/internal/frame"
	"github.com/go-smokesignal/smokesignal/internal/seed"
)

const testID = "12D3KooWGzxzKZYveHXtpG6AsrUJBcWxHBFS2HsEoGTxrMLvKXtf"

func addrs(texts ...string) (list []ma.Multiaddr) {
	for _, t := range texts {
		list = append(list, ma.StringCast(t))
	}
	return list
}

func mustID(t testing.TB, text string) peer.ID {
	t.Helper()
	id, err := peer.Decode(text)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// ticketOf makes a ticket with these addresses. Unlike Encode, it keeps a loopback address beside a
// name.
func ticketOf(t *testing.T, id peer.ID, at ...string) *seed.Seed {
	t.Helper()
	b := frame.AppendBytes(nil, 1, string(id))
	for _, a := range addrs(at...) {
		b = frame.AppendBytes(b, 4, a.Bytes())
	}
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	letters := base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)
	return mustParse(t, "smoke1"+letters.EncodeToString(b))
}

func tcpAddr(t *testing.T, h corehost.Host) string {
	return "/ip4/127.0.0.1/tcp/" + portOf(t, h, ma.P_TCP)
}

// One place in the ticket is silent, one refuses, one belongs to another node by now, and one is an
// unknown name. The right place is found at once.
func TestFindThroughATicket(t *testing.T) {
	t.Parallel()
	there, other := newHost(t, "/ip4/127.0.0.1/tcp/0"), newHost(t, "/ip4/127.0.0.1/tcp/0")
	h := newHost(t, "/ip4/127.0.0.1/tcp/0")
	_, silent, _ := net.SplitHostPort(serveTCP(t, func(c net.Conn) { io.Copy(io.Discard, c) }))
	refused := closedPort(t)
	wrong := []string{
		"/ip4/127.0.0.1/tcp/" + silent,
		"/ip4/127.0.0.1/tcp/" + refused, "/ip4/127.0.0.1/udp/" + refused + "/quic-v1",
		tcpAddr(t, other),
		tcpAddr(t, h), // its own
		"/dns4/unknown.test/tcp/8495",
	}
	s := ticketOf(t, there.ID(), append(wrong, tcpAddr(t, there))...)
	s.DNS = slowDNS{}
	start := time.Now()
	info, err := findSeed(t.Context(), h, s)
	if err != nil || info.ID != there.ID() || len(info.Addrs) != 1 || info.Addrs[0].String() != tcpAddr(t, there) {
		t.Fatalf("found %v, %v, want %s", info, err, there.ID())
	}
	if d := time.Since(start); d > 3*time.Second {
		t.Errorf("waited %v for what was wrong", d)
	}
	wantNoJunk(t, h, there.ID())
}

// slowDNS knows no names, and says so only at the end of the context.
type slowDNS struct{}

func (slowDNS) LookupIPAddr(ctx context.Context, _ string) ([]net.IPAddr, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func (slowDNS) LookupTXT(ctx context.Context, _ string) ([]string, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// The error of a ticket that leads to no node names the cause.
func TestFindThroughATicketSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	other := newHost(t, "/ip4/127.0.0.1/tcp/0")
	h := newHost(t, "/ip4/127.0.0.1/tcp/0")
	refused := closedPort(t)
	plain := []string{"/ip4/127.0.0.1/tcp/" + refused, "/ip4/127.0.0.1/udp/" + refused + "/quic-v1"}
	id := mustID(t, testID)

	start := time.Now()
	err := wantFails(t, newHost(t), ticketOf(t, id, plain...), ErrUnreachable)
	if d := time.Since(start); !errors.Is(err, syscall.ECONNREFUSED) || d > 4*time.Second {
		t.Errorf("without a listener: %v after %v", err, d)
	}
	wantFails(t, newHost(t), ticketOf(t, id, append(plain, "/ip4/127.0.0.1/tcp/"+closedPort(t))...), syscall.ECONNREFUSED)

	// An answer, even of another peer, is reported rather than a refusal.
	for _, s := range []*seed.Seed{
		ticketOf(t, id, append(plain, tcpAddr(t, other))...),
		ticketOf(t, id, tcpAddr(t, other)),
	} {
		_, err = findSeed(t.Context(), h, s)
		if wrong, ok := errors.AsType[*WrongIDError](err); !ok || wrong.Actual != other.ID() || wrong.Expected != id {
			t.Errorf("somebody else there: %v", err)
		}
	}
	// The ticket of another node that had this node's address before is not a seed that
	// is this node: that would never be tried again.
	for _, s := range []*seed.Seed{
		ticketOf(t, id, tcpAddr(t, h)),
		mustParse(t, tcpAddr(t, h)+"/p2p/"+testID),
	} {
		_, err = findSeed(t.Context(), h, s)
		if wrong, ok := errors.AsType[*WrongIDError](err); !ok || wrong.Actual != h.ID() || errors.Is(err, ErrSelf) {
			t.Errorf("this node there: %v", err)
		}
	}
	wantFails(t, h, ticketOf(t, h.ID(), tcpAddr(t, h), "/ip4/10.0.0.1/tcp/1"), ErrSelf)

	s := ticketOf(t, id, "/dns4/a.test/tcp/1", "/dns4/b.test/tcp/1")
	s.DNS = &madns.MockResolver{}
	wantFails(t, newHost(t), s, ErrUnresolvable)
}

// A dnsaddr may stand for several nodes. One that answers is enough, and an unknown name among them
// does no harm.
func TestFindOneOfADnsaddr(t *testing.T) {
	t.Parallel()
	there := newHost(t, "/ip4/127.0.0.1/tcp/0")
	dns := strictDNS{madns.MockResolver{TXT: map[string][]string{
		"_dnsaddr.seeds.test": {
			"dnsaddr=/ip4/127.0.0.1/tcp/" + closedPort(t) + "/p2p/" + testID,
			"dnsaddr=/dnsaddr/gone.test",
			"dnsaddr=/dns4/unknown.test/tcp/8495",
			"something else",
			"dnsaddr=" + tcpAddr(t, there) + "/p2p/" + there.ID().String(),
		},
	}}}
	for _, text := range []string{"/dnsaddr/seeds.test", "/dnsaddr/seeds.test/p2p/" + there.ID().String()} {
		s := mustParse(t, text)
		s.DNS = dns
		wantFound(t, newHost(t), there, s)
	}
}

// strictDNS answers that a name does not exist, as name servers do.
type strictDNS struct{ madns.MockResolver }

func (s strictDNS) LookupIPAddr(ctx context.Context, name string) ([]net.IPAddr, error) {
	if s.IP[name] == nil {
		return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	}
	return s.MockResolver.LookupIPAddr(ctx, name)
}

func (s strictDNS) LookupTXT(ctx context.Context, name string) ([]string, error) {
	if s.TXT[name] == nil {
		return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	}
	return s.MockResolver.LookupTXT(ctx, name)
}

// The text of a SeedError shows the beginning and the end of a ticket.
func TestSeedErrorShortensATicket(t *testing.T) {
	t.Parallel()
	text, err := seed.Ticket{ID: mustID(t, testID), Addrs: addrs("/ip4/192.168.2.100/tcp/8495")}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	e := &SeedError{Seed: text, Err: ErrFull}
	if want := "seed " + text[:12] + "…" + text[len(text)-4:] + ": everybody is full"; e.Error() != want {
		t.Errorf("%q, want %q", e, want)
	}
}
