package events

import (
	pubsub "github.com/libp2p/go-libp2p-pubsub"

	"github.com/go-smokesignal/smokesignal/internal/guard"
)

// PubSubOptions returns options for the pubsub under a [Broadcast] on that topic: queues
// large enough for thousands of messages at once, a single worker that checks signatures
// (several would change the order of messages), signed messages only, and limits on the
// memory that a message can use, which pubsub lacks by default. A Broadcast also works
// without these options, but then more messages are lost and must be repaired. The
// options are for one pubsub; call PubSubOptions again for another. They are made for
// floodsub.
func PubSubOptions(topic string) []pubsub.Option {
	return guard.New(guard.Config{Topic: topic}).Options()
}
