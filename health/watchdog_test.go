package health

import (
	"crypto/rand"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/internal/bubble"
)

// Cuts and heals, whatever the shape: one report for each node that is cut off
// from the seed but not alone, one when it is whole again, and no other.
func TestOneReportForEachCutAndEachHeal(t *testing.T) {
	r := mathrand.New(mathrand.NewPCG(3, 4))
	for _, shape := range []struct {
		name  string
		n     int
		edges [][2]int
	}{
		{"line of 5", 5, line(5)},
		{"line of 12", 12, line(12)},
		{"ring of 8", 8, ring(8)},
		{"ring of 20", 20, ring(20)},
		{"random 20", 20, random(20, r)},
	} {
		t.Run(shape.name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				m := newMesh(t, shape.n, 1, shape.edges)
				defer m.close()
				const seed = "10.0.0.1:8495"
				time.Sleep(3 * time.Minute)
				m.want("in peace", nothing)
				for i := range 3 {
					border := 1 + (shape.n-2)*(i+1)/4
					side := func(n int) bool { return n < border }
					cut := within(shape.edges, side)
					began := time.Now()
					if i%2 == 1 {
						// The links stand until their keepalives give up.
						m.lose(func(a, b int) bool { return side(a) != side(b) })
						time.Sleep(2 * time.Second)
						m.want("soon after the cut", nothing)
						time.Sleep(10500 * time.Millisecond)
					}
					m.setLinks(cut)
					// That the links stood makes it no later.
					time.Sleep(time.Until(began.Add(patience + time.Second)))
					reported := map[int]bool{}
					m.want("after the cut", func(n *meshNode) []string {
						if side(n.n) || degree(cut, n.n) == 0 {
							return nil
						}
						reported[n.n] = true
						return []string{"lost " + seed}
					})
					time.Sleep(5 * time.Minute)
					m.want("long after", nothing)
					m.lose(nil)
					m.setLinks(shape.edges)
					time.Sleep(2 * interval)
					m.want("after the heal", func(n *meshNode) []string {
						if reported[n.n] {
							return []string{"back " + seed}
						}
						return nil
					})
					time.Sleep(3 * time.Minute)
					m.want("in peace again", nothing)
				}
			})
		})
	}
}

// A seed on each side: each side loses the other's.
func TestEachSideLosesTheOthersSeed(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		edges := random(12, mathrand.New(mathrand.NewPCG(5, 6)))
		edges = append(edges, [2]int{0, 2}, [2]int{0, 4}, [2]int{1, 3}, [2]int{1, 5}, [2]int{2, 4}, [2]int{3, 5},
			[2]int{4, 6}, [2]int{6, 8}, [2]int{8, 10}, [2]int{5, 7}, [2]int{7, 9}, [2]int{9, 11})
		m := newMesh(t, 12, 2, edges)
		defer m.close()
		time.Sleep(5 * time.Minute)
		m.want("in peace", nothing)
		m.setLinks(within(edges, func(n int) bool { return n%2 == 0 }))
		time.Sleep(patience + interval)
		m.want("cut", func(n *meshNode) []string { return []string{fmt.Sprintf("lost 10.0.0.%d:8495", 2-n.n%2)} })
		m.setLinks(edges)
		time.Sleep(patience)
		m.want("healed", func(n *meshNode) []string { return []string{fmt.Sprintf("back 10.0.0.%d:8495", 2-n.n%2)} })
	})
}

// A seed that comes back with another identity at its address is back.
func TestASeedRestartedWithAnotherIdentityIsBack(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		edges := ring(6)
		m := newMesh(t, 6, 1, edges)
		defer m.close()
		rest := slices.DeleteFunc(slices.Clone(edges), func(e [2]int) bool { return e[0] == 0 || e[1] == 0 })
		m.setLinks(rest)
		time.Sleep(patience + interval)
		m.want("seed dead", func(n *meshNode) []string {
			if n.n == 0 {
				return nil
			}
			return []string{"lost 10.0.0.1:8495"}
		})
		m.nodes[0].w.Close()
		m.mu.Lock()
		other := newSigner(t)
		m.nodes[0].id = other.id
		w, err := New(Config{
			Key: other.key, Session: [8]byte{99}, PingInterval: interval, Neighbors: m.nodes[0].neighbors, Flood: m.nodes[0].flood,
			Addrs: m.nodes[0].w.cfg.Addrs,
		})
		m.nodes[0].w = w
		m.mu.Unlock()
		if err != nil {
			t.Fatal(err)
		}
		w.Start()
		m.setLinks(edges)
		time.Sleep(patience)
		m.want("seed restarted", func(n *meshNode) []string {
			if n.n == 0 {
				return nil
			}
			return []string{"back 10.0.0.1:8495"}
		})
	})
}

