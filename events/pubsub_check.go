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
	// ErrOtherHost is returned by NewBroadcast when the pubsub is on another host.
	ErrOtherHost = errors.New("events: the pubsub is on another host")
	// ErrUnsigned is returned by NewBroadcast when the pubsub does not sign
	// messages. The signature proves the sender of an event, also when a neighbor
	// repairs it.
	ErrUnsigned = errors.New("events: the pubsub does not sign messages")
	// ErrOtherAuthor is returned by NewBroadcast when the pubsub signs with another
	// identity than that of the host.
	ErrOtherAuthor = errors.New("events: the pubsub signs as another author than its host")
	// ErrNotPublished is returned by NewBroadcast when the pubsub, or a validator
	// of its owner's, does not let messages of this node pass. The cause is wrapped
	// beside it.
	ErrNotPublished = errors.New("events: the pubsub does not publish on the topic")
)

// checkTimeout bounds how long a pubsub may take to hand a message to its own
// subscription. It normally takes some microseconds.
const checkTimeout = 5 * time.Second

// pubsubCheck is a message that was published to see what pubsub makes of it.
type pubsubCheck struct {
	data []byte
	got  chan checkResult
}

// checkResult is what the message says about its pubsub.
type checkResult struct {
	host, author peer.ID
	signed       bool
}

// checkPubSub finds out whether the pubsub can carry broadcasts. It publishes a
// message that does not leave this process, and blocks until the message has come
// back, or for five seconds.
func (b *Broadcast) checkPubSub() error {
	ctx, cancel := context.WithTimeoutCause(b.ctx, checkTimeout, errors.New("the message did not come back in time"))
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

// isCheck reports whether m is the message of a check, which then gets its
// result.
func (d *engineDriver) isCheck(m *pubsub.Message) bool {
	c := d.check.Load()
	// A peer could have guessed the bytes only by having seen them, and they do
	// not leave this process; Local makes sure of it.
	if c == nil || !m.Local || !bytes.Equal(m.Data, c.data) {
		return false
	}
	select {
	case c.got <- checkResult{host: m.ReceivedFrom, author: m.GetFrom(), signed: len(m.Signature) > 0}:
	default: // the first copy has given the result
	}
	return true
}
