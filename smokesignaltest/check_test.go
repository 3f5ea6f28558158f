package smokesignaltest

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/go-smokesignal/smokesignal"
)

// A witness is a testing.TB that records failures instead of failing the test.
type witness struct {
	testing.TB
	failures []string
}

func (w *witness) Helper() {}

func (w *witness) Errorf(format string, args ...any) {
	w.failures = append(w.failures, fmt.Sprintf(format, args...))
}

func (w *witness) Fatalf(format string, args ...any) {
	w.Errorf(format, args...)
	runtime.Goexit()
}

// failure runs check and returns how it failed, or "" if it did not.
func failure(t *testing.T, net *Net, check func()) string {
	w := &witness{TB: t}
	net.t = w
	done := make(chan struct{})
	go func() {
		defer close(done)
		check()
	}()
	<-done
	net.t = t
	return strings.Join(w.failures, "\n")
}

// The message of a failed check names the node and what it lacks.
func TestChecksSayWhatIsWrong(t *testing.T) {
	Run(t, func(t *testing.T) {
		net := Network(t, 4)
		net.Cut(3)
		net.Emit(0, "chat", "hello")
		for _, c := range []struct {
			check func()
			want  string
		}{
			{func() { net.EverybodyGot("chat", "hello") }, `chat["hello"] is missing at the nodes 3`},
			{func() { net.EverybodyGot("chat", "bye") }, `nobody got chat["bye"]`},
			{net.OneComponent, "3 are not linked to node 0"},
			{func() { net.Node(4) }, "there is no node 4"},
			{net.InOrder, ""},
		} {
			if got := failure(t, net, c.check); !strings.Contains(got, c.want) || c.want == "" && got != "" {
				t.Errorf("the check failed with %q, want %q", got, c.want)
			}
		}
	})
}

// InOrder fails if two nodes got common events in different orders, or an event twice.
func TestInOrderComparesTheNodes(t *testing.T) {
	net := &Net{nodes: make([]*smokesignal.Node, 2)}
	for _, c := range []struct{ a, b, want string }{
		{"1 2 3", "1 2 3", ""},
		{"1 2 3", "2 4", ""}, // only events that both nodes have are compared
		{"1 2 3", "1 3 2", "in the other order"},
		{"1 2 2", "1 2", "twice"},
	} {
		record := func(events string) (list []heardEvent) {
			for _, e := range strings.Fields(events) {
				list = append(list, heardEvent{from: "sender", name: e})
			}
			return list
		}
		net.log.processes = map[int][][]heardEvent{0: {record(c.a)}, 1: {record(c.b)}}
		if got := failure(t, net, net.InOrder); !strings.Contains(got, c.want) || c.want == "" && got != "" {
			t.Errorf("%s and %s: %q, want %q", c.a, c.b, got, c.want)
		}
	}
}