// One ping serves all: what a seed costs does not depend on how many watch it.
func TestASeedCostsTwoFloodsAnInterval(t *testing.T) {
	for _, n := range []int{5, 20, 50} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				edges := random(n, mathrand.New(mathrand.NewPCG(7, uint64(n))))
				m := newMesh(t, n, 1, edges)
				defer m.close()
				time.Sleep(time.Minute)
				count := func() (sent, floods int) {
					m.mu.Lock()
					defer m.mu.Unlock()
					return m.sent, m.floods
				}
				const intervals = 30
				sent, floods := count()
				time.Sleep(intervals * interval)
				sent2, floods2 := count()
				links := len(m.links)
				// A flood goes over each link once or twice.
				perFlood := 2*links - (n - 1)
				alive := float64(sent2-sent) / float64(perFlood) / intervals
				t.Logf("%d nodes, %d links: %.2f floods begun and %.2f floods' worth of messages an interval", n, links,
					float64(floods2-floods)/intervals, alive)
				if alive > 2 {
					t.Errorf("%.2f floods an interval, want at most 2", alive)
				}
				m.want("in peace", nothing)

				// Nor when it is dead.
				m.setLinks(within(edges, func(n int) bool { return n == 0 }))
				time.Sleep(time.Minute)
				sent, _ = count()
				time.Sleep(intervals * interval)
				sent2, _ = count()
				dead := float64(sent2-sent) / float64(perFlood) / intervals
				t.Logf("dead: %.2f floods' worth of messages an interval", dead)
				if dead > 2 {
					t.Errorf("%.2f floods an interval for a dead seed, want at most 2", dead)
				}
			})
		})
	}
}

// Links that lose one message in ten cause no alarm, as floods go three ways and
// a ping in vain is repeated.
func TestLossOnLinksIsNotANetsplit(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r := mathrand.New(mathrand.NewPCG(9, 9))
		edges := ring(16)
		for i := range 8 {
			edges = append(edges, [2]int{i, i + 8})
		}
		m := newMesh(t, 16, 1, edges)
		defer m.close()
		m.lose(func(int, int) bool { return r.IntN(10) == 0 })
		time.Sleep(30 * time.Minute)
		m.want("with one in ten lost", nothing)
	})
}

// A node that is stuck, here in its own Flood, hears nobody meanwhile and must
// not treat that as silence of the seeds.
func TestBeingStuckIsNotANetsplit(t *testing.T) {
	for _, pause := range []time.Duration{4 * time.Second, interval + time.Second, patience, 5 * time.Minute} {
		bubble.Test(t, func(t *testing.T) {
			m := newMesh(t, 4, 1, line(4))
			defer m.close()
			far := m.nodes[3]
			for range 8 {
				stuck := make(chan struct{})
				m.mu.Lock()
				far.stuck = stuck
				m.mu.Unlock()
				time.Sleep(pause)
				m.mu.Lock()
				far.stuck = nil
				m.mu.Unlock()
				close(stuck)
				time.Sleep(mathrand.N(interval))
			}
			m.want(fmt.Sprint("stuck for ", pause), nothing)
			time.Sleep(patience)
			m.want("afterwards", nothing)
		})
	}
}

