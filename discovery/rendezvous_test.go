package discovery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corediscovery "github.com/libp2p/go-libp2p/core/discovery"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/internal/bubble"
)

// A meeting is a Discovery that answers as a test says and remembers when it was called.
type meeting struct {
	began time.Time

	mu    sync.Mutex
	there []peer.AddrInfo
	ttl   time.Duration
	err   error
	block bool // the calls last until their context ends

	looks, adverts []time.Duration // after began
	problem        error
}

func (m *meeting) enter(ctx context.Context, ns string, calls *[]time.Duration) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	*calls = append(*calls, time.Since(m.began))
	if ns != "smokesignal/home" {
		m.problem = fmt.Errorf("namespace %q", ns)
	}
	if _, ok := ctx.Deadline(); !ok {
		m.problem = errors.New("a call without a deadline")
	}
	return m.err
}

func (m *meeting) wait(ctx context.Context) {
	m.mu.Lock()
	block := m.block
	m.mu.Unlock()
	if block {
		<-ctx.Done()
	}
}

func (m *meeting) Advertise(ctx context.Context, ns string, _ ...corediscovery.Option) (time.Duration, error) {
	if err := m.enter(ctx, ns, &m.adverts); err != nil {
		return 0, err
	}
	m.wait(ctx)
	return m.ttl, ctx.Err()
}

func (m *meeting) FindPeers(ctx context.Context, ns string, opts ...corediscovery.Option) (<-chan peer.AddrInfo, error) {
	if err := m.enter(ctx, ns, &m.looks); err != nil {
		return nil, err
	}
	found := make(chan peer.AddrInfo)
	go func() {
		defer close(found)
		for _, info := range m.there {
			select {
			case found <- info:
			case <-ctx.Done():
			}
		}
		m.wait(ctx)
	}()
	return found, nil
}

// seen returns the calls since it was called last.
func (m *meeting) seen(t *testing.T) (looks, adverts []time.Duration) {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.problem != nil {
		t.Error(m.problem)
	}
	looks, adverts = m.looks, m.adverts
	m.looks, m.adverts, m.began = nil, nil, time.Now()
	return looks, adverts
}

// fakeLinks stands for a driver with some links.
type fakeLinks struct {
	mu      sync.Mutex
	links   int
	learned []peer.ID
}

func (c *fakeLinks) linkCount() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.links
}

func (c *fakeLinks) learnUnvouched(info peer.AddrInfo) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.learned = append(c.learned, info.ID)
	return len(info.Addrs) > 0
}

func meetAt(m *meeting, min int) (*rendezvous, *fakeLinks) {
	m.began = time.Now()
	r, c := newRendezvous(m, "smokesignal/home", min, nil), &fakeLinks{}
	r.start(c)
	return r, c
}

func (r *rendezvous) links(c *fakeLinks, n int) {
	c.mu.Lock()
	c.links = n
	c.mu.Unlock()
	r.linksChanged()
}

// The searches are frequent without links, rare with few, rarer with enough, and one follows at once
// when the last link is gone.
func TestFewerLinksMeanMoreSearches(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		m := &meeting{ttl: time.Hour}
		r, c := meetAt(m, 3)
		defer r.close()

		time.Sleep(time.Minute)
		looks, _ := m.seen(t)
		if len(looks) == 0 || looks[0] != 0 {
			t.Fatalf("alone: looked after %v, want at once", looks)
		}
		want := []time.Duration{1, 2, 4, 8, 8, 8}
		for i, want := range want {
			got := looks[i+1] - looks[i]
			if want *= time.Second; got < want*4/5 || got > want*6/5 {
				t.Errorf("alone: pause %d was %v, want %v ± 20 %%", i, got, want)
			}
		}

		count := func(links int, d, every time.Duration) {
			t.Helper()
			r.links(c, links)
			time.Sleep(every * 6 / 5) // what was planned before
			m.seen(t)
			time.Sleep(d)
			looks, _ := m.seen(t)
			if n, want := len(looks), int(d/every); n < want*4/5 || n > want*5/4+1 {
				t.Errorf("%d links: looked %d times in %v, want about %d", links, n, d, want)
			}
		}
		count(2, time.Hour, fewInterval)
		count(3, 10*time.Hour, enoughInterval)

		r.links(c, 0)
		time.Sleep(4 * time.Second)
		if looks, _ := m.seen(t); len(looks) != 3 || looks[0] > firstInterval {
			t.Errorf("alone again: looked after %v, want at once, after 1 s and after 2 s more", looks)
		}
		// A link that comes and goes does not make it hammer.
		for range 100 {
			r.links(c, 1)
			synctest.Wait()
			r.links(c, 0)
			time.Sleep(100 * time.Millisecond)
		}
		if looks, _ := m.seen(t); len(looks) > 14 {
			t.Errorf("a link that flaps for 10 s: looked %d times", len(looks))
		}
	})
}

