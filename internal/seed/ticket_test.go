package seed

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/internal/protocol"
	"github.com/go-smokesignal/smokesignal/internal/vectors"
)

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

func encode(t testing.TB, ticket Ticket) string {
	t.Helper()
	text, err := ticket.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// seal makes the text of a ticket out of any message.
func seal(message []byte) string {
	b := binary.BigEndian.AppendUint32(slices.Clone(message), crc32.ChecksumIEEE(message))
	return ticketWord + ticketVersion + ticketLetters.EncodeToString(b)
}

// A parsed ticket has the id, the network and the addresses that were encoded.
func TestTicketKeepsAddressesIDAndNetwork(t *testing.T) {
	const p2p = "/p2p/" + testID
	var many, first8 []string
	for i := range 10 {
		many = append(many, fmt.Sprintf("/ip4/192.168.2.%d/tcp/8495", i), fmt.Sprintf("/ip4/192.168.2.%d/udp/8495/quic-v1", i))
	}
	first8 = many[:16]
	rsa := mustID(t, "QmcgpsyWgH8Y8ajJz1Cu72KnS5uo2Aa2LpzU7kinSupNKC") // the hash of a key
	for _, c := range []struct {
		name    string
		id      peer.ID
		network string
		in, out []string
		most    int // characters
	}{
		{name: "a port", in: []string{"/ip4/192.168.2.100/tcp/8495" + p2p, "/ip4/192.168.2.100/udp/8495/quic-v1" + p2p},
			out: []string{"/ip4/192.168.2.100/tcp/8495", "/ip4/192.168.2.100/udp/8495/quic-v1"}, most: 80},
		{name: "a network", network: "kitchen", in: []string{"/ip4/192.168.2.100/tcp/8495"}, out: []string{"/ip4/192.168.2.100/tcp/8495"}, most: 100},
		{name: "another kind of id", id: rsa, in: []string{"/ip4/192.168.2.100/tcp/8495"}, out: []string{"/ip4/192.168.2.100/tcp/8495"}},
		{name: "IPv6, names, other transports", in: []string{
			"/ip6/2001:db8::1/tcp/1", "/dns/seed.example.org/tcp/8495", "/ip6/2001:db8::1/udp/1/quic-v1",
			"/dns4/seed.example.org/tcp/443/tls/sni/seed.example.org/ws", "/ip4/10.0.0.1/udp/2/quic-v1"},
			out: []string{"/ip6/2001:db8::1/tcp/1", "/ip6/2001:db8::1/udp/1/quic-v1", "/dns/seed.example.org/tcp/8495",
				"/dns4/seed.example.org/tcp/443/tls/sni/seed.example.org/ws", "/ip4/10.0.0.1/udp/2/quic-v1"}},
		{name: "what others cannot dial", in: []string{
			"/ip4/10.0.0.1/tcp/1", "/ip4/10.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/1", "/ip6/::1/tcp/1", "/ip6/fe80::1/tcp/1", "/ip4/10.0.0.1/tcp/0",
			"/ip4/0.0.0.0/tcp/1", "/ip4/10.0.0.1/tcp/1" + p2p + "/p2p-circuit", "/ip4/10.0.0.1/tcp/1/ws/http-path/" + strings.Repeat("a", 300), p2p},
			out: []string{"/ip4/10.0.0.1/tcp/1"}},
		{name: "loopback alone", in: []string{"/ip4/127.0.0.1/tcp/1", "/ip6/::1/tcp/1"}, out: []string{"/ip4/127.0.0.1/tcp/1", "/ip6/::1/tcp/1"}},
		{name: "eight places", in: many, out: first8, most: 170},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.id == "" {
				c.id = mustID(t, testID)
			}
			text := encode(t, Ticket{ID: c.id, Network: c.network, Addrs: addrs(c.in...)})
			if c.most > 0 && len(text) > c.most {
				t.Errorf("%d characters, want %d at most: %s", len(text), c.most, text)
			}
			if strings.Trim(text, "abcdefghijklmnopqrstuvwxyz1234567") != "" {
				t.Errorf("%q has other characters than letters and digits", text)
			}
			want := Ticket{c.id, max(c.network, ""), addrs(c.out...)}
			if want.Network == "" {
				want.Network = protocol.DefaultNetwork
			}
			for _, text := range []string{text, strings.ToUpper(text)} {
				got, err := ParseTicket(text)
				if err != nil {
					t.Fatal(err)
				}
				if !reflect.DeepEqual(got, want) {
					t.Errorf("%s:\n%v, want\n%v", text, got, want)
				}
				s, err := Parse(text)
				if err != nil {
					t.Fatal(err)
				}
				if s.String() != text || s.ID() != c.id || s.Network() != want.Network {
					t.Errorf("as a seed: %s, %s, %s", s, s.ID(), s.Network())
				}
			}
		})
	}
	for name, bad := range map[string]Ticket{
		"address": {ID: mustID(t, testID), Addrs: addrs("/ip6/fe80::1/tcp/1")},
		"id":      {ID: "x", Addrs: addrs("/ip4/10.0.0.1/tcp/1")},
		"128":     {ID: mustID(t, testID), Network: strings.Repeat("x", 129), Addrs: addrs("/ip4/10.0.0.1/tcp/1")},
		"UTF-8":   {ID: mustID(t, testID), Network: "\xff", Addrs: addrs("/ip4/10.0.0.1/tcp/1")},
	} {
		if text, err := bad.Encode(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("no %s: %s, %v", name, text, err)
		}
	}
}