// A cut that ends before the links do is over when the first of them speaks.
func TestALostNeighborIsBackWhenItsLinkSpeaks(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		m := newMesh(t, 3, 1, line(3))
		defer m.close()
		m.lose(func(a, b int) bool { return a == 0 || b == 0 })
		time.Sleep(patience + time.Second)
		m.want("cut, and the links stand", func(n *meshNode) []string {
			if n.n == 0 {
				return nil
			}
			return []string{"lost 10.0.0.1:8495"}
		})
		m.nodes[1].w.Heard(m.nodes[0].id)
		synctest.Wait()
		m.want("the link speaks", func(n *meshNode) []string {
			if n.n != 1 {
				return nil
			}
			return []string{"back 10.0.0.1:8495"}
		})
	})
}

// A node without neighbors reports no netsplit.
func TestANodeAloneReportsNothing(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		m := newMesh(t, 3, 1, line(3))
		defer m.close()
		time.Sleep(time.Minute)
		m.setLinks([][2]int{{1, 2}})
		time.Sleep(2 * timeout) // it was heard at most 1.5 intervals before
		m.setLinks(nil)
		time.Sleep(time.Hour)
		m.want("alone", nothing)
		m.setLinks([][2]int{{1, 2}})
		time.Sleep(patience - time.Second)
		m.want("two, not yet", nothing)
		time.Sleep(time.Second + 50*time.Millisecond)
		m.want("two", func(n *meshNode) []string {
			if n.n == 0 {
				return nil
			}
			return []string{"lost 10.0.0.1:8495"}
		})
	})
}

// Status shows when each seed was heard and whether it is lost.
func TestStatusFollowsTheSeeds(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		m := newMesh(t, 4, 2, line(4))
		defer m.close()
		last := m.nodes[3]
		begin := time.Now()
		status := last.w.Status()
		if len(status) != 2 || status[0].Seed != "10.0.0.1:8495" || !status[0].LastHeard.Equal(begin) || status[0].Netsplit {
			t.Errorf("at first: %+v", status)
		}
		last.w.mu.Lock()
		if id := last.w.core.seeds[0].id; id != m.nodes[0].id {
			t.Errorf("the first seed is %s, want %s", id, m.nodes[0].id)
		}
		last.w.mu.Unlock()
		if own := m.nodes[0].w.Status(); len(own) != 1 || own[0].Seed != "10.0.0.2:8495" {
			t.Errorf("a seed watches itself: %+v", own)
		}
		time.Sleep(5 * time.Minute)
		for _, s := range last.w.Status() {
			if s.Netsplit || time.Since(s.LastHeard) > 2*interval+timeout {
				t.Errorf("later: %+v", s)
			}
		}
		m.setLinks([][2]int{{2, 3}})
		time.Sleep(patience + interval)
		for _, s := range last.w.Status() {
			if !s.Netsplit || time.Since(s.LastHeard) < patience {
				t.Errorf("cut: %+v", s)
			}
		}
	})
}

// A node with the watchdog off still answers and forwards pings.
func TestANodeWithoutWatchdogStillAnswersAndForwards(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		m := newMesh(t, 4, 1, line(4))
		defer m.close()
		// The seed and a node on the way have their watchdogs off.
		for _, i := range []int{0, 1} {
			n := m.nodes[i]
			n.w.Close()
			cfg := n.w.cfg
			cfg.PingInterval = 0
			w, err := New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			m.mu.Lock()
			n.w = w
			m.mu.Unlock()
			w.Start()
			w.SeedFound("10.0.0.1:8495", m.nodes[0].id, nil)
		}
		time.Sleep(time.Hour)
		m.want("alive", nothing)
		m.setLinks([][2]int{{1, 2}, {2, 3}})
		time.Sleep(patience + interval)
		m.want("dead", func(n *meshNode) []string {
			if n.n < 2 {
				return nil
			}
			return []string{"lost 10.0.0.1:8495"}
		})
	})
}

