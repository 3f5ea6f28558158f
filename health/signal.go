package health

import (
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/go-smokesignal/smokesignal/internal/addr"
	"github.com/go-smokesignal/smokesignal/internal/protocol"

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

// These are the limits of a signal (a ping or a pong). They are checked before the
// signature, which is the costliest check.
const (
	maxSignalBytes    = 2 << 10
	maxSignalAddrs    = 16
	maxIDBytes        = 64
	maxSignatureBytes = 512
	maxAddrBytes      = 256
)

// The signed bytes of a signal begin with one of these texts. So a signature that was made
// for the other kind of signal, or for another purpose, is not valid.
const (
	pingDomain = "smokesignal/health/1.0.0 ping\x00"
	pongDomain = "smokesignal/health/1.0.0 pong\x00"
)

// These are the protobuf field numbers. The signature is the last field of its message and
// covers all bytes before it, including fields that this version does not know.
const (
	fieldPing = 1
	fieldPong = 2

	fieldTarget        = 1 // ping
	fieldAddrs         = 2
	fieldSender        = 3 // the peer id of the node that sent the ping or pong
	fieldSession       = 4
	fieldCounter       = 5
	fieldInterval      = 6 // ping, in milliseconds
	fieldPingSignature = 7
	fieldPingOrigin    = 6 // pong
	fieldPingSession   = 7
	fieldPingCounter   = 8
	fieldPongSignature = 9
)

// A stamp identifies one signal by its sender, the session of the sender, and a counter. A
// sender's counter rises with each signal, and also from session to session, because it
// begins with the milliseconds of the clock.
type stamp struct {
	sender  peer.ID
	session protocol.Session
	counter uint64
}

// A pingTarget names the node that a ping asks to answer: by its id, by the addresses at
// which it is reached, or both.
type pingTarget struct {
	id    peer.ID
	addrs []netip.AddrPort // sorted, no duplicates
}

func (t pingTarget) empty() bool { return t.id == "" && len(t.addrs) == 0 }

// covers reports whether a ping for t asks also the node that u names: t has the id of u,
// if u has one, and all addresses of u.
func (t pingTarget) covers(u pingTarget) bool {
	if u.id != "" && u.id != t.id {
		return false
	}
	for _, at := range u.addrs {
		if !slices.Contains(t.addrs, at) {
			return false
		}
	}
	return true
}

// key returns a text for t that is the same for equal targets, for use as the key of a map.
func (t pingTarget) key() string {
	var b strings.Builder
	b.WriteString(string(t.id))
	for _, at := range t.addrs {
		b.WriteByte(0)
		b.WriteString(at.String())
	}
	return b.String()
}

// A ping asks the target to answer.
type ping struct {
	stamp
	target   pingTarget
	interval time.Duration // of the sender's watchdog
}

// A pong is the answer to a ping: it shows that its sender is alive, and has its addresses.
type pong struct {
	stamp
	addrs   []netip.AddrPort
	answers stamp // of the ping
}

// seal returns p signed and encoded.
func (p ping) seal(key crypto.PrivKey) ([]byte, error) {
	var b []byte
	b = frame.AppendBytes(b, fieldTarget, string(p.target.id))
	b = appendAddrs(b, p.target.addrs)
	b = appendStamp(b, p.stamp)
	b = frame.AppendUint(b, fieldInterval, uint64(max(p.interval.Milliseconds(), 1)))
	return sealSignal(key, fieldPing, pingDomain, b, fieldPingSignature)
}

// seal returns p signed and encoded.
func (p pong) seal(key crypto.PrivKey) ([]byte, error) {
	var b []byte
	b = appendAddrs(b, p.addrs)
	b = appendStamp(b, p.stamp)
	b = frame.AppendBytes(b, fieldPingOrigin, string(p.answers.sender))
	b = frame.AppendBytes(b, fieldPingSession, p.answers.session[:])
	b = frame.AppendUint(b, fieldPingCounter, p.answers.counter)
	return sealSignal(key, fieldPong, pongDomain, b, fieldPongSignature)
}

// sealSignal signs unsigned, an encoded ping or pong, together with the text domain. It
// returns unsigned with the signature added as the field with number field, inside a signal
// whose field with number kind it is.
func sealSignal(key crypto.PrivKey, kind int, domain string, unsigned []byte, field int) ([]byte, error) {
	sig, err := key.Sign(append([]byte(domain), unsigned...))
	if err != nil {
		return nil, fmt.Errorf("health: sign: %w", err)
	}
	message := frame.AppendMessage(unsigned, protowire.Number(field), sig)
	return frame.AppendMessage(nil, protowire.Number(kind), message), nil
}

func appendStamp(b []byte, s stamp) []byte {
	b = frame.AppendBytes(b, fieldSender, string(s.sender))
	b = frame.AppendBytes(b, fieldSession, s.session[:])
	return frame.AppendUint(b, fieldCounter, s.counter)
}

// appendAddrs appends addrs to b, each as a multiaddr over TCP. The reader uses only the IP
// address and the port, since a seed written as host:port means both TCP and QUIC on that
// port.
func appendAddrs(b []byte, addrs []netip.AddrPort) []byte {
	for _, at := range addrs[:min(len(addrs), maxSignalAddrs)] {
		b = frame.AppendMessage(b, fieldAddrs, addr.TCP(at).Bytes())
	}
	return b
}

var errSignal = errors.New("health: malformed signal")

// A parsedSignal is a ping or pong that was received and decoded. Its signature has not been
// verified.
type parsedSignal struct {
	ping      *ping
	pong      *pong
	signed    []byte // the bytes that the signature covers
	signature []byte
}

// stamp returns the stamp (sender, session, counter) of the ping or pong in s.
func (s *parsedSignal) stamp() stamp {
	if s.ping != nil {
		return s.ping.stamp
	}
	return s.pong.stamp
}

// verified reports whether s has a valid signature of the sender that it names. The public
// key is taken from the sender's id, which has to contain it, as ids with Ed25519 keys do.
func (s *parsedSignal) verified() bool {
	key, err := s.stamp().sender.ExtractPublicKey()
	if err != nil {
		return false
	}
	ok, err := key.Verify(s.signed, s.signature)
	return err == nil && ok
}

// parseSignal decodes the signal b. The result does not share memory with b. The error says
// how b is malformed.
func parseSignal(b []byte) (*parsedSignal, error) {
	if len(b) > maxSignalBytes {
		return nil, fmt.Errorf("%w: %d bytes", errSignal, len(b))
	}
	var s *parsedSignal
	for f, err := range frame.Fields(b) {
		switch {
		case err != nil:
			return nil, err
		case f.Num != fieldPing && f.Num != fieldPong:
			continue // a later version has added this kind of signal, which this version does not know
		case s != nil || f.Bytes == nil:
			return nil, fmt.Errorf("%w: more than one ping or pong, or an empty one", errSignal)
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

func parsePing(b []byte) (*parsedSignal, error) {
	var p ping
	s := &parsedSignal{ping: &p}
	err := s.parse(b, pingDomain, fieldPingSignature, &p.stamp, &p.target.addrs, func(f frame.Field) (err error) {
		switch f.Num {
		case fieldTarget:
			p.target.id, err = readID(f.Bytes)
		case fieldInterval:
			p.interval = time.Duration(min(f.Uint, uint64(protocol.MaxPingInterval/time.Millisecond))) * time.Millisecond
		}
		return err
	})
	if err == nil && p.target.empty() {
		err = fmt.Errorf("%w: a ping without a target", errSignal)
	}
	return s, err
}

func parsePong(b []byte) (*parsedSignal, error) {
	var p pong
	s := &parsedSignal{pong: &p}
	err := s.parse(b, pongDomain, fieldPongSignature, &p.stamp, &p.addrs, func(f frame.Field) (err error) {
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

// parse decodes b, an encoded ping or pong. It stores the sender, session and counter in
// from, the addresses in addrs, and the signature, whose field has the number signature, in
// s. It passes each other field to the function other. domain is the text that is signed
// before the bytes of b.
func (s *parsedSignal) parse(b []byte, domain string, signature int, from *stamp, addrs *[]netip.AddrPort, other func(frame.Field) error) error {
	for f, err := range frame.Fields(b) {
		if err != nil {
			return err
		}
		// The signature covers only the fields before the signature field, so no
		// field may follow that one.
		if s.signature != nil {
			return fmt.Errorf("%w: the signature is not last", errSignal)
		}
		switch f.Num {
		case protowire.Number(signature):
			if len(f.Bytes) == 0 || len(f.Bytes) > maxSignatureBytes {
				return fmt.Errorf("%w: signature of %d bytes", errSignal, len(f.Bytes))
			}
			s.signature = slices.Clone(f.Bytes)
		case fieldAddrs:
			if len(*addrs) == maxSignalAddrs {
				return fmt.Errorf("%w: more than %d addresses", errSignal, maxSignalAddrs)
			}
			at, ok := readAddr(f.Bytes)
			if !ok {
				return fmt.Errorf("%w: bad address", errSignal)
			}
			*addrs = append(*addrs, at)
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
	*addrs = sortUnique(*addrs)
	// The signed bytes are those before the signature field. They are found by the
	// length of that field in its shortest encoding; if the sender used a longer
	// encoding, the signature does not match.
	field := frame.AppendMessage(nil, protowire.Number(signature), s.signature)
	if len(field) > len(b) {
		return errSignal
	}
	s.signed = append([]byte(domain), b[:len(b)-len(field)]...)
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

func readSession(b []byte, s *protocol.Session) error {
	if len(b) != len(s) {
		return fmt.Errorf("%w: session of %d bytes", errSignal, len(b))
	}
	copy(s[:], b)
	return nil
}

// readAddr decodes the multiaddr b and returns its IP address and port. It reports false if
// b is not a multiaddr that begins with both.
func readAddr(b []byte) (netip.AddrPort, bool) {
	if len(b) > maxAddrBytes {
		return netip.AddrPort{}, false
	}
	a, err := ma.NewMultiaddrBytes(b)
	if err != nil {
		return netip.AddrPort{}, false
	}
	return endpoint(a)
}

// endpoint returns the IP address and port at the beginning of a. It reports false if a does
// not begin with both, or if nobody can be reached there.
func endpoint(a ma.Multiaddr) (netip.AddrPort, bool) {
	at, ok := addr.AddrPort(a)
	return at, ok && at.Port() != 0 && !at.Addr().IsUnspecified()
}

// endpoints returns the IP addresses and ports of addrs, sorted.
func endpoints(addrs []ma.Multiaddr) []netip.AddrPort {
	var list []netip.AddrPort
	for _, a := range addrs {
		if at, ok := endpoint(a); ok {
			list = append(list, at)
		}
	}
	return sortUnique(list)
}

// sortUnique sorts the addresses and removes duplicates.
func sortUnique(addrs []netip.AddrPort) []netip.AddrPort {
	slices.SortFunc(addrs, netip.AddrPort.Compare)
	return slices.Compact(addrs)
}
