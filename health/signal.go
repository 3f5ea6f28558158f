package health

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/internal/frame"
)

// Limits of what is read, all checked before a signature is.
const (
	maxSignalBytes    = 2 << 10
	maxSignalAddrs    = 16
	maxIDBytes        = 64
	maxSignatureBytes = 512
)

// What is signed begins with one of these, so that a signature made for
// something else, or for the other kind of signal, is none here.
const (
	pingDomain = "smokesignal/health/1.0.0 ping\x00"
	pongDomain = "smokesignal/health/1.0.0 pong\x00"
)

// Numbers of fields. The signature is the last field of its message and covers
// all bytes before it, also those of fields this version does not know.
const (
	fieldPing = 1
	fieldPong = 2

	fieldTarget        = 1 // ping
	fieldAddrs         = 2
	fieldSender        = 3 // the origin of a ping, the answerer of a pong
	fieldSession       = 4
	fieldCounter       = 5
	fieldInterval      = 6 // ping, in milliseconds
	fieldPingSignature = 7
	fieldPingOrigin    = 6 // pong
	fieldPingSession   = 7
	fieldPingCounter   = 8
	fieldPongSignature = 9
)

// A session tells the runs of a node apart.
type session [8]byte

// A stamp names one signal: who sent it, in which of his runs, and which of
// that run. Counters rise, also from run to run, as they begin with the
// milliseconds of the clock.
type stamp struct {
	sender  peer.ID
	session session
	counter uint64
}

// A target says which node is meant: the one with this id or one that has one
// of these addresses.
type target struct {
	id peer.ID
	at []netip.AddrPort // sorted, no duplicates
}

func (t target) empty() bool { return t.id == "" && len(t.at) == 0 }

// covers reports whether whoever u asks for is also asked by t.
func (t target) covers(u target) bool {
	if u.id != "" && u.id != t.id {
		return false
	}
	for _, ap := range u.at {
		if !slices.Contains(t.at, ap) {
			return false
		}
	}
	return true
}

// key returns a text equal for equal targets.
func (t target) key() string {
	var b strings.Builder
	b.WriteString(string(t.id))
	for _, ap := range t.at {
		b.WriteByte(0)
		b.WriteString(ap.String())
	}
	return b.String()
}

// A ping asks the target to answer.
type ping struct {
	stamp
	target   target
	interval time.Duration // of the sender's watchdog
}

// A pong says that its sender is here, and where.
type pong struct {
	stamp
	at      []netip.AddrPort
	answers stamp
}

// seal returns p signed, as it goes over the links.
func (p ping) seal(key crypto.PrivKey) ([]byte, error) {
	var b []byte
	b = frame.AppendBytes(b, fieldTarget, string(p.target.id))
	b = appendAddrs(b, p.target.at)
	b = appendStamp(b, p.stamp)
	b = frame.AppendUint(b, fieldInterval, uint64(max(p.interval.Milliseconds(), 1)))
	return sealSignal(key, fieldPing, pingDomain, b, fieldPingSignature)
}

func (p pong) seal(key crypto.PrivKey) ([]byte, error) {
	var b []byte
	b = appendAddrs(b, p.at)
	b = appendStamp(b, p.stamp)
	b = frame.AppendBytes(b, fieldPingOrigin, string(p.answers.sender))
	b = frame.AppendBytes(b, fieldPingSession, p.answers.session[:])
	b = frame.AppendUint(b, fieldPingCounter, p.answers.counter)
	return sealSignal(key, fieldPong, pongDomain, b, fieldPongSignature)
}

func sealSignal(key crypto.PrivKey, kind int, domain string, unsigned []byte, field int) ([]byte, error) {
	sig, err := key.Sign(append([]byte(domain), unsigned...))
	if err != nil {
		return nil, fmt.Errorf("health: sign: %w", err)
	}
	message := frame.AppendMessage(unsigned, number(field), sig)
	return frame.AppendMessage(nil, number(kind), message), nil
}