// Close ends the goroutines of the watchdog.
func TestCloseEndsTheGoroutinesOfTheWatchdog(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		m := newMesh(t, 3, 1, line(3))
		defer m.close()
		time.Sleep(time.Minute)
		for _, n := range m.nodes {
			n.w.Start() // once more
			n.w.Close()
			n.w.Close()
			n.w.Start()
		}
		synctest.Wait()
		n := m.nodes[2]
		n.w.Receive(m.nodes[1].id, m.nodes[1].pong(t, 1))
		n.w.NeighborsChanged()
		n.w.Heard(m.nodes[0].id)
		n.w.SeedFound("10.0.0.1:8495", m.nodes[0].id, nil)
		if len(n.w.Status()) != 1 || n.w.Stats()["received"] == 0 {
			t.Errorf("%+v %+v", n.w.Status(), n.w.Stats())
		}
		time.Sleep(time.Hour)
		m.want("closed", nothing)

		w, err := New(n.w.cfg)
		if err != nil {
			t.Fatal(err)
		}
		w.Close() // never started
		w.Start()
	}) // a goroutine left behind fails here
}

// Signals of a flooding neighbor are dropped; those of the others are read.
func TestAFloodingNeighborHurtsOnlyItself(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		m := newMesh(t, 4, 1, [][2]int{{0, 1}, {1, 2}, {2, 3}})
		defer m.close()
		victim, flooder := m.nodes[2], m.nodes[3]
		stop := time.Now().Add(time.Minute)
		for i := uint64(0); time.Now().Before(stop); i++ {
			victim.w.Receive(flooder.id, []byte(strings.Repeat("x", 4000)))
			victim.w.Receive(flooder.id, flooder.pong(t, 1, fmt.Sprintf("10.1.%d.%d:1", byte(i>>8), byte(i))))
			time.Sleep(2 * time.Millisecond)
		}
		m.want("flooded", nothing)
		if s := victim.w.Stats(); s["dropped"] < 50_000 || s["malformed"] == 0 {
			t.Errorf("%+v", s)
		}
	})
}

// The error of New names the wrong field of the configuration.
func TestNewSaysWhatIsWrongWithItsConfig(t *testing.T) {
	good := Config{
		Key:       newSigner(t).key,
		Neighbors: func() []peer.ID { return nil },
		Flood:     func([]byte, peer.ID) {},
	}
	if w, err := New(good); err != nil {
		t.Fatal(err)
	} else if w.core.timeout != defaultTimeout || w.core.interval != 0 {
		t.Errorf("%v %v", w.core.timeout, w.core.interval)
	}
	rsa, _, err := crypto.GenerateRSAKeyPair(2048, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Config){
		"Config.Key is missing":       func(c *Config) { c.Key = nil },
		"Config.Neighbors is missing": func(c *Config) { c.Neighbors = nil },
		"Config.Flood is missing":     func(c *Config) { c.Flood = nil },
		"Config.PingInterval is -1s":  func(c *Config) { c.PingInterval = -time.Second },
		"Config.PingTimeout is 48h":   func(c *Config) { c.PingTimeout = 48 * time.Hour },
		"use Ed25519":                 func(c *Config) { c.Key = rsa },
	} {
		c := good
		change(&c)
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// For the race detector: everything at once, in real time.
func TestAllMethodsAtOnce(t *testing.T) {
	me, seed := newSigner(t), newSigner(t)
	var w *Watchdog
	w, err := New(Config{
		Key: me.key, PingInterval: 2 * time.Millisecond, PingTimeout: time.Millisecond, Seeds: []WatchedSeed{seedOf(seedAddr)},
		Neighbors:  func() []peer.ID { return []peer.ID{"neighbor"} },
		Flood:      func([]byte, peer.ID) {},
		OnNetsplit: func(string) { w.Status() },
		OnResolved: func(string) { w.SeedFound(seedAddr, seed.id, nil) },
	})
	if err != nil {
		t.Fatal(err)
	}
	w.Start()
	var tasks sync.WaitGroup
	for i := range 4 {
		tasks.Go(func() {
			for j := range 100 {
				w.Heard(seed.id)
				w.Receive(peer.ID(fmt.Sprint(i)), seed.pong(t, uint64(1000*i+j), seedAddr))
				w.SeedFound(seedAddr, seed.id, []ma.Multiaddr{ma.StringCast("/ip4/10.0.0.1/tcp/1")})
				w.NeighborsChanged()
				w.Status()
				w.Stats()
				if j == 50 {
					w.SeedFound(seedAddr, me.id, nil)
				}
			}
		})
	}
	tasks.Wait()
	tasks.Go(w.Close)
	w.Close()
	tasks.Wait()
}
