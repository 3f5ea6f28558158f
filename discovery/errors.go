package discovery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"

	"github.com/go-smokesignal/smokesignal/internal/errs"
)

// Why a seed or another address did not lead to a link. The texts are short,
// since they stand behind the seed in one line (see [SeedError]); what libp2p
// or the system said is wrapped, so errors.Is(err, syscall.ECONNREFUSED) works.
var (
	// ErrSelf is returned for an address that is this node's own.
	ErrSelf = errs.ErrSelf
	// ErrOtherNetwork is returned when the node there speaks our protocol in a
	// network of another name.
	ErrOtherNetwork = errs.ErrOtherNetwork
	// ErrUnreachable is returned when nobody answered: refused, timed out, no
	// route. The text says which.
	ErrUnreachable = errors.New("discovery: unreachable")
	// ErrUnresolvable is returned when DNS knows no address for the name.
	ErrUnresolvable = errors.New("discovery: no such host")
	// ErrNotSmokesignal is returned when something answered that speaks another
	// protocol: no libp2p, or libp2p without ours.
	ErrNotSmokesignal = errors.New("discovery: not a smokesignal node")
	// ErrFull is returned when every node asked has as many peers as it takes.
	ErrFull = errors.New("discovery: everybody is full")
)

// WrongIDError is returned when the node at a seed's address proved another
// identity than the one the seed's /p2p/ part, or a ticket, asks for.
type WrongIDError struct {
	Expected peer.ID // as the seed says
	Actual   peer.ID // as proven by who answered
}

func (e *WrongIDError) Error() string {
	return fmt.Sprintf("wrong id: it is %s, not %s", e.Actual, e.Expected)
}

// SeedError says why a seed could not be joined. errors.Is and errors.AsType
// see the cause.
type SeedError struct {
	Seed string    // as the user wrote it
	Err  error     // the cause
	Next time.Time // when it is tried next; zero if no try is planned
}

func (e *SeedError) Error() string {
	text := fmt.Sprintf("seed %s: %s", ShortenTicket(e.Seed), errs.Text(e.Err))
	if e.Next.IsZero() {
		return text
	}
	wait, unit := time.Until(e.Next), time.Second
	if wait < unit {
		unit = 10 * time.Millisecond
	}
	return fmt.Sprintf("%s, next try in %v", text, max(wait.Round(unit), unit))
}

func (e *SeedError) Unwrap() error { return e.Err }

// otherNetwork returns an [ErrOtherNetwork] that names both networks where
// they are known. theirs is what a stranger sent, so it is quoted and cut.
func otherNetwork(theirs, ours string) error {
	if theirs == "" || ours == "" {
		return ErrOtherNetwork
	}
	const most = 64
	if len(theirs) > most {
		theirs = theirs[:most] + "..."
	}
	return &failure{kind: ErrOtherNetwork, text: fmt.Sprintf("%s: %q, not %q", errs.Text(ErrOtherNetwork), theirs, ours)}
}

// A failure is a cause as one short line, with what lies beneath.
type failure struct {
	kind error  // one of the variables above
	text string // what a person reads
	err  error  // what libp2p or the system said; may be nil
	rank int    // the higher, the more it tells; see explain
	// wrong is set when somebody else answered.
	wrong *WrongIDError
}

func (f *failure) Error() string { return f.text }

func (f *failure) Unwrap() []error {
	if f.err == nil {
		return []error{f.kind}
	}
	return []error{f.kind, f.err}
}

// explain turns what libp2p returned for a dial or a stream into one of this
// package's errors, as one short line. Of a dial that failed on several
// addresses it takes the cause that tells most: an answer before a refusal,
// a refusal before silence. It returns nil for nil, and errors that are
// explained already as they are.
func explain(err error) error {
	if err == nil {
		return nil
	}
	if done := explained(err); done != nil {
		return done
	}
	f := mostTelling(err)
	f.err = err
	if f.wrong != nil {
		return f.wrong
	}
	return f
}

// mostTelling classifies what a dial met on each address and returns the best.
func mostTelling(err error) *failure {
	dial, ok := errors.AsType[*swarm.DialError](err)
	if !ok || len(dial.DialErrors) == 0 {
		return classify(err)
	}
	var best *failure
	for i := range dial.DialErrors {
		if f := classify(dial.DialErrors[i].Cause); best == nil || f.rank > best.rank {
			best = f
		}
	}
	return best
}

// explained returns the error inside err that explain has made before, or nil.
func explained(err error) error {
	if f, ok := errors.AsType[*failure](err); ok {
		return f
	}
	if w, ok := errors.AsType[*WrongIDError](err); ok {
		return w
	}
	for _, v := range []error{ErrSelf, ErrOtherNetwork, ErrUnreachable, ErrUnresolvable, ErrNotSmokesignal, ErrFull, ErrRelayed} {
		if errors.Is(err, v) {
			return err
		}
	}
	return nil
}

