package events

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/peer"
)

// Reasons why a pubsub that others have made cannot carry broadcasts.
var (
	// ErrOtherHost: it runs on another host.
	ErrOtherHost = errors.New("events: the pubsub is on another host")
	// ErrUnsigned: it does not sign what is published. Signatures are what tells nodes
	// who sent an event, also when a neighbour repairs it.
	ErrUnsigned = errors.New("events: the pubsub does not sign messages")
	// ErrOtherAuthor: it signs with another identity than the host's.
	ErrOtherAuthor = errors.New("events: the pubsub signs as another author than its host")
)

// proveTimeout bounds how long a pubsub may take to hand a message to its own
// subscription, which takes some microseconds.
const proveTimeout = 5 * time.Second

// A proof is a message of which Prove wants to see what pubsub made of it.
type pubsubCheck struct {
	data []byte
	got  chan checkResult
}

// checkResult is what the message said of its pubsub.
type checkResult struct {
	host, author peer.ID
	signed       bool
}

// Prove finds out whether a pubsub that somebody else has made can carry broadcasts.
// It publishes a message that does not leave this process, where only another
// subscription to the topic would see it. The error is ErrOtherHost, ErrUnsigned,
// ErrOtherAuthor, or why pubsub, or a validator of its owner's, refused the message.
// It blocks until the message has come back, five seconds at most, or until ctx ends.
func (b *Broadcast) Prove(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, proveTimeout, errors.New("the pubsub does not get to it"))
	defer cancel()
	p := &pubsubCheck{data: make([]byte, 32), got: make(chan checkResult, 1)}
	rand.Read(p.data) // never fails
	b.driver.check.Store(p)
	defer b.driver.check.Store(nil)
	if err := b.topic.Publish(ctx, p.data, pubsub.WithLocalPublication(true)); err != nil {
		return fmt.Errorf("events: publish on topic %s: %w", quote(b.cfg.Topic), err)
	}
	select {
	case m := <-p.got:
		switch {
		case m.host != b.host.ID():
			return fmt.Errorf("%w, %s", ErrOtherHost, m.host)
		case !m.signed:
			return ErrUnsigned
		case m.author != b.host.ID():
			return fmt.Errorf("%w, %s", ErrOtherAuthor, m.author)
		}
		return nil
	case <-b.ctx.Done():
		return ErrClosed
	case <-ctx.Done():
		return fmt.Errorf("events: publish on topic %s: %w", quote(b.cfg.Topic), context.Cause(ctx))
	}
}

// isCheck takes the message that Prove waits for.
func (in *engineDriver) isCheck(m *pubsub.Message) bool {
	p := in.check.Load()
	if p == nil || !m.Local || !bytes.Equal(m.Data, p.data) {
		return false
	}
	select {
	case p.got <- checkResult{host: m.ReceivedFrom, author: m.GetFrom(), signed: len(m.Signature) > 0}:
	default:
	}
	return true
}
