package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/go-smokesignal/smokesignal"
)

// The entrants of this module.
const (
	Smokesignal     = "smokesignal"
	SmokesignalJSON = "smokesignal-json"
	// SmokesignalCall makes a call and waits for its result.
	SmokesignalCall = "smokesignal-call"
	// SmokesignalAnswer sends a direct event and waits for the direct event with which the
	// receiver answers.
	SmokesignalAnswer = "smokesignal-answer"
)

const eventName = "bench"

// numbers is the argument of an event that is sent as JSON: the number of the round and that of
// the event.
type numbers struct {
	Round uint32 `json:"round"`
	No    uint32 `json:"no"`
}

// nodes are smokesignal nodes that have exactly the links of a graph. They have no seeds and a
// minimum of zero peers, so they make no links by themselves.
type nodes struct {
	graph graph
	list  []*smokesignal.Node
}

// openNodes starts a smokesignal node for each node of the graph g, listening on the address
// listen, and makes the links of g between them. The caller has to close them, even after an
// error.
func openNodes(ctx context.Context, g graph, listen string) (*nodes, error) {
	ns := &nodes{graph: g}
	added := make(chan struct{}, 2*len(g.edges))
	for range g.n {
		n, err := smokesignal.New(smokesignal.Listen(listen), smokesignal.PeerLimits(0, smokesignal.Unlimited))
		if err != nil {
			return ns, err
		}
		ns.list = append(ns.list, n)
		n.OnPeerAdded(func(context.Context, *smokesignal.Peer) { added <- struct{}{} })
		if err := n.Start(ctx); err != nil {
			return ns, err
		}
	}
	for _, e := range g.edges {
		if _, err := ns.list[e[0]].Connect(ctx, ns.list[e[1]].Addrs()[0].String()); err != nil {
			return ns, err
		}
	}
	for range cap(added) {
		select {
		case <-added:
		case <-ctx.Done():
			return ns, fmt.Errorf("wait for the links: %w", context.Cause(ctx))
		}
	}
	return ns, ns.check()
}

// check returns an error if the nodes' links differ from those of the graph.
func (ns *nodes) check() error {
	for i, n := range ns.list {
		var want, got []smokesignal.ID
		for _, j := range ns.graph.neighbors(i) {
			want = append(want, ns.list[j].ID())
		}
		for p := range n.Peers().All() {
			got = append(got, p.ID())
		}
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			return fmt.Errorf("node %d has %d peers instead of its %d neighbors: the links have changed", i, len(got), len(want))
		}
	}
	return nil
}

func (ns *nodes) close() {
	var closing sync.WaitGroup
	for _, n := range ns.list {
		closing.Go(func() { n.Close() })
	}
	closing.Wait()
}

// broadcastEntrant returns an entrant that runs smokesignal on every node of the graph. The
// first node broadcasts count events per round by the pattern p. An event has size bytes or, if
// name is SmokesignalJSON, numbers as JSON.
func broadcastEntrant(name string, g graph, size, count int, p pattern) entrant {
	return entrant{name, count, func(ctx context.Context) (*rig, error) {
		ns, err := openNodes(ctx, g, tcp)
		if err != nil {
			ns.close()
			return nil, err
		}
		f := &flow{}
		for _, n := range ns.list[1:] {
			r := new(receiver)
			f.to = append(f.to, r)
			r.listen(name, n.Broadcast())
		}
		f.send = emitTo(name, ns.list[0].Broadcast(), size)
		return ns.checked(f.rig(p, ns.close)), nil
	}}
}

// directEntrant returns an entrant in which one node of a pair sends count direct events of
// size bytes per round to the other. Both nodes listen on the address listen.
func directEntrant(listen string, size, count int) entrant {
	return entrant{Smokesignal, count, func(ctx context.Context) (*rig, error) {
		ns, err := openNodes(ctx, line(2), listen)
		if err != nil {
			ns.close()
			return nil, err
		}
		r := new(receiver)
		r.listen(Smokesignal, ns.list[1].Direct())
		f := &flow{to: []*receiver{r}, send: emitTo(Smokesignal, ns.list[0].Peer(ns.list[1].ID()), size)}
		return ns.checked(f.rig(inBurst, ns.close)), nil
	}}
}