func appendStamp(b []byte, s stamp) []byte {
	b = frame.AppendBytes(b, fieldSender, string(s.sender))
	b = frame.AppendBytes(b, fieldSession, s.session[:])
	return frame.AppendUint(b, fieldCounter, s.counter)
}

// appendAddrs writes addresses as multiaddrs over TCP. Only IP address and port
// count: a seed written as host:port is TCP and QUIC on one number.
func appendAddrs(b []byte, at []netip.AddrPort) []byte {
	for _, ap := range at[:min(len(at), maxSignalAddrs)] {
		ip := ap.Addr()
		code := ma.P_IP4
		if ip.Is6() {
			code = ma.P_IP6
		}
		raw := binary.AppendUvarint(nil, uint64(code))
		raw = append(raw, ip.AsSlice()...)
		raw = binary.AppendUvarint(raw, ma.P_TCP)
		raw = binary.BigEndian.AppendUint16(raw, ap.Port())
		b = frame.AppendMessage(b, fieldAddrs, raw)
	}
	return b
}

var errSignal = errors.New("health: malformed signal")

// A signal is a ping or a pong as received, not yet verified.
type signal struct {
	ping      *ping
	pong      *pong
	unsigned  []byte // with the domain in front
	signature []byte
}

// stamp returns who sent it.
func (s *signal) stamp() stamp {
	if s.ping != nil {
		return s.ping.stamp
	}
	return s.pong.stamp
}

// verified reports whether the sender named in it has signed it. The key must
// be inside the id, as Ed25519 keys are.
func (s *signal) verified() bool {
	key, err := s.stamp().sender.ExtractPublicKey()
	if err != nil {
		return false
	}
	ok, err := key.Verify(s.unsigned, s.signature)
	return err == nil && ok
}

// parseSignal reads what a neighbor sent. The result does not refer to b.
func parseSignal(b []byte) (*signal, error) {
	if len(b) > maxSignalBytes {
		return nil, fmt.Errorf("%w: %d bytes", errSignal, len(b))
	}
	var s *signal
	for f, err := range frame.Fields(b) {
		switch {
		case err != nil:
			return nil, err
		case f.Num != fieldPing && f.Num != fieldPong:
			continue // of a later version
		case s != nil || f.Bytes == nil:
			return nil, fmt.Errorf("%w: not one ping or pong", errSignal)
		case f.Num == fieldPing:
			s, err = parsePing(f.Bytes)
		default:
			s, err = parsePong(f.Bytes)
		}
		if err != nil {
			return nil, err
		}
	}
	if s == nil {
		return nil, fmt.Errorf("%w: neither ping nor pong", errSignal)
	}
	return s, nil
}

func parsePing(b []byte) (*signal, error) {
	var p ping
	s := &signal{ping: &p}
	err := s.parse(b, pingDomain, fieldPingSignature, &p.stamp, &p.target.at, func(f frame.Field) (err error) {
		switch f.Num {
		case fieldTarget:
			p.target.id, err = readID(f.Bytes)
		case fieldInterval:
			p.interval = time.Duration(min(f.Uint, uint64(MaxInterval/time.Millisecond))) * time.Millisecond
		}
		return err
	})
	if err == nil && p.target.empty() {
		err = fmt.Errorf("%w: a ping for nobody", errSignal)
	}
	return s, err
}

func parsePong(b []byte) (*signal, error) {
	var p pong
	s := &signal{pong: &p}
	err := s.parse(b, pongDomain, fieldPongSignature, &p.stamp, &p.at, func(f frame.Field) (err error) {
		switch f.Num {
		case fieldPingOrigin:
			p.answers.sender, err = readID(f.Bytes)
		case fieldPingSession:
			err = readSession(f.Bytes, &p.answers.session)
		case fieldPingCounter:
			p.answers.counter = f.Uint
		}
		return err
	})
	return s, err
}

