package smokesignal_test

import (
	"context"
	"fmt"
	"log"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/go-smokesignal/smokesignal"
)

// status is broadcast by every member, again and again.
type status struct {
	Name string
	Gone bool // said once, at the end
}

var presence = smokesignal.Name[status]("presence")

const (
	beat = 50 * time.Millisecond // how often a status is sent; seconds in a real program
	late = 10 * beat             // after which silence means that somebody is gone
)

// A roster knows who is here: all members of the network, not only neighbors.
type roster struct {
	name string
	node *smokesignal.Node
	stop context.CancelFunc
	done sync.WaitGroup

	mu      sync.Mutex
	here    map[smokesignal.ID]member
	changed chan struct{} // closed at the next change
}

type member struct {
	name string
	seen time.Time
}

// newRoster starts a node that says it is here and listens to others.
func newRoster(ctx context.Context, name string, seeds ...string) (*roster, error) {
	node, err := smokesignal.New(smokesignal.Listen("127.0.0.1:0"), smokesignal.Network("presence"), smokesignal.Seeds(seeds...))
	if err != nil {
		return nil, err
	}
	if err := node.Start(ctx); err != nil {
		node.Close()
		return nil, err
	}
	ctx, stop := context.WithCancel(ctx)
	r := &roster{name: name, node: node, stop: stop, here: map[smokesignal.ID]member{}, changed: make(chan struct{})}
	statuses := presence.All(ctx, node.Broadcast())
	r.done.Go(func() {
		for msg, err := range statuses {
			switch {
			case err != nil: // a gap, or another program's event; the next beat has everything
			case msg.Value.Gone:
				r.set(msg.From, member{})
			default:
				r.set(msg.From, member{msg.Value.Name, time.Now()})
			}
		}
	})
	r.done.Go(func() { r.beat(ctx) })
	return r, nil
}

// beat broadcasts this member's status and removes members that were silent for too long.
func (r *roster) beat(ctx context.Context) {
	for tick := time.Tick(beat); ctx.Err() == nil; {
		// What is not accepted now is out of date with the next beat.
		presence.TryEmit(r.node.Broadcast(), status{Name: r.name})
		for id, m := range r.members() {
			if time.Since(m.seen) > late {
				r.set(id, member{})
			}
		}
		select {
		case <-tick:
		case <-ctx.Done():
		}
	}
}

// set notes that a member is here, or gone if it has no name.
func (r *roster) set(id smokesignal.ID, m member) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.here[id].name != m.name {
		close(r.changed)
		r.changed = make(chan struct{})
	}
	if m.name == "" {
		delete(r.here, id)
	} else {
		r.here[id] = m
	}
}

func (r *roster) members() map[smokesignal.ID]member {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.here)
}

// await returns the names of the others when there are so many.
func (r *roster) await(n int) []string {
	for {
		r.mu.Lock()
		var names []string
		for _, m := range r.here {
			names = append(names, m.name)
		}
		changed := r.changed
		r.mu.Unlock()
		if len(names) == n {
			slices.Sort(names)
			return names
		}
		<-changed
	}
}

// leave says goodbye, which Close delivers.
func (r *roster) leave(ctx context.Context) {
	r.stop()
	r.done.Wait()
	presence.Emit(ctx, r.node.Broadcast(), status{Name: r.name, Gone: true})
	r.node.Close()
}

// Presence: who is in the network, from the broadcasts of all members. A member that leaves says
// so; one that dies is missed after a while.
func Example_presence() {
	ctx := context.Background()
	var members []*roster
	var seed []string
	for _, name := range []string{"ada", "bert", "cleo", "dora"} {
		r, err := newRoster(ctx, name, seed...)
		if err != nil {
			log.Fatal(err)
		}
		seed = []string{r.node.Addrs()[0].String()} // of the one before
		members = append(members, r)
	}
	ada, bert, cleo, dora := members[0], members[1], members[2], members[3]
	fmt.Println("ada sees", ada.await(3))

	dora.leave(ctx)
	fmt.Println("ada sees", ada.await(2))

	cleo.stop() // it dies without a word
	cleo.done.Wait()
	cleo.node.Close()
	fmt.Println("ada sees", ada.await(1))

	bert.leave(ctx)
	ada.leave(ctx)
	// Output:
	// ada sees [bert cleo dora]
	// ada sees [bert cleo]
	// ada sees [bert]
}
