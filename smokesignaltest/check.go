package smokesignaltest

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-smokesignal/smokesignal"
)

// A heardEvent is one broadcast event as a node got it.
type heardEvent struct {
	from smokesignal.ID
	name string
	args string // as JSON
}

// A recorder holds the broadcast events that each node got, separately for each time that the
// node was started.
type recorder struct {
	mu        sync.Mutex
	processes map[int][][]heardEvent // by node, the present process last
}

// follow records the events of node, which is about to be started as node i. It must be called
// before Start.
func (r *recorder) follow(i int, node *smokesignal.Node) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.processes == nil {
		r.processes = map[int][][]heardEvent{}
	}
	r.processes[i] = append(r.processes[i], nil)
	process := len(r.processes[i]) - 1
	node.Broadcast().On("*", func(_ context.Context, ev *smokesignal.Event) {
		got := heardEvent{ev.From, ev.Name, text(ev)}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.processes[i][process] = append(r.processes[i][process], got)
	})
}

// all returns the events that node i got since the test began, also before a Restart.
func (r *recorder) all(i int) []heardEvent {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Concat(r.processes[i]...)
}

// runs returns the events that node i got, one slice for each time that the node was started.
func (r *recorder) runs(i int) [][]heardEvent {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.processes[i])
}

// text returns the arguments of ev as a JSON array. Raw bytes are in base64.
func text(ev *smokesignal.Event) string {
	args := make([]any, ev.Len())
	ptrs := make([]any, len(args))
	for i := range args {
		ptrs[i] = &args[i]
	}
	if err := ev.Decode(ptrs...); err != nil {
		return "undecodable: " + err.Error()
	}
	return encode(args)
}

func encode(args []any) string {
	b, err := json.Marshal(args)
	if err != nil {
		return "cannot be written as JSON: " + err.Error()
	}
	return string(b)
}

// Got returns the first argument of each broadcast event with this name that node i
// received, in order of arrival. The values have the types that encoding/json decodes
// into an any.
func (n *Net) Got(i int, name string) []any {
	n.t.Helper()
	n.Node(i)
	var values []any
	for _, got := range n.log.all(i) {
		var args []any
		if got.name == name && json.Unmarshal([]byte(got.args), &args) == nil {
			values = append(values, slices.Concat(args, []any{nil})[0])
		}
	}
	return values
}

// EverybodyGot waits until every living node except the sender has received a broadcast
// event with this name and these arguments. It compares arguments in their JSON form.
func (n *Net) EverybodyGot(name string, args ...any) {
	n.t.Helper()
	want := encode(args)
	n.wait(func() string {
		got := map[int]smokesignal.ID{}
		for _, i := range n.Alive() {
			for _, r := range n.log.all(i) {
				if r.name == name && r.args == want {
					got[i] = r.from
				}
			}
		}
		var missing []string
		for _, i := range n.Alive() {
			if _, ok := got[i]; !ok && !n.sent(i, got) {
				missing = append(missing, fmt.Sprint(i))
			}
		}
		if len(got) == 0 {
			return fmt.Sprintf("nobody got %s%s", name, want)
		}
		if len(missing) == 0 {
			return ""
		}
		return fmt.Sprintf("%s%s is missing at the nodes %s", name, want, strings.Join(missing, ", "))
	})
}

// sent reports whether node i sent an event, given the id of the event's sender at each node
// that got it.
func (n *Net) sent(i int, got map[int]smokesignal.ID) bool {
	for _, from := range got {
		if from == n.nodes[i].ID() {
			return true
		}
	}
	return false
}

// InOrder checks the broadcast events that every two nodes received from the same sender.
// It fails the test if a node received an event twice, or if the two nodes received the
// events that both have in different orders. It can tell two events apart only by name
// and arguments, so number the events that you send.
func (n *Net) InOrder() {
	n.t.Helper()
	type flow struct {
		node, process int
		events        []string
	}
	flows := map[smokesignal.ID][]flow{}
	for i := range n.nodes {
		for p, run := range n.log.runs(i) {
			bySender := map[smokesignal.ID][]string{}
			for _, got := range run {
				bySender[got.from] = append(bySender[got.from], got.name+got.args)
			}
			for from, events := range bySender {
				flows[from] = append(flows[from], flow{i, p, events})
			}
		}
	}
	for from, list := range flows {
		for k, a := range list {
			seen := map[string]int{}
			for at, event := range a.events {
				if first, twice := seen[event]; twice {
					n.t.Errorf("smokesignaltest: node %d got %s of %s twice, as event %d and as event %d", a.node, event, from, first, at)
				}
				seen[event] = at
			}
			for _, b := range list[k+1:] {
				last, lastEvent := -1, ""
				for _, event := range b.events {
					at, both := seen[event]
					if !both {
						continue
					}
					if at < last {
						n.t.Errorf("smokesignaltest: of the events of %s, node %d got %s before %s, and node %d got them in the other order", from, a.node, event, lastEvent, b.node)
						break
					}
					last, lastEvent = at, event
				}
			}
		}
	}
}

// OneComponent waits until all living nodes form one network, in which every two nodes are
// linked directly or through others.
func (n *Net) OneComponent() {
	n.t.Helper()
	n.wait(func() string {
		alive := n.Alive()
		if len(alive) == 0 {
			return "no node is alive"
		}
		number := map[smokesignal.ID]int{}
		for _, i := range alive {
			number[n.nodes[i].ID()] = i
		}
		reached := map[int]bool{alive[0]: true}
		for queue := []int{alive[0]}; len(queue) > 0; queue = queue[1:] {
			for p := range n.nodes[queue[0]].Peers().All() {
				i, ok := number[p.ID()]
				// A link counts when both ends have it.
				if ok && !reached[i] && n.nodes[i].Peer(n.nodes[queue[0]].ID()).Linked() {
					reached[i] = true
					queue = append(queue, i)
				}
			}
		}
		if len(reached) == len(alive) {
			return ""
		}
		var apart []string
		for _, i := range alive {
			if !reached[i] {
				apart = append(apart, fmt.Sprint(i))
			}
		}
		return fmt.Sprintf("of the nodes %v, %s are not linked to node %d", alive, strings.Join(apart, ", "), alive[0])
	})
}

// wait waits for a condition. why returns the empty string if the condition is met, and
// otherwise says why not. After Timeout, wait fails the test with the last reason.
func (n *Net) wait(why func() string) {
	n.t.Helper()
	began := time.Now()
	for {
		reason := why()
		if reason == "" {
			return
		}
		if time.Since(began) >= Timeout {
			n.t.Fatalf("smokesignaltest: after %v: %s", Timeout, reason)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