// parse reads what both kinds share and hands the rest to other.
func (s *signal) parse(b []byte, domain string, signature int, from *stamp, at *[]netip.AddrPort, other func(frame.Field) error) error {
	for f, err := range frame.Fields(b) {
		if err != nil {
			return err
		}
		if s.signature != nil {
			return fmt.Errorf("%w: the signature is not last", errSignal)
		}
		switch f.Num {
		case number(signature):
			if len(f.Bytes) == 0 || len(f.Bytes) > maxSignatureBytes {
				return fmt.Errorf("%w: signature of %d bytes", errSignal, len(f.Bytes))
			}
			s.signature = slices.Clone(f.Bytes)
		case fieldAddrs:
			if len(*at) == maxSignalAddrs {
				return fmt.Errorf("%w: more than %d addresses", errSignal, maxSignalAddrs)
			}
			ap, ok := readAddr(f.Bytes)
			if !ok {
				return fmt.Errorf("%w: bad address", errSignal)
			}
			*at = append(*at, ap)
		case fieldSender:
			from.sender, err = readID(f.Bytes)
		case fieldSession:
			err = readSession(f.Bytes, &from.session)
		case fieldCounter:
			from.counter = f.Uint
		default:
			err = other(f)
		}
		if err != nil {
			return err
		}
	}
	if s.signature == nil || from.sender == "" {
		return fmt.Errorf("%w: no sender or no signature", errSignal)
	}
	*at = tidy(*at)
	// The length of the field as we write it: a longer form of tag or length does
	// not match what was signed.
	field := frame.AppendMessage(nil, number(signature), s.signature)
	if len(field) > len(b) {
		return errSignal
	}
	s.unsigned = append([]byte(domain), b[:len(b)-len(field)]...)
	return nil
}

func readID(b []byte) (peer.ID, error) {
	if len(b) > maxIDBytes {
		return "", fmt.Errorf("%w: id of %d bytes", errSignal, len(b))
	}
	id, err := peer.IDFromBytes(b)
	if err != nil {
		return "", fmt.Errorf("%w: %w", errSignal, err)
	}
	return id, nil
}

func readSession(b []byte, s *session) error {
	if len(b) != len(s) {
		return fmt.Errorf("%w: session of %d bytes", errSignal, len(b))
	}
	copy(s[:], b)
	return nil
}

// readAddr reads a multiaddr, of which it takes IP address and port.
func readAddr(b []byte) (netip.AddrPort, bool) {
	if len(b) > 256 {
		return netip.AddrPort{}, false
	}
	a, err := ma.NewMultiaddrBytes(b)
	if err != nil {
		return netip.AddrPort{}, false
	}
	return endpoint(a)
}

// endpoint returns the IP address and port that a begins with, if it does.
func endpoint(a ma.Multiaddr) (netip.AddrPort, bool) {
	if len(a) < 2 {
		return netip.AddrPort{}, false
	}
	if c := a[0].Code(); c != ma.P_IP4 && c != ma.P_IP6 {
		return netip.AddrPort{}, false
	}
	if c := a[1].Code(); c != ma.P_TCP && c != ma.P_UDP {
		return netip.AddrPort{}, false
	}
	ip, ok := netip.AddrFromSlice(a[0].RawValue())
	port := a[1].RawValue()
	if !ok || len(port) != 2 {
		return netip.AddrPort{}, false
	}
	ap := netip.AddrPortFrom(ip.Unmap(), binary.BigEndian.Uint16(port))
	return ap, ap.Port() != 0 && !ap.Addr().IsUnspecified()
}

// endpoints returns the IP addresses and ports of addrs, sorted.
func endpoints(addrs []ma.Multiaddr) []netip.AddrPort {
	var at []netip.AddrPort
	for _, a := range addrs {
		if ap, ok := endpoint(a); ok {
			at = append(at, ap)
		}
	}
	return tidy(at)
}

// tidy sorts at and removes duplicates.
func tidy(at []netip.AddrPort) []netip.AddrPort {
	slices.SortFunc(at, netip.AddrPort.Compare)
	return slices.Compact(at)
}