// The ranks of causes: who answered tells more than a refusal, and that more
// than silence or what we did not even try.
const (
	rankSkipped = iota // not tried
	rankSilence        // nobody answered
	rankRoute          // the system knew no way
	rankRefused        // somebody said no
	rankAnswer         // somebody answered
)

// classify explains one cause.
func classify(err error) *failure {
	f := func(rank int, kind error, text string) *failure {
		return &failure{kind: kind, text: text, err: err, rank: rank}
	}
	if mismatch, ok := errors.AsType[sec.ErrPeerIDMismatch](err); ok {
		wrong := &WrongIDError{Expected: mismatch.Expected, Actual: mismatch.Actual}
		return &failure{kind: ErrUnreachable, text: wrong.Error(), err: err, rank: rankAnswer, wrong: wrong}
	}
	if name, ok := errors.AsType[*net.DNSError](err); ok {
		return f(rankRoute, ErrUnresolvable, dnsText(name))
	}
	var timeout net.Error
	switch {
	case errors.Is(err, swarm.ErrDialToSelf):
		return f(rankSkipped, ErrSelf, errs.Text(ErrSelf))
	case errors.Is(err, syscall.ECONNREFUSED):
		return f(rankRefused, ErrUnreachable, "connection refused")
	case errors.Is(err, syscall.EHOSTUNREACH):
		return f(rankRoute, ErrUnreachable, "no route to host")
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EADDRNOTAVAIL):
		return f(rankRoute, ErrUnreachable, "network is unreachable")
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return f(rankRoute, ErrUnreachable, "not permitted by this system")
	case errors.Is(err, network.ErrResourceLimitExceeded):
		return f(rankSkipped, ErrUnreachable, "this node is at its connection limit")
	case errors.Is(err, swarm.ErrGaterDisallowedConnection):
		return f(rankSkipped, ErrUnreachable, "forbidden by this node's connection gater")
	case errors.Is(err, swarm.ErrNoTransport):
		return f(rankSkipped, ErrUnreachable, "this node has no transport for it")
	case errors.Is(err, swarm.ErrDialBackoff), errors.Is(err, swarm.ErrDialRefusedBlackHole):
		return f(rankSkipped, ErrUnreachable, "not tried again so soon")
	case errors.Is(err, swarm.ErrNoAddresses), errors.Is(err, swarm.ErrNoGoodAddresses):
		return f(rankSkipped, ErrUnreachable, "no address that can be dialled")
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return f(rankSilence, ErrUnreachable, "timeout")
	case errors.Is(err, context.Canceled):
		return f(rankSkipped, ErrUnreachable, "given up")
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.EPIPE):
		return f(rankRefused, ErrUnreachable, "it closed the connection")
	case relayText(err) != "":
		return f(rankRefused, ErrUnreachable, relayText(err))
	case speaksOtherwise(err):
		return f(rankAnswer, ErrNotSmokesignal, errs.Text(ErrNotSmokesignal))
	}
	return f(rankRefused, ErrUnreachable, oneLine(err))
}

// speaksOtherwise reports whether somebody answered, but not as libp2p does.
// The layers below have no error values for it, so their texts must do:
// multistream (TCP, WebSocket), QUIC's TLS, and the WebSocket upgrade.
func speaksOtherwise(err error) bool {
	text := err.Error()
	for _, s := range []string{
		"failed to negotiate security protocol",
		"failed to negotiate stream multiplexer",
		"protocols not supported",
		"CRYPTO_ERROR",
		"websocket: bad handshake",
		"invalid response status code",
	} {
		if strings.Contains(text, s) {
			return true
		}
	}
	return false
}

// relayText puts into words what a relay answered, of which libp2p's circuit client
// has no error value either.
func relayText(err error) string {
	_, status, found := strings.Cut(err.Error(), "error opening relay circuit: ")
	switch {
	case !found:
		return ""
	case strings.HasPrefix(status, "NO_RESERVATION"):
		return "its relay does not know it"
	case strings.HasPrefix(status, "RESOURCE_LIMIT_EXCEEDED"):
		return "its relay is at its limits"
	}
	return "its relay cannot reach it"
}

func dnsText(err *net.DNSError) string {
	switch {
	case err.IsNotFound:
		return errs.Text(ErrUnresolvable)
	case err.IsTimeout:
		return "the name server does not answer"
	}
	return "the name cannot be looked up"
}

// oneLine returns the innermost text of err, cut to what fits on a line.
func oneLine(err error) string {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			break
		}
		err = inner
	}
	text, _, _ := strings.Cut(strings.TrimSpace(err.Error()), "\n")
	const most = 100
	if r := []rune(text); len(r) > most {
		text = string(r[:most]) + "..."
	}
	if text == "" {
		return errs.Text(ErrUnreachable)
	}
	return text
}
