package seed

import (
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/internal/addr"
	"github.com/go-smokesignal/smokesignal/internal/frame"
	"github.com/go-smokesignal/smokesignal/internal/protocol"
	"github.com/go-smokesignal/smokesignal/internal/seedaddr"
)

const (
	ticketWord    = "smoke"
	ticketVersion = "1"
	// maxPlaces bounds the places in a ticket. A place is an address, or TCP and QUIC
	// on one port, of the ticket's node. A node that uses the ticket tries all places
	// at once.
	maxPlaces = 8
	// maxPlaceBytes bounds the bytes of one place. No transport needs more.
	maxPlaceBytes = 256
	// maxTicket bounds the characters of a ticket. Eight places of maxPlaceBytes fit.
	maxTicket = 4096
)

// ticketLetters encodes the bytes of a ticket. None of its letters has a meaning in a shell, a
// URL or a chat, and none looks like another one.
var ticketLetters = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// A Ticket holds all that a program needs to join a network through one of its nodes. Encode
// returns it as one string, which can be pasted into a chat or a command line and used as a
// seed; ParseTicket reads that string. docs/wire.md describes its form.
type Ticket struct {
	// ID is the id of the node. A node with another id is not accepted at the addresses.
	ID peer.ID
	// Network is the name of the node's network. Empty means the network named "default".
	Network string
	// Addrs are the addresses of the node, the most reachable first. A /p2p/ID at the end of
	// an address is ignored.
	Addrs []ma.Multiaddr
}

// Encode returns the ticket as a string. The string holds at most eight places; TCP and QUIC on
// one port are one place. Addresses that cannot be dialed are left out, and so are loopback
// addresses if there are others. Encode fails if no address remains, if the ID is invalid, or if
// the name of the network has more than 128 bytes or is not valid UTF-8.
func (t Ticket) Encode() (string, error) {
	id, err := peer.IDFromBytes([]byte(t.ID))
	if err != nil {
		return "", fmt.Errorf("ticket: the id is invalid: %w", err)
	}
	if err := checkNetwork(t.Network); err != nil {
		return "", fmt.Errorf("ticket: %w", err)
	}
	endpoints, others := places(t.Addrs)
	if len(endpoints)+len(others) == 0 {
		return "", errors.New("ticket: the node has no address that another can dial")
	}
	b := frame.AppendBytes(nil, 1, shortID(id))
	if t.Network != protocol.DefaultNetwork {
		b = frame.AppendBytes(b, 2, t.Network)
	}
	for _, ap := range endpoints {
		b = frame.AppendBytes(b, 3, binary.BigEndian.AppendUint16(ap.Addr().AsSlice(), ap.Port()))
	}
	for _, a := range others {
		b = frame.AppendBytes(b, 4, a.Bytes())
	}
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	return ticketWord + ticketVersion + ticketLetters.EncodeToString(b), nil
}

// places returns the places of a ticket for addrs, at most maxPlaces together. An IP address
// with a port on which there are both TCP and QUIC goes to endpoints, where it stands for both;
// every other address goes to others.
func places(addrs []ma.Multiaddr) (endpoints []netip.AddrPort, others []ma.Multiaddr) {
	var usable, loopbacks []ma.Multiaddr
	for _, a := range addrs {
		a, _ := peer.SplitAddr(a)
		if len(a) == 0 || len(a.Bytes()) > maxPlaceBytes || seedaddr.CheckTransport(a) != nil || ma.Contains(usable, a) || ma.Contains(loopbacks, a) {
			continue
		}
		if at, _ := addr.AddrPort(a); at.Addr().IsLoopback() {
			loopbacks = append(loopbacks, a)
		} else {
			usable = append(usable, a)
		}
	}
	if len(usable) == 0 {
		usable = loopbacks
	}
	for _, a := range usable {
		ap, ok := addr.AddrPort(a)
		both := ok && isPlain(a)
		if both {
			for _, b := range hostPort(ap).Addrs {
				both = both && ma.Contains(usable, b)
			}
		}
		switch {
		case both && slices.Contains(endpoints, ap), len(endpoints)+len(others) == maxPlaces:
		case both:
			endpoints = append(endpoints, ap)
		default:
			others = append(others, a)
		}
	}
	return endpoints, others
}

// isPlain reports whether a is TCP or QUIC at an IP address, without a further protocol such as
// WebSocket.
func isPlain(a ma.Multiaddr) bool {
	return len(a) == 2 && seedaddr.Is(a[1], ma.P_TCP) || len(a) == 3 && seedaddr.Is(a[2], ma.P_QUIC_V1)
}

// shortID returns the bytes of an id for a ticket. Nearly all ids contain an Ed25519 key; then
// it returns only the key, which is shorter. longID is the inverse.
func shortID(id peer.ID) []byte {
	if key, err := id.ExtractPublicKey(); err == nil {
		if key, ok := key.(*crypto.Ed25519PublicKey); ok {
			if raw, err := key.Raw(); err == nil {
				return raw
			}
		}
	}
	return []byte(id)
}

func longID(b []byte) (peer.ID, error) {
	if len(b) != ed25519KeyBytes {
		return peer.IDFromBytes(b)
	}
	key, err := crypto.UnmarshalEd25519PublicKey(b)
	if err != nil {
		return "", err
	}
	return peer.IDFromPublicKey(key)
}

const ed25519KeyBytes = 32