// People copy tickets by hand, and chats cut them off. A ticket is refused if one letter is wrong,
// missing, too many, or swapped with the next.
func TestMistypedTicketIsRefused(t *testing.T) {
	text := encode(t, Ticket{ID: mustID(t, testID), Network: "kitchen", Addrs: addrs("/ip4/192.168.2.100/tcp/8495")})
	refused := func(what, wrong string) {
		t.Helper()
		s, err := Parse(wrong)
		if err == nil {
			t.Fatalf("%s: %s was parsed as %v", what, wrong, s)
		}
		if strings.Contains(err.Error(), "\n") || len(err.Error()) > 200 {
			t.Errorf("%s: not one short line: %q", what, err)
		}
	}
	const begin = len(ticketWord + ticketVersion)
	for i := range len(text) {
		refused("cut off", text[:i])
		refused("missing", text[:i]+text[i+1:])
		for _, c := range "abcdefghijklmnopqrstuvwxyz0123456789-" {
			if byte(c) != text[i] {
				refused("wrong", text[:i]+string(c)+text[i+1:])
			}
			if i >= begin && !(byte(c) == text[i]) {
				refused("too much", text[:i]+string(c)+text[i:])
			}
		}
		if i+1 < len(text) && text[i] != text[i+1] {
			refused("swapped", text[:i]+string(text[i+1])+string(text[i])+text[i+2:])
		}
	}
	for _, c := range "abcdefghijklmnopqrstuvwxyz234567" {
		refused("too much at the end", text+string(c))
	}
}

// The error of a bad ticket names the mistake in one sentence.
func TestErrorOfABadTicketIsOneSentence(t *testing.T) {
	good := encode(t, Ticket{ID: mustID(t, testID), Addrs: addrs("/ip4/192.168.2.100/tcp/8495")})
	key := "\x0a\x20" + strings.Repeat("k", 32)
	at := "\x1a\x06\x0a\x00\x00\x01\x21\x2f"
	for _, c := range []struct{ text, want string }{
		{good[:40], "damaged"},
		{good + "!", "damaged"},
		{"smoke1", "damaged"},
		{strings.Replace(good, "smoke1", "smoke2", 1), `another version: it begins with "smoke2"`},
		{"smoke1" + strings.Repeat("a", 5000), "5006 characters"},
		{seal([]byte("\x0a")), "malformed"},
		{seal([]byte(at)), "no id"},
		{seal([]byte("\x0a\x03abc" + at)), "the id"},
		{seal([]byte(key)), "no address"},
		{seal([]byte(key + "\x1a\x06\x0a\x00\x00\x01\x00\x00")), "no address"}, // port 0
		{seal([]byte(key + "\x1a\x06\x00\x00\x00\x00\x21\x2f")), "no address"}, // every address
		{seal([]byte(key + "\x1a\x01\x0a")), "no address"},                     // too short
		{seal([]byte(key + "\x22\x02\xff\x7f")), "no address"},                 // no multiaddr
		{seal([]byte(key + at + "\x12\x01\xff")), "name of the network"},
	} {
		_, seed := Parse(c.text)
		_, ticket := ParseTicket(c.text)
		for begin, err := range map[string]error{"seed ": seed, "ticket ": ticket} {
			if err == nil {
				t.Errorf("%s was accepted", c.text)
			} else if !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), begin) || len(err.Error()) > 200 {
				t.Errorf("%s: %q, want one line with %q in it", c.text, err, c.want)
			}
		}
	}
	for _, text := range []string{"", "smoke", "10.0.0.1:8495", "smok1abc", "🚬"} {
		if _, err := ParseTicket(text); err == nil || !strings.Contains(err.Error(), "does not begin with smoke1") {
			t.Errorf("%q: %v", text, err)
		}
	}
	// Nobody makes a node knock at more than eight doors.
	b := []byte(key)
	for i := range 20 {
		b = append(b, "\x1a\x06\x0a\x00\x00"+string(rune(i))+"\x21\x2f"...)
	}
	if s := mustParse(t, seal(b)); len(s.targets) > maxPlaces {
		t.Errorf("%d places", len(s.targets))
	}
	// Hosts may be called that.
	if s := mustParse(t, "smoke1:8495"); s.name != "smoke1" {
		t.Errorf("%+v", s)
	}
	if _, err := Parse("smoke1.example.org"); err == nil || !strings.Contains(err.Error(), "port is missing") {
		t.Error(err)
	}
}

