package smokesignal_test

import (
	"context"
	"fmt"
	"log"
	"strings"

	"github.com/go-smokesignal/smokesignal"
)

// A line is what somebody says.
type line struct{ Name, Text string }

var (
	toAll = smokesignal.Name[line]("to all")
	toOne = smokesignal.Name[line]("to one")
)

// A chatter is one participant of the chat.
type chatter struct {
	name  string
	node  *smokesignal.Node
	shown chan string // what the screen shows
}

// joinChat returns a participant that is connected, unless it is the first one.
func joinChat(ctx context.Context, name string, seeds ...string) (*chatter, error) {
	node, err := smokesignal.New(
		smokesignal.Listen("127.0.0.1:0"),
		smokesignal.Network("example chat"),
		smokesignal.Seeds(seeds...),
	)
	if err != nil {
		return nil, err
	}
	c := &chatter{name, node, make(chan string, 100)}
	toAll.On(node.Broadcast(), func(_ context.Context, _ smokesignal.ID, l line) { c.shown <- l.Name + ": " + l.Text })
	toOne.On(node.Direct(), func(_ context.Context, _ smokesignal.ID, l line) { c.shown <- l.Name + " whispers: " + l.Text })
	node.OnGap(func(_ context.Context, gap smokesignal.Gap) {
		c.shown <- fmt.Sprint("* ", gap.Len(), " lines are lost")
	})
	node.OnSeedError(func(_ context.Context, err *smokesignal.SeedError) { c.shown <- "* " + err.Error() })
	if err := node.Start(ctx); err != nil {
		node.Close()
		return nil, err
	}
	if len(seeds) > 0 {
		if err := node.Ready(ctx); err != nil {
			node.Close()
			return nil, err
		}
	}
	return c, nil
}

// enter says a line, or whispers with "/msg ID TEXT".
func (c *chatter) enter(ctx context.Context, text string) error {
	rest, private := strings.CutPrefix(text, "/msg ")
	if !private {
		return toAll.Emit(ctx, c.node.Broadcast(), line{c.name, text})
	}
	to, text, _ := strings.Cut(rest, " ")
	id, err := smokesignal.ParseID(to)
	if err != nil {
		return err
	}
	return toOne.Emit(ctx, c.node.Peer(id), line{c.name, text})
}

// A chat: a line reaches everybody, "/msg" one participant, and a new one joins with the
// ticket of any other.
func Example_chat() {
	ctx := context.Background()
	alice, err := joinChat(ctx, "alice")
	if err != nil {
		log.Fatal(err)
	}
	defer alice.node.Close()
	ticket, err := alice.node.Ticket()
	if err != nil {
		log.Fatal(err)
	}
	bob, err := joinChat(ctx, "bob", ticket)
	if err != nil {
		log.Fatal(err)
	}
	defer bob.node.Close()

	if err := bob.enter(ctx, "hello"); err != nil {
		log.Fatal(err)
	}
	fmt.Println(<-alice.shown)
	if err := alice.enter(ctx, "/msg "+bob.node.ID().String()+" psst"); err != nil {
		log.Fatal(err)
	}
	fmt.Println(<-bob.shown)
	fmt.Println(alice.enter(ctx, "/msg bob psst") != nil, "for a name that is not an id")
	// Output:
	// bob: hello
	// alice whispers: psst
	// true for a name that is not an id
}
