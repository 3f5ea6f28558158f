package events

import (
	"fmt"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
)

// subscription is a node's membership in a pubsub topic: the topic itself, the messages
// on it, and the peers that join and leave it.
type subscription struct {
	topic    *pubsub.Topic
	members  *pubsub.TopicEventHandler
	messages *pubsub.Subscription
	lent     bool // the application has joined the topic, so close does not leave it
}

// subscribe joins the topic with the given name, or uses joined if that is not nil.
// Pubsub's event loop calls receive for every message before pubsub forwards the
// message. receive must not block. It should return false: then no message enters
// pubsub's own queue, which drops messages when it is full.
func subscribe(ps *pubsub.PubSub, name string, joined *pubsub.Topic, receive func(*pubsub.Message) bool) (s *subscription, err error) {
	s = &subscription{topic: joined, lent: joined != nil}
	if !s.lent {
		if s.topic, err = ps.Join(name); err != nil {
			return nil, fmt.Errorf("events: join topic %s: %w", quote(name), err)
		}
	}
	if s.members, err = s.topic.EventHandler(); err == nil {
		if s.messages, err = s.topic.Subscribe(pubsub.WithMessageFilter(receive), pubsub.WithBufferSize(1)); err == nil {
			return s, nil
		}
		s.members.Cancel()
	}
	if !s.lent {
		s.topic.Close()
	}
	return nil, fmt.Errorf("events: subscribe to topic %s: %w", quote(name), err)
}

// close ends the subscription. It also leaves the topic, unless the application has
// joined it. If close returns an error, the topic is still joined.
func (s *subscription) close() error {
	s.messages.Cancel()
	s.members.Cancel()
	if s.lent {
		return nil
	}
	return s.topic.Close()
}