// Any text is either refused or parsed into a ticket without a panic.
func FuzzParseTicket(f *testing.F) {
	id := mustID(f, testID)
	for _, t := range []Ticket{
		{ID: id, Addrs: addrs("/ip4/192.168.2.100/tcp/8495", "/ip4/192.168.2.100/udp/8495/quic-v1", "/ip6/::2/tcp/1")},
		{ID: id, Network: "kitchen", Addrs: addrs("/dns/seed.example.org/tcp/443/wss")},
	} {
		b, err := openTicket(encode(f, t))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(encode(f, t), b)
	}
	f.Fuzz(func(t *testing.T, text string, message []byte) {
		for _, text := range []string{text, seal(message)} {
			ticket, err := ParseTicket(text)
			if err != nil {
				if strings.Contains(err.Error(), "\n") || len(err.Error()) > 500 {
					t.Fatalf("not one short line: %q", err)
				}
				continue
			}
			if len(ticket.Addrs) > 2*maxPlaces {
				t.Fatalf("%d addresses", len(ticket.Addrs))
			}
			s, err := Parse(text)
			if err != nil || s.ID() != ticket.ID || len(s.targets) == 0 || len(s.targets) > maxPlaces {
				t.Fatalf("%s as a seed: %+v, %v", text, s, err)
			}
			again, err := ticket.Encode()
			if err != nil {
				continue // too long a place
			}
			if back, err := ParseTicket(again); err != nil || back.ID != ticket.ID || back.Network != ticket.Network {
				t.Fatalf("%v came back as %v, %v", ticket, back, err)
			}
		}
	})
}

// docs/vectors/ticket.json holds the contents of tickets, with the text as one of the fields.
func TestTicketVectors(t *testing.T) {
	type fields struct {
		Text    string   `json:"text"`
		ID      string   `json:"id"`
		Network string   `json:"network"`
		Addrs   []string `json:"addrs"`
	}
	vectors.Test(t, "ticket.json", func(b []byte) (fields, error) {
		text := ticketWord + ticketVersion + ticketLetters.EncodeToString(b)
		ticket, err := ParseTicket(text)
		if err != nil {
			return fields{}, err
		}
		f := fields{Text: text, ID: ticket.ID.String(), Network: ticket.Network}
		for _, a := range ticket.Addrs {
			f.Addrs = append(f.Addrs, a.String())
		}
		return f, nil
	}, func(f fields) ([]byte, error) {
		text, err := Ticket{ID: mustID(t, f.ID), Network: f.Network, Addrs: addrs(f.Addrs...)}.Encode()
		if err != nil {
			return nil, err
		}
		if text != f.Text {
			t.Errorf("encoded as %s, want %s", text, f.Text)
		}
		return ticketLetters.DecodeString(strings.TrimPrefix(text, ticketWord+ticketVersion))
	})
}
