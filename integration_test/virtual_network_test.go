package integration_test

import (
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/checker"
)

// onePart waits until the nodes have one tag, which is the id of one of them, and
// returns that one.
func (v *virtual) onePart(within time.Duration, what string, nodes ...*virtualNode) (owner *virtualNode) {
	v.t.Helper()
	began := time.Now()
	for {
		tag := nodes[0].Network().Tag
		agreed := true
		for _, m := range nodes {
			agreed = agreed && m.Network().Tag == tag
			if m.ID() == tag {
				owner = m
			}
		}
		if agreed && owner != nil && owner.ID() == tag {
			v.t.Logf("%s: one tag after %v", what, tenth(time.Since(began)))
			return owner
		}
		if time.Since(began) > within {
			for _, m := range nodes {
				v.t.Logf("%s: %+v", m.name, m.Network())
			}
			v.t.Fatalf("%s: no tag of their own within %v", what, within)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// TestVirtualNetwork: nodes of one part have one tag, the id of one of them. Parts that
// are cut from each other have different ones, and one again when they link, or when the
// node whose tag it was is gone.
func TestVirtualNetwork(t *testing.T) {
	const (
		meeting = 10 * time.Second
		parting = 41 * time.Second // 40, and what a flood takes
	)
	inVirtualTime(t, func(t *testing.T, v *virtual) {
		const n = 6
		v.join(n, []int{0})
		all := v.nodes
		owner := v.onePart(meeting, "joined", all...)
		time.Sleep(time.Minute)
		if now := v.onePart(0, "a minute later", all...); now != owner {
			t.Errorf("the tag went from %s to %s, and nothing had happened", owner.name, now.name)
		}
		for _, m := range all {
			p := m.Network()
			if p.Links != m.Peers().Len() || p.Known != n-1 || p.Lost != 0 || time.Since(p.Since) < time.Minute {
				t.Errorf("%s, with %d peers: %+v", m.name, m.Peers().Len(), p)
			}
		}

		v.part()
		cut := time.Now()
		even, odd := []*virtualNode{all[0], all[2], all[4]}, []*virtualNode{all[1], all[3], all[5]}
		owners := map[*virtualNode]*virtualNode{}
		for _, side := range [][]*virtualNode{even, odd} {
			own := v.onePart(time.Until(cut.Add(parting)), "cut", side...)
			for _, m := range side {
				owners[m] = own
			}
		}
		time.Sleep(time.Until(cut.Add(time.Minute)))
		for _, m := range all {
			p := m.Network()
			if p.Tag != owners[m].ID() || p.Since.Before(cut) != (owners[m] == owner) || p.Links != 2 || p.Known != 2 || p.Lost != 3 {
				t.Errorf("%s, cut at %v: %+v", m.name, cut, p)
			}
		}
		if owners[even[0]] == owners[odd[0]] {
			t.Errorf("both sides have the tag of %s", owner.name)
		}
		v.heal()
		owner = v.onePart(meeting, "healed", all...)

		closed := time.Now()
		v.close(owner.Node)
		owner.dead = true
		if p := owner.Network(); p != (smokesignal.NetworkView{}) {
			t.Errorf("closed: %+v", p)
		}
		v.onePart(parting, "after "+owner.name+" was closed", v.alive()...)
		for _, m := range v.alive() {
			if p := m.Network(); p.Since.Before(closed) {
				t.Errorf("%s, closed at %v: %+v", m.name, closed, p)
			}
		}
		v.finish()
	})
}

// TestVirtualLongCut: after a cut of minutes every node dials every other again, also
// nodes that were dialed before and never dialed themselves.
func TestVirtualLongCut(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, v *virtual) {
		const n = 6
		v.gather(n, []int{0}, smokesignal.PeerLimits(n-1, n))
		// A peer that a node knows only from other nodes is dialed at most three times in ten minutes.
		v.wait(time.Minute, "everybody linked to everybody", func(s *checker.State) bool { return s.Degrees()[n-1] == n })
		v.part()
		time.Sleep(5 * time.Minute)
		v.heal()
		healed := time.Now()
		for _, m := range v.nodes {
			for m.Network().Known < n-1 {
				if time.Since(healed) > 90*time.Second { // ten, as a rule; a lost neighbor is tried once in 64 at least
					t.Fatalf("%s: %+v", m.name, m.Network())
				}
				time.Sleep(100 * time.Millisecond)
			}
		}
		t.Log("everybody knows everybody after", tenth(time.Since(healed)))
		v.finish()
	})
}
