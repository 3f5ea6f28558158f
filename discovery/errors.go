package discovery

import (
	"cmp"
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
	"github.com/libp2p/go-libp2p/core/routing"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"

	"github.com/go-smokesignal/smokesignal/discovery/internal/overlay"
	"github.com/go-smokesignal/smokesignal/internal/errs"
	"github.com/go-smokesignal/smokesignal/internal/peers"
	"github.com/go-smokesignal/smokesignal/internal/seed"
)

// The reasons for which an address did not lead to a link, or for which a call failed.
//
// The errors of Connect and FindPeer, and those inside a [SeedError], often say more than
// these variables: the names of the networks, or the error of libp2p or the system. Then
// they are one short line without the name of the package, because callers print them after
// an address. errors.Is finds the variable in them, and also the cause, as in
// errors.Is(err, syscall.ECONNREFUSED).
var (
	// ErrClosed is returned once Close has begun.
	ErrClosed = errs.ErrClosed
	// ErrSelf is returned when an address leads to this node itself.
	ErrSelf = errs.ErrSelf
	// ErrOtherNetwork is returned when a node belongs to a network with another name.
	ErrOtherNetwork = errs.ErrOtherNetwork
	// ErrRelayed is returned when a node was reached through a relay only. The driver
	// sends nothing over such a connection: relays serve for two nodes to find each other,
	// and end a connection after two minutes or 128 KiB.
	ErrRelayed = errs.ErrRelayed
	// ErrUnreachable is returned when a node did not answer. The text says whether the
	// dial was refused, timed out, or had no route.
	ErrUnreachable = errors.New("discovery: unreachable")
	// ErrUnresolvable is returned when DNS has no address for a name.
	ErrUnresolvable = errors.New("discovery: no such host")
	// ErrNotSmokesignal is returned when the program at an address is not a smokesignal
	// node: it does not use libp2p, or its libp2p host does not know the protocol of
	// the overlay.
	ErrNotSmokesignal = errors.New("discovery: not a smokesignal node")
	// ErrFull is returned when this node, or every node that was asked, has its maximum
	// number of links.
	ErrFull = errors.New("discovery: everybody is full")
	// ErrUnknownPeer is returned when none of the nodes that were asked knows an address
	// of a peer. errors.Is also finds routing.ErrNotFound of libp2p in it.
	ErrUnknownPeer error = unknownPeer{}
)

type unknownPeer struct{}

func (unknownPeer) Error() string { return "discovery: unknown peer" }
func (unknownPeer) Unwrap() error { return routing.ErrNotFound }

// A WrongIDError is returned when the node at a seed's address has another id than the seed
// states, either in its /p2p/ part or, if the seed is a ticket of Node.Ticket, in the
// ticket.
type WrongIDError struct {
	Expected peer.ID // the id in the seed
	Actual   peer.ID // the id that the node proved
}

func (e *WrongIDError) Error() string {
	return fmt.Sprintf("wrong id: it is %s, not %s", e.Actual, e.Expected)
}

// A SeedError says why a seed cannot be used. errors.Is and errors.AsType find the cause in
// it.
type SeedError struct {
	Seed string    // the seed as the user wrote it
	Err  error     // the cause
	Next time.Time // the time of the next attempt to use the seed; zero if none is planned
}

// Error returns one line, which ends with the time that is left until the driver tries the
// seed again.
func (e *SeedError) Error() string {
	text := fmt.Sprintf("seed %s: %s", seed.Shorten(e.Seed), errs.Text(e.Err))
	if e.Next.IsZero() {
		return text
	}
	wait, unit := time.Until(e.Next), time.Second
	if wait < unit { // rounded to seconds, this would be 0s
		unit = 10 * time.Millisecond
	}
	return fmt.Sprintf("%s, next try in %v", text, max(wait.Round(unit), unit))
}

// A linkError says why a link ended or could not be made.
type linkError struct {
	Peer   peer.ID
	Reason overlay.Reason
}

func (e *linkError) Error() string { return fmt.Sprintf("peer %s: %s", e.Peer, e.Reason) }

// Unwrap returns the exported error for the reason of e, such as ErrFull, or nil if there
// is none.
func (e *linkError) Unwrap() error {
	switch e.Reason {
	case overlay.ReasonFull:
		return ErrFull
	case overlay.ReasonNetwork:
		return ErrOtherNetwork
	case overlay.ReasonSelf:
		return ErrSelf
	case overlay.ReasonProtocol:
		return ErrNotSmokesignal
	case overlay.ReasonUnreachable, overlay.ReasonTimeout:
		return ErrUnreachable
	case overlay.ReasonRelayed:
		return ErrRelayed
	case overlay.ReasonClosed:
		return ErrClosed
	}
	return nil
}

