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

	"github.com/go-smokesignal/smokesignal/internal/errs"
	"github.com/go-smokesignal/smokesignal/internal/event"
)

// Reasons why a pubsub that the application has made cannot carry broadcasts.
var (
	// ErrOtherHost is returned by New when the pubsub is on another host.
	ErrOtherHost = errors.New("events: the pubsub is on another host")
	// ErrUnsigned is returned by New when the pubsub does not sign messages.
	// Without the signature nobody could verify who sent an event.
	ErrUnsigned = errors.New("events: the pubsub does not sign messages")
	// ErrOtherAuthor is returned by New when the pubsub signs messages with an
	// identity other than the host's.
	ErrOtherAuthor = errors.New("events: the pubsub signs as another author than its host")
	// ErrNotPublished is returned by New when the pubsub does not publish
	// messages of this node, often because a validator of the application refuses them.
	// The error also wraps the cause.
	ErrNotPublished = errors.New("events: the pubsub does not publish on the topic")
)

// checkTimeout is how long a pubsub may take to deliver a message to its own
// subscription. Normally that takes some microseconds.
const checkTimeout = 5 * time.Second

// pubsubCheck is a test message, published to see what the pubsub does with it.
type pubsubCheck struct {
	data []byte
	got  chan checkResult
}

// checkResult is what the test message shows about the pubsub.
type checkResult struct {
	host, author peer.ID
	signed       bool
}

// checkPubSub checks whether the pubsub can carry broadcasts. It publishes a test
// message that does not leave this process, and waits until the pubsub has delivered
// it, for at most five seconds.
func (b *Broadcast) checkPubSub() error {
	ctx, cancel := context.WithTimeoutCause(b.ctx, checkTimeout, errors.New("the pubsub did not deliver a test message to this node in time"))
	defer cancel()
	c := &pubsubCheck{data: make([]byte, 32), got: make(chan checkResult, 1)}
	rand.Read(c.data) // never fails
	b.driver.check.Store(c)
	defer b.driver.check.Store(nil)
	if err := b.sub.Topic.Publish(ctx, c.data, pubsub.WithLocalPublication(true)); err != nil {
		return errs.Because(fmt.Errorf("%w %s", ErrNotPublished, event.Quote(b.cfg.Topic)), err)
	}
	select {
	case m := <-c.got:
		switch {
		case m.host != b.host.ID():
			return fmt.Errorf("%w, %s", ErrOtherHost, m.host)
		case !m.signed:
			return ErrUnsigned
		case m.author != b.host.ID():
			return fmt.Errorf("%w, %s", ErrOtherAuthor, m.author)
		}
		return nil
	case <-ctx.Done():
		return errs.Because(fmt.Errorf("%w %s", ErrNotPublished, event.Quote(b.cfg.Topic)), context.Cause(ctx))
	}
}

// isCheck reports whether m is the test message of a check. If so, it passes the result
// to the waiting checkPubSub.
func (d *engineDriver) isCheck(m *pubsub.Message) bool {
	c := d.check.Load()
	// The test message must come from this process itself. A peer cannot know its random
	// bytes, and a message from a peer never has Local set.
	if c == nil || !m.Local || !bytes.Equal(m.Data, c.data) {
		return false
	}
	select {
	case c.got <- checkResult{host: m.ReceivedFrom, author: m.GetFrom(), signed: len(m.Signature) > 0}:
	default: // the first copy has given the result
	}
	return true
}