func checkNetwork(name string) error {
	switch {
	case len(name) > protocol.MaxNetwork:
		return fmt.Errorf("the name of the network has %d bytes, at most %d are allowed", len(name), protocol.MaxNetwork)
	case !utf8.ValidString(name):
		return errors.New("the name of the network is not valid UTF-8")
	}
	return nil
}

// ParseTicket parses a string that Encode has returned, in small or capital letters. Addresses
// that this version cannot dial are left out. The error is a sentence that quotes the beginning
// and the end of the text. It says whether the text is damaged, so that a user should copy it
// again, or has the form of another version.
func ParseTicket(text string) (Ticket, error) {
	t, err := parseTicket(text)
	if err != nil {
		return Ticket{}, fmt.Errorf("ticket %q: %w", Shorten(text), err)
	}
	return t, nil
}

func parseTicket(text string) (t Ticket, err error) {
	b, err := openTicket(text)
	if err != nil {
		return t, err
	}
	t.Network = protocol.DefaultNetwork
	places := 0
	for f, err := range frame.Fields(b) {
		if err != nil {
			return t, fmt.Errorf("it is malformed: %w", err)
		}
		switch f.Num {
		case 1:
			if t.ID, err = longID(f.Bytes); err != nil {
				return t, fmt.Errorf("the id in it is invalid: %w", err)
			}
		case 2:
			t.Network = string(f.Bytes)
			if err := checkNetwork(t.Network); err != nil || t.Network == "" {
				return t, errors.New("the name of the network in it is invalid")
			}
		case 3, 4:
			if places < maxPlaces {
				t.Addrs = append(t.Addrs, readPlace(f)...)
				places++
			}
		}
	}
	switch {
	case t.ID == "":
		return t, errors.New("there is no id in it")
	case len(t.Addrs) == 0:
		return t, errors.New("there is no address in it that this node can dial")
	}
	return t, nil
}

// openTicket decodes the text of a ticket, verifies its checksum, and returns the protobuf
// message in it.
func openTicket(text string) ([]byte, error) {
	damaged := errors.New("it is damaged, a letter is wrong or missing; copy it again")
	word, rest := text[:min(len(ticketWord), len(text))], text[min(len(ticketWord), len(text)):]
	switch {
	case !strings.EqualFold(word, ticketWord) || rest == "":
		return nil, fmt.Errorf("it does not begin with %s%s, as tickets do", ticketWord, ticketVersion)
	case !strings.HasPrefix(rest, ticketVersion):
		return nil, fmt.Errorf("it is of another version: it begins with %q, not with %s%s", text[:len(ticketWord)+1], ticketWord, ticketVersion)
	case len(text) > maxTicket:
		return nil, fmt.Errorf("it has %d characters, tickets have %d at most", len(text), maxTicket)
	}
	rest = strings.ToLower(rest[len(ticketVersion):])
	b, err := ticketLetters.DecodeString(rest)
	// Base32 ignores some bits of the last letter, so only a comparison finds a wrong last
	// letter.
	if err != nil || ticketLetters.EncodeToString(b) != rest || len(b) < crc32.Size {
		return nil, damaged
	}
	message, sum := b[:len(b)-crc32.Size], binary.BigEndian.Uint32(b[len(b)-crc32.Size:])
	if crc32.ChecksumIEEE(message) != sum {
		return nil, damaged
	}
	return message, nil
}

// readPlace returns the addresses of one place in a ticket. It returns none if this version
// cannot dial the place.
func readPlace(f frame.Field) []ma.Multiaddr {
	if f.Num == 3 {
		if len(f.Bytes) < 2 {
			return nil
		}
		at := len(f.Bytes) - 2
		ip, ok := netip.AddrFromSlice(f.Bytes[:at])
		port := binary.BigEndian.Uint16(f.Bytes[at:])
		if !ok || seedaddr.CheckIP(ip) != nil || port == 0 {
			return nil
		}
		return hostPort(netip.AddrPortFrom(ip, port)).Addrs
	}
	a, err := ma.NewMultiaddrBytes(f.Bytes)
	if err != nil || len(a) == 0 || seedaddr.CheckTransport(a) != nil {
		return nil
	}
	return []ma.Multiaddr{a}
}

// Shorten returns the beginning and the end of a text that looks like a ticket, since a ticket
// is too long for an error or a log line. It returns any other text unchanged.
func Shorten(text string) string {
	const begin, end = 12, 4
	if !looksLikeTicket(text) || len(text) <= begin+end+1 {
		return text
	}
	return text[:begin] + "…" + text[len(text)-end:]
}

// looksLikeTicket reports whether text is probably meant as a ticket: it begins like one, and
// has no colon or dot, as a host name with or without a port would have.
func looksLikeTicket(text string) bool {
	n := len(ticketWord)
	return len(text) > n && strings.EqualFold(text[:n], ticketWord) &&
		text[n] >= '0' && text[n] <= '9' && !strings.ContainsAny(text, ":.")
}

// parseTicket fills in s from the text of a ticket. Each place of the ticket becomes a target of
// its own, since one may answer while another does not, or belongs to another node by now.
func (s *Seed) parseTicket(text string) error {
	t, err := parseTicket(text)
	if err != nil {
		return err
	}
	s.id, s.network = t.ID, t.Network
	for _, a := range t.Addrs {
		next := newTarget(a, t.ID)
		if last := len(s.targets) - 1; last >= 0 && next.At.IsValid() && next.At == s.targets[last].At {
			s.targets[last].Addrs = append(s.targets[last].Addrs, a) // QUIC on the same port as TCP
			continue
		}
		s.targets = append(s.targets, next)
	}
	return nil
}