// A node advertises again before the time to live ends, and soon after a failure and after the
// first time.
func TestAdvertisementsAreRepeated(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		m := &meeting{ttl: 2 * time.Hour, err: errors.New("no other nodes in the table")}
		r, _ := meetAt(m, 3)
		defer r.close()
		time.Sleep(10 * time.Minute)
		_, adverts := m.seen(t)
		if n := len(adverts); n < 10 || n > 20 || adverts[0] != 0 {
			t.Errorf("while it failed: advertised after %v", adverts)
		}
		if _, err := r.status(); !errors.Is(err, m.err) {
			t.Errorf("Status says %v, want %v", err, m.err)
		}
		m.mu.Lock()
		m.err = nil
		m.mu.Unlock()
		time.Sleep(24 * time.Hour)
		_, adverts = m.seen(t)
		if len(adverts) < 3 || adverts[0] > lastRetry*6/5 || adverts[1]-adverts[0] != lastRetry {
			t.Fatalf("after it failed: advertised after %v", adverts)
		}
		for i := 2; i < len(adverts); i++ {
			if d := adverts[i] - adverts[i-1]; d != 105*time.Minute {
				t.Errorf("advertised again after %v; the time to live is 2 h", d)
			}
		}
		if _, err := r.status(); err != nil {
			t.Errorf("Status says %v", err)
		}
	})
}

// The overlay gets each node as soon as it is found, up to a limit. A search that exceeds its time is
// ended.
func TestFoundNodesGoToTheOverlay(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		m := &meeting{ttl: time.Hour, block: true}
		addr := ma.StringCast("/ip4/192.0.2.1/tcp/1")
		m.there = []peer.AddrInfo{{ID: "nowhere"}, {ID: "a", Addrs: []ma.Multiaddr{addr}}, {ID: "b", Addrs: []ma.Multiaddr{addr}}}
		r, c := meetAt(m, 3)
		synctest.Wait()
		c.mu.Lock()
		if !slices.Equal(c.learned, []peer.ID{"nowhere", "a", "b"}) {
			t.Errorf("learned %v", c.learned)
		}
		c.mu.Unlock()
		if n, _ := r.status(); n != 2 {
			t.Errorf("found %d, want 2", n)
		}
		time.Sleep(searchTimeout + firstInterval)
		if looks, _ := m.seen(t); len(looks) != 2 {
			t.Errorf("looked after %v; a search ends after %v", looks, searchTimeout)
		}
		r.close() // in the middle of both calls
		m.mu.Lock()
		defer m.mu.Unlock()
		for i := range 10 * maxFound {
			m.there = append(m.there, peer.AddrInfo{ID: peer.ID(fmt.Sprint(i)), Addrs: []ma.Multiaddr{addr}})
		}
		flood := &meeting{ttl: time.Hour, there: m.there}
		r, c = meetAt(flood, 3)
		synctest.Wait()
		if len(c.learned) > maxFound+1 {
			t.Errorf("%d nodes learned in one search, want %d", len(c.learned)-1, maxFound)
		}
		r.close()
	})
}

// Anybody can put addresses into a Discovery. A node on the internet must not dial into its local
// network because of them.
func TestFoundAddressesReachAsFarAsOwnOnes(t *testing.T) {
	t.Parallel()
	const public, local, here = "/ip4/9.9.9.9/tcp/1", "/ip4/192.168.1.1/tcp/1", "/ip4/127.0.0.1/tcp/1"
	unknown := idOf(t, newKey(t))
	for _, c := range []struct{ own, want string }{
		{public, "[" + public + "]"},
		{local, "[" + public + " " + local + "]"},
		{here, "[" + public + " " + local + " " + here + "]"},
		{"", "[" + public + "]"},
	} {
		x := newTester(t, testConfig{max: 3})
		x.d.node.Addrs = func() []ma.Multiaddr {
			if c.own == "" {
				return nil
			}
			return []ma.Multiaddr{ma.StringCast(c.own + "/p2p/" + x.d.host.ID().String())}
		}
		var addrs []ma.Multiaddr
		for _, a := range []string{public, local, here, "/ip4/9.9.9.9/tcp/22"} {
			addrs = append(addrs, ma.StringCast(a))
		}
		if got := x.d.filterUnvouched(peer.AddrInfo{ID: unknown, Addrs: addrs}); fmt.Sprint(got) != c.want {
			t.Errorf("a node at %q would dial %v, want %v", c.own, got, c.want)
		}
		if x.d.learnUnvouched(peer.AddrInfo{ID: x.d.host.ID(), Addrs: addrs}) || x.d.learnUnvouched(peer.AddrInfo{ID: unknown}) {
			t.Errorf("a node at %q learned of itself, or of a node without an address", c.own)
		}
	}
}