// ending returns how the link ended: peers.OnPurpose if one of the two nodes ended it by
// decision, such as to reorder the overlay, or peers.Broken if it ended by a fault or
// because a node was closed.
func (e *linkError) ending() peers.Ending {
	switch e.Reason {
	case overlay.ReasonMoved, overlay.ReasonSwapped, overlay.ReasonFull, overlay.ReasonEnough, overlay.ReasonDropped:
		return peers.OnPurpose
	}
	return peers.Broken
}

func (e *SeedError) Unwrap() error { return e.Err }

// withText returns the error kind with a text that does not begin with the name of the
// package, since callers print it after an address.
func withText(kind error) error {
	return &failure{kind: kind, text: errs.Text(kind), rank: rankAnswer}
}

// otherNetwork returns an [ErrOtherNetwork] that names both networks if they are known.
// theirs comes from another node and may be any text, so it is quoted and shortened.
func otherNetwork(theirs, ours string) error {
	if theirs == "" || ours == "" { // a node with an older version of this package does not send the name of its network
		return withText(ErrOtherNetwork)
	}
	const most = 64
	if len(theirs) > most {
		theirs = theirs[:most] + "..."
	}
	return &failure{kind: ErrOtherNetwork, text: fmt.Sprintf("%s: %q, not %q", errs.Text(ErrOtherNetwork), theirs, ours)}
}

// A failure is one of the exported errors, such as ErrUnreachable, together with a readable
// text and the error of libp2p or the system.
type failure struct {
	kind error  // the exported error
	text string // one short line, without the name of the package
	err  error  // the error of libp2p or the system; may be nil
	rank rank
	// wrong is not nil if the node that answered has another id than was expected.
	wrong *WrongIDError
}

// A rank says how much a failure shows about an address. If several addresses of a node
// failed, the failure of the highest rank is reported.
type rank int

const (
	rankSkipped rank = iota // the address was not tried
	rankSilence             // there was no answer
	rankRoute               // the system found no route to the address, or DNS found no address for the name
	rankRefused             // the machine at the address refused the dial, or the connection ended
	rankAnswer              // another program or another node answered
)

func (f *failure) Error() string { return f.text }

func (f *failure) Unwrap() []error {
	if f.err == nil {
		return []error{f.kind}
	}
	return []error{f.kind, f.err}
}

// explain converts an error of libp2p, from a dial or a stream, to one of this package's
// errors with a text of one short line. If a dial failed at several addresses, the text is
// about the failure with the highest rank. explain returns nil for nil, and returns errors
// of this package unchanged.
func explain(err error) error {
	if err == nil {
		return nil
	}
	if done := explained(err); done != nil {
		return done
	}
	f := highestRank(err)
	f.err = err
	if f.wrong != nil {
		return f.wrong // the exported type holds both ids
	}
	return f
}

// highestRank classifies the failures of a dial, one for each address, and returns the one
// with the highest rank.
func highestRank(err error) *failure {
	dial, ok := errors.AsType[*swarm.DialError](err)
	if !ok || len(dial.DialErrors) == 0 { // an error of a stream, or of the dial as a whole
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

// explained returns the error in err that came from explain before, or nil if there is none.
func explained(err error) error {
	if f, ok := errors.AsType[*failure](err); ok {
		return f
	}
	if w, ok := errors.AsType[*WrongIDError](err); ok {
		return w
	}
	for _, v := range []error{ErrSelf, ErrOtherNetwork, ErrUnreachable, ErrUnresolvable, ErrNotSmokesignal, ErrFull, ErrRelayed} {
		switch {
		case err == v: //nolint:errorlint // errors.Is would also find errors that wrap v, which have a better text
			return withText(v)
		case errors.Is(err, v):
			return err
		}
	}
	return nil
}

// failedBefore is the text for a peer that this node or libp2p does not dial yet.
const failedBefore = "dials to it failed a moment ago, so it is not dialed again so soon"

// classify returns the failure for the error of a dial at one address.
func classify(err error) *failure {
	f := func(rank rank, kind error, text string) *failure {
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
	case errors.Is(err, swarm.ErrDialBackoff):
		return f(rankSkipped, ErrUnreachable, failedBefore)
	case errors.Is(err, swarm.ErrDialRefusedBlackHole):
		return f(rankSkipped, ErrUnreachable, "not tried again so soon")
	case errors.Is(err, swarm.ErrNoAddresses), errors.Is(err, swarm.ErrNoGoodAddresses):
		return f(rankSkipped, ErrUnreachable, "no address that can be dialed")
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
	return f(rankRefused, ErrUnreachable, cmp.Or(errs.OneLine(err), errs.Text(ErrUnreachable)))
}

// speaksOtherwise reports whether a program answered that is not a libp2p host. The libraries
// for TCP, WebSocket and QUIC have no error values for that, so the texts of their errors are
// compared.
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

// relayText returns a readable text for the answer of a relay that refused a connection, or
// "" if err is another error. libp2p has no error values for these answers, only texts.
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
