// Map is a replicated map: each node has a copy. Every copy can be read and written at any
// time, also while nodes are cut off from each other. Once they are linked again, the copies
// become the same.
//
//	go run ./examples/map           # a second one finds the first on the local network;
//	go run ./examples/map SEED      # elsewhere it needs an address or ticket of the first
//
// Its commands are lines of up to 64 KiB: set KEY VALUE, get KEY, del KEY (the same as set
// KEY without a value) and list. For any other line it prints this list and its ticket. After
// the end of the input it goes on as a replica, until it is interrupted.
//
// How it works. A write is broadcast with its time. Of two writes of one key, every node keeps
// the later one, in whatever order they arrive. A write gets a later time than the entry that
// it replaces, even if the node's clock is slow. While all nodes are linked, that is enough.
// Newcomers, the two sides of a cut, and nodes that lost a broadcast for good get the missing
// entries from their neighbors: each node asks each neighbor for all its entries as soon as
// they are linked, and again every five seconds, so every entry reaches every node in the end.
// A deleted key keeps its entry, without a value. Otherwise the key would come back from a node
// that was cut off when it was deleted.
//
// What it does not promise: A write may not have reached the others when set returns. A later
// write may lose against an earlier one by a node whose clock is ahead. Nothing is left when
// the last node ends. Every member of the network may write anything. All entries travel in
// one answer, so they must fit into half a MiB (MaxEventSize), deleted keys included; a node
// with more says so on standard error, and newcomers get none of its entries.
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
	Time  int64  // when the value was written, in ns since 1970, but later than in the entry that it replaced
}

// String returns the value, so that log prints it alone.
func (e entry) String() string { return e.Value }

var written = smokesignal.Name[map[string]entry]("map/written")           // broadcast: new entries
var content = smokesignal.Call[struct{}, map[string]entry]("map/content") // asks one node for all its entries

// A replica is this node's copy of the map.
type replica struct {
	mu      sync.Mutex
	entries map[string]entry
}

// merge takes over those entries of news that are later than this replica's entries with the
// same keys. If two nodes wrote a key at exactly the same time, all replicas keep the greater
// value.
func (r *replica) merge(_ context.Context, _ smokesignal.ID, news map[string]entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, e := range news {
		if old := r.entries[key]; e.Time > old.Time || e.Time == old.Time && e.Value > old.Value {
			r.entries[key] = e
		}
	}
}

// all returns a copy of the entries. It is also the handler of the call content.
func (r *replica) all(context.Context, smokesignal.ID, struct{}) (map[string]entry, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.entries), nil
}

// syncWith merges all entries of p, now and every five seconds until the link to p ends.
func (r *replica) syncWith(ctx context.Context, p *smokesignal.Peer) {
	ctx, end := context.WithCancel(ctx)
	defer p.OnClose(func(context.Context, error) { end() })()
	for ; ctx.Err() == nil && p.Linked(); time.Sleep(5 * time.Second) {
		theirs, _ := content.Do(ctx, p, struct{}{}) // an error is ignored, because the loop asks again in five seconds
		r.merge(ctx, p.ID(), theirs)
	}
}

// runCommands carries out the commands that it reads from lines.
func (r *replica) runCommands(ctx context.Context, node *smokesignal.Node, lines *bufio.Scanner, out *log.Logger) {
	for lines.Scan() {
		// words has at least three elements, which are empty where the line has no more words.
		// JSON needs valid UTF-8.
		words := append(strings.SplitN(strings.ToValidUTF8(lines.Text(), "?"), " ", 3), "", "")
		all, _ := r.all(ctx, node.ID(), struct{}{})
		switch key, value := words[1], words[2]; words[0] {
		case "set", "del":
			news := map[string]entry{key: {value, max(time.Now().UnixNano(), all[key].Time+1)}}
			r.merge(ctx, node.ID(), news)
			_ = written.Emit(ctx, node.Broadcast(), news) // a node that misses the event gets the entry by a call
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
	// With the option Last, a newcomer also gets the last 100 broadcasts, which its neighbors
	// may not have merged yet.
	node, err := smokesignal.New(append(opts, smokesignal.Network("map"), smokesignal.Last(100), smokesignal.Logger(slog.Default().Handler()))...)
	if err != nil {
		return err
	}
	r := &replica{entries: map[string]entry{}}
	written.On(node.Broadcast(), r.merge)
	content.Handle(node.Direct(), r.all)
	node.OnPeerAdded(func(ctx context.Context, p *smokesignal.Peer) { go r.syncWith(ctx, p) })
	go r.runCommands(ctx, node, lines, out)
	return node.Run(ctx)
}