// checked changes r so that its rounds also fail if the links between the nodes are not those
// of the graph with which ns was opened. It returns r.
func (ns *nodes) checked(r *rig) *rig {
	round := r.round
	r.round = func(ctx context.Context, count int) (Round, error) {
		x, err := round(ctx, count)
		return x, errors.Join(err, ns.check())
	}
	return r
}

// listen counts the events of a source.
func (r *receiver) listen(name string, from smokesignal.Source) {
	if name == SmokesignalJSON {
		smokesignal.Name[numbers](eventName).On(from, func(_ context.Context, _ smokesignal.ID, v numbers) { r.count(v.Round, v.No) })
		return
	}
	smokesignal.Name[[]byte](eventName).On(from, func(_ context.Context, _ smokesignal.ID, b []byte) { r.countBytes(b) })
}

// emitTo returns a function for flow.send. It emits events of size bytes to the given emitter
// or, if name is SmokesignalJSON, numbers as JSON.
func emitTo(name string, to smokesignal.Emitter, size int) func(context.Context, uint32, uint32) error {
	if name == SmokesignalJSON {
		return func(ctx context.Context, round, no uint32) error {
			return smokesignal.Name[numbers](eventName).Emit(ctx, to, numbers{round, no})
		}
	}
	b := make([]byte, size) // Emit copies it, so one is enough
	return func(ctx context.Context, round, no uint32) error {
		fill(b, round, no)
		return smokesignal.Name[[]byte](eventName).Emit(ctx, to, b)
	}
}

// answerEntrant returns an entrant that sends a direct event of size bytes, which the handler
// of the other node answers with another direct event. A round has count such exchanges, one at
// a time.
func answerEntrant(listen string, size, count int) entrant {
	return entrant{SmokesignalAnswer, count, func(ctx context.Context) (*rig, error) {
		ns, err := openNodes(ctx, line(2), listen)
		if err != nil {
			ns.close()
			return nil, err
		}
		a, b := ns.list[0], ns.list[1]
		back := b.Peer(a.ID())
		b.Direct().On(eventName, func(ctx context.Context, ev *smokesignal.Event) {
			if p, ok := ev.Bytes(0); ok {
				back.Emit(ctx, eventName, p)
			}
		})
		answers := make(chan struct{}, 1)
		a.Direct().On(eventName, func(context.Context, *smokesignal.Event) { answers <- struct{}{} })
		to, request := a.Peer(b.ID()), make([]byte, size)
		ask := func(ctx context.Context) error {
			if err := to.Emit(ctx, eventName, request); err != nil {
				return err
			}
			select {
			case <-answers:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return ns.checked(&rig{
			round: func(ctx context.Context, n int) (Round, error) { return requests(ctx, n, ask) },
			close: ns.close,
		}), nil
	}}
}

// callEntrant returns an entrant in which one node calls a handler of the other node, which
// returns its argument of size bytes. A round has count calls, one at a time.
func callEntrant(listen string, size, count int) entrant {
	return entrant{SmokesignalCall, count, func(ctx context.Context) (*rig, error) {
		ns, err := openNodes(ctx, line(2), listen)
		if err != nil {
			ns.close()
			return nil, err
		}
		echo := smokesignal.Call[[]byte, []byte](eventName)
		echo.Handle(ns.list[1].Direct(), func(_ context.Context, _ smokesignal.ID, b []byte) ([]byte, error) { return b, nil })
		to, request := ns.list[0].Peer(ns.list[1].ID()), make([]byte, size)
		ask := func(ctx context.Context) error {
			_, err := echo.Do(ctx, to, request)
			return err
		}
		return ns.checked(&rig{
			round: func(ctx context.Context, n int) (Round, error) { return requests(ctx, n, ask) },
			close: ns.close,
		}), nil
	}}
}
