// Package subscription joins a topic of pubsub and subscribes to it.
package subscription

import (
	"fmt"

	pubsub "github.com/libp2p/go-libp2p-pubsub"

	"github.com/go-smokesignal/smokesignal/internal/event"
)

// Subscription is a node's membership in a pubsub topic: the topic itself, the messages
// on it, and the peers that join and leave it.
type Subscription struct {
	Topic    *pubsub.Topic
	Members  *pubsub.TopicEventHandler
	Messages *pubsub.Subscription
	lent     bool // the application has joined the topic, so Close does not leave it
}

// Join joins the topic with the given name, or uses joined if that is not nil.
// Pubsub's event loop calls receive for every message before pubsub forwards the
// message. receive must not block. It should return false: then no message enters
// pubsub's own queue, which drops messages when it is full.
func Join(ps *pubsub.PubSub, name string, joined *pubsub.Topic, receive func(*pubsub.Message) bool) (s *Subscription, err error) {
	s = &Subscription{Topic: joined, lent: joined != nil}
	if !s.lent {
		if s.Topic, err = ps.Join(name); err != nil {
			return nil, fmt.Errorf("events: join topic %s: %w", event.Quote(name), err)
		}
	}
	if s.Members, err = s.Topic.EventHandler(); err == nil {
		if s.Messages, err = s.Topic.Subscribe(pubsub.WithMessageFilter(receive), pubsub.WithBufferSize(1)); err == nil {
			return s, nil
		}
		s.Members.Cancel()
	}
	if !s.lent {
		s.Topic.Close()
	}
	return nil, fmt.Errorf("events: subscribe to topic %s: %w", event.Quote(name), err)
}

// Close ends the subscription. It also leaves the topic, unless the application has
// joined it. If Close returns an error, the topic is still joined.
func (s *Subscription) Close() error {
	s.Messages.Cancel()
	s.Members.Cancel()
	if s.lent {
		return nil
	}
	return s.Topic.Close()
}
