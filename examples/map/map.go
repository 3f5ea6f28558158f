// Map is a map of which each node has a copy. Every copy can be read and written at any
// time, also while nodes are cut off from each other; once they are linked again, the
// copies become the same.
//
//	go run ./examples/map           # a second one finds the first on the local network,
//	go run ./examples/map SEED      # and elsewhere by an address or ticket of it
//
// Its commands are lines of up to 64 KiB: set KEY VALUE, get KEY, del KEY (the same as set
// KEY without a value) and list. For any other line it prints these, and its ticket. When
// the input ends it stays, as a replica, until it is interrupted.
//
// How it works. A write is broadcast, with its time. Of two writes of a key every node keeps
// the later one, whatever their order of arrival. A write is later than everything its node
// knew of the key before, whatever the node's clock says. As long as all nodes are linked,
// that is enough. Newcomers, the two sides of a cut, and nodes that lost a broadcast for good
// learn the rest from their neighbors: each node asks each neighbor for all its entries as soon
// as they are linked, and every five seconds again, so every entry reaches every node in the
// end. A deleted key keeps its entry, without a value; otherwise the key would come back from
// a node that was cut off when it was deleted.
//
// What it does not promise: that a write has reached the others when set returns; that it
// stands, if another node with a clock that is ahead writes the same key; that anything is
// left when the last node ends; protection from members of the network, who may write what
// they like. All entries go into one answer, so there is room for half a MiB (MaxEventSize),
// deleted keys included. A node with more says so on standard error, and newcomers get
// none of its entries.
package main

import (
	"bufio"
	"context"
	"log"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/go-smokesignal/smokesignal"
)

// An entry is the last write of a key.
type entry struct {
	Value string // empty if the key is deleted
	Time  int64  // in nanoseconds since 1970, but above that of the entry it replaced
}

// String is what log prints.
func (e entry) String() string { return e.Value }

var written = smokesignal.Name[map[string]entry]("map/written")           // to all: this is new
var content = smokesignal.Call[struct{}, map[string]entry]("map/content") // to one: what do you have?

// A replica is the map as this node knows it.
type replica struct {
	mu      sync.Mutex
	entries map[string]entry
}

// merge keeps the entries that are later than those of this replica. Two nodes may write a
// key at the very same time; then the greater value wins, which is the same everywhere.
func (r *replica) merge(_ context.Context, _ smokesignal.ID, news map[string]entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, e := range news {
		if old := r.entries[key]; e.Time > old.Time || e.Time == old.Time && e.Value > old.Value {
			r.entries[key] = e
		}
	}
}

// all returns a copy of the entries, also as the answer to a call.
func (r *replica) all(context.Context, smokesignal.ID, struct{}) (map[string]entry, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.entries), nil
}

// follow merges all entries of p, now and every five seconds until the link to p ends.
func (r *replica) follow(ctx context.Context, p *smokesignal.Peer) {
	ctx, end := context.WithCancel(ctx)
	defer p.OnClose(func(context.Context, error) { end() })()
	for ; ctx.Err() == nil && p.Linked(); time.Sleep(5 * time.Second) {
		theirs, _ := content.Do(ctx, p, struct{}{}) // after an error it asks again
		r.merge(ctx, p.ID(), theirs)
	}
}

// obey carries out the commands in lines.
func (r *replica) obey(ctx context.Context, node *smokesignal.Node, lines *bufio.Scanner, out *log.Logger) {
	for lines.Scan() {
		// Three words, empty ones if need be, in UTF-8 as all that JSON takes.
		words := append(strings.SplitN(strings.ToValidUTF8(lines.Text(), "?"), " ", 3), "", "")
		all, _ := r.all(ctx, node.ID(), struct{}{})
		switch key, value := words[1], words[2]; words[0] {
		case "set", "del":
			news := map[string]entry{key: {value, max(time.Now().UnixNano(), all[key].Time+1)}}
			r.merge(ctx, node.ID(), news)
			_ = written.Emit(ctx, node.Broadcast(), news) // a node that it does not reach will ask
		case "get":
			out.Println(all[key])
		case "list":
			maps.DeleteFunc(all, func(_ string, e entry) bool { return e.Value == "" })
			out.Println(all)
		default:
			ticket, _ := node.Ticket() // empty if nobody can reach this node
			out.Println("set KEY VALUE, get KEY, del KEY or list; others join with: map", ticket)
		}
	}
}

// run is the whole program. It ends when ctx does.
func run(ctx context.Context, lines *bufio.Scanner, out *log.Logger, opts ...smokesignal.Option) error {
	// The last broadcasts too, since the neighbors of a newcomer may not have merged them yet.
	node, err := smokesignal.New(append(opts, smokesignal.Network("map"), smokesignal.Last(100), smokesignal.Logger(slog.Default().Handler()))...)
	if err != nil {
		return err
	}
	r := &replica{entries: map[string]entry{}}
	written.On(node.Broadcast(), r.merge)
	content.Handle(node.Direct(), r.all)
	node.OnPeerAdded(func(ctx context.Context, p *smokesignal.Peer) { go r.follow(ctx, p) })
	go r.obey(ctx, node, lines, out)
	return node.Run(ctx)
}
