package integration_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal/integration_test/internal/checker"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/cluster"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/netns"
)

// TestNAT runs nodes on machines of their own, network namespaces: some on an internet,
// a bridge, others behind routers that translate addresses as those at home do. Not a
// packet leaves them.
func TestNAT(t *testing.T) {
	needs(t, long)
	inside, err := netns.Enter(t)
	if err != nil {
		cannot(t, err)
	}
	if !inside {
		return // it has run, as root of a user namespace
	}
	t.Run("both behind NATs, linked directly", natPunched)
	t.Run("no direct connection possible", natImpossible)
	t.Run("a port mapped", natMapped)
	t.Run("nodes that cannot be dialed join", natJoin)
}

// An internet is one bridge. Its addresses are from 192.52.193.0/24, set aside for
// relays of multicast: no host of anybody is there, and libp2p treats it as public.
type internet struct {
	t      *testing.T
	bridge *machine
	ports  int
}

func newInternet(t *testing.T) *internet {
	n := &internet{t: t}
	n.bridge = n.newMachine()
	n.bridge.run("ip", "link", "add", "internet", "type", "bridge")
	n.bridge.run("ip", "link", "set", "internet", "up")
	return n
}

// A machine is a network namespace. It exists as long as the test.
type machine struct {
	*internet
	*netns.Namespace
	ip string
}

// newMachine makes a machine that is connected to nothing.
func (n *internet) newMachine() *machine {
	n.t.Helper()
	ns, err := netns.New()
	n.can(err)
	n.t.Cleanup(func() { ns.Close() })
	return &machine{internet: n, Namespace: ns}
}

// can skips the test where the system does not let it make a network.
func (n *internet) can(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Skip("SKIPPED: this system does not let the test make a network: ", err)
	}
}

// run runs a command in the machine.
func (m *machine) run(command ...string) {
	m.t.Helper()
	m.can(m.Run(command...))
}

// plug connects the interface dev of the machine to a new port of the internet,
// with the last byte of its address.
func (m *machine) plug(dev string, last int) {
	m.t.Helper()
	m.ports++
	port := fmt.Sprint("port", m.ports)
	m.ip = fmt.Sprintf("192.52.193.%d", last)
	m.can(netns.Plug(m.bridge.Namespace, port, "", m.Namespace, dev, m.ip+"/24"))
	m.bridge.run("ip", "link", "set", port, "master", "internet")
}

// public is a machine on the internet.
func (n *internet) public(last int) *machine {
	n.t.Helper()
	m := n.newMachine()
	m.plug("eth0", last)
	return m
}

// A router stands before one machine, its home.
type router struct {
	*machine
	home     *machine
	forwards bool // the ports that it maps
}

// behindNAT is a machine at home: in a private network behind a router, which has
// the one address on the internet. Ports are kept where that is possible, or chosen
// at random for each connection. As home routers do, it drops what nobody inside
// asked for.
func (n *internet) behindNAT(last int, randomly bool) *machine {
	n.t.Helper()
	return n.newRouter(last, randomly).home
}

func (n *internet) newRouter(last int, randomly bool) *router {
	n.t.Helper()
	router, home := &router{machine: n.newMachine()}, n.newMachine()
	router.home = home
	router.plug("wan", last)
	home.ip = "192.168.1.2"
	n.can(netns.Plug(router.Namespace, "lan", "192.168.1.1/24", home.Namespace, "eth0", home.ip+"/24"))
	n.can(router.Do(func() error {
		return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644)
	}))
	masquerade := "masquerade"
	if randomly {
		masquerade = "masquerade fully-random"
	}
	router.run("nft", `
		table ip home {
			chain out { type nat hook postrouting priority srcnat; oifname "wan" `+masquerade+`; }
			chain to { type nat hook prerouting priority dstnat; }
			chain in { type filter hook input priority filter; iifname "wan" ct state new drop; }
			chain through { type filter hook forward priority filter; iifname "wan" ct status dnat accept; iifname "wan" ct state new drop; }
		}`)
	home.run("ip", "route", "add", "default", "via", "192.168.1.1")
	return router
}

// on starts a node on a machine.
func (m *machine) on(c *cluster.Cluster, spec cluster.Spec) *cluster.Proc {
	spec.In = m.Do
	if spec.Listen == nil {
		spec.Listen = []string{":8495"}
	}
	return c.Start(spec)
}

// at is the address of a node on a machine of the internet, over QUIC.
func (m *machine) at(p *cluster.Proc) string {
	return fmt.Sprintf("/ip4/%s/udp/8495/quic-v1/p2p/%s", m.ip, p.ID())
}

// linked reports whether two nodes have each other in their lists.
func linked(a, b *cluster.Proc) func(*checker.State) bool {
	idA, idB := a.ID(), b.ID()
	return func(s *checker.State) bool { return s.Proc(a.Name).Has(idB) && s.Proc(b.Name).Has(idA) }
}

// all reports whether all of the conditions hold.
func all(conditions ...func(*checker.State) bool) func(*checker.State) bool {
	return func(s *checker.State) bool {
		return !slices.ContainsFunc(conditions, func(f func(*checker.State) bool) bool { return !f(s) })
	}
}

// exchange has each broadcast n events, and waits until all others have them.
func exchange(t *testing.T, c *cluster.Cluster, n int, procs ...*cluster.Proc) {
	t.Helper()
	before := map[[2]string]uint64{}
	heard := func(s *checker.State, by, from *cluster.Proc) uint64 {
		return s.Proc(by.Name).Heard[checker.Stream{Run: from.Name, Channel: checker.Broadcast}]
	}
	c.Log.Inspect(func(s *checker.State) {
		for _, by := range procs {
			for _, from := range procs {
				before[[2]string{by.Name, from.Name}] = heard(s, by, from)
			}
		}
	})
	for _, p := range procs {
		if r := p.Answer(p.Broadcast("b", n, 64), soon); r.Err != "" {
			t.Fatalf("%s: %s", p.Name, r.Err)
		}
	}
	c.Wait(soon, "everybody hears everybody", func(s *checker.State) bool {
		for _, by := range procs {
			for _, from := range procs {
				if by != from && heard(s, by, from) < before[[2]string{by.Name, from.Name}]+uint64(n) {
					return false
				}
			}
		}
		return true
	})
}

// natPunched: two nodes behind two NATs that know only a seed, which is their
// relay too, link to each other directly: when the seed is dead, each still hears
// the other.
func natPunched(t *testing.T) {
	t.Parallel()
	n := newInternet(t)
	c := cluster.New(t)
	open := n.public(1)
	relay := open.on(c, cluster.Spec{Name: "relay", RelayService: true})
	spec := cluster.Spec{Seeds: []string{open.ip + ":8495"}, Relays: []string{open.at(relay)}}
	spec.Name = "a"
	a := n.behindNAT(11, false).on(c, spec)
	// A node that joined over TCP gets a direct link too.
	spec.Name, spec.Seeds = "b", []string{fmt.Sprintf("/ip4/%s/tcp/8495/p2p/%s", open.ip, relay.ID())}
	b := n.behindNAT(12, false).on(c, spec)
	c.Wait(soon, "both linked to the relay", all(linked(a, relay), linked(b, relay)))
	took := c.Wait(soon, "linked through both NATs", linked(a, b))
	t.Logf("linked through both NATs after %v more", took.Round(time.Millisecond))
	exchange(t, c, 20, relay, a, b)
	relay.Kill()
	c.Wait(soon, "the relay is gone", func(s *checker.State) bool {
		return len(s.Proc(a.Name).Peers) == 1 && len(s.Proc(b.Name).Peers) == 1
	})
	exchange(t, c, 20, a, b)
	c.Check(checker.Config{})
}

// natImpossible: with NATs that give each connection another port no direct
// connection comes about. Every node reports so, nothing goes through the relay, and
// the network works through the nodes that can be dialed.
func natImpossible(t *testing.T) {
	t.Parallel()
	n := newInternet(t)
	c := cluster.New(t)
	open := n.public(1)
	relay := open.on(c, cluster.Spec{Name: "relay", RelayService: true})
	spec := cluster.Spec{Seeds: []string{open.ip + ":8495"}, Relays: []string{open.at(relay)}}
	spec.Name = "a"
	a := n.behindNAT(11, true).on(c, spec)
	spec.Name = "b"
	b := n.behindNAT(12, true).on(c, spec)
	c.Wait(soon, "both linked to the relay", all(linked(a, relay), linked(b, relay)))

	// Who names b only, at its place behind the relay, stays alone and learns why.
	atB := open.at(relay) + "/p2p-circuit/p2p/" + b.ID()
	spec.Name, spec.Seeds = "c", []string{atB}
	lone := n.behindNAT(13, true).on(c, spec)
	ready := lone.Ask(cluster.Command{Do: cluster.Ready, Within: 15 * time.Second})
	if !strings.Contains(ready.Err, "not connected after") || !strings.Contains(ready.Err, "seed "+atB+": only reached through a relay, no direct connection") {
		t.Errorf("Ready says %q", ready.Err)
	}
	if ready.Code != "ErrRelayed" {
		t.Errorf("Ready returns %s", ready.Code)
	}
	reported := c.Log.RecordsOf(lone.Name, checker.SeedError)
	if len(reported) != 1 || reported[0].Code != "ErrRelayed" {
		t.Errorf("OnSeedError got %v", reported)
	}
	if strings.Count(ready.Err, "only reached") != 1 {
		t.Errorf("Ready says it twice: %q", ready.Err)
	}
	// So does a node that learned of b in another way.
	spec.Name, spec.Seeds = "d", nil
	added := n.behindNAT(14, true).on(c, spec)
	if add := added.Ask(cluster.Command{Do: cluster.AddPeer, To: atB, Within: 15 * time.Second}); add.Code != "ErrRelayed" {
		t.Errorf("Connect returns %q", add.Err)
	}
	ready = added.Ask(cluster.Command{Do: cluster.Ready, Within: time.Millisecond})
	if !strings.Contains(ready.Err, "node "+b.ID()+" is only reached through a relay, no direct connection") || ready.Code != "ErrRelayed" {
		t.Errorf("then Ready says %q (%s)", ready.Err, ready.Code)
	}
	// A direct event to a node behind the relay is refused in words, too.
	direct := added.Send(cluster.Command{Do: cluster.Direct, To: b.ID(), Name: "d", Count: 1, Size: 8})
	if r := added.Answer(direct, soon); r.Code != "ErrRelayed" {
		t.Errorf("Emit to a node behind a relay returns %q", r.Err)
	}

	exchange(t, c, 20, relay, a, b)
	both := linked(a, b)
	c.Log.Inspect(func(s *checker.State) {
		if both(s) || len(s.Proc(lone.Name).Peers) > 0 || s.Proc(lone.Name).Counts[checker.PeerAdded] > 0 {
			t.Error("there is a link over a relay")
		}
	})
	if heard := c.Log.RecordsOf(lone.Name, checker.Received); len(heard) > 0 {
		t.Errorf("%d events came through a relay", len(heard))
	}
}

// natMapped: a node whose router forwards its port is dialed there by others that
// learn the address from its record; its relays are announced until it was found that
// it can be dialed. The address that a router has promised in vain is found out, too.
func natMapped(t *testing.T) {
	t.Parallel()
	n := newInternet(t)
	c := cluster.New(t)
	var relays []string
	for i := range 2 { // two have to agree, and each tries one address in two minutes
		open := n.public(1 + i)
		relay := open.on(c, cluster.Spec{Name: fmt.Sprintf("relay%d", i), RelayService: true, Limits: &[2]int{0, 5}})
		relays = append(relays, open.at(relay))
	}
	spec := cluster.Spec{Listen: []string{"/ip4/0.0.0.0/udp/8495/quic-v1"}, PortMapping: true, Relays: relays, Seeds: relays[:1]}
	announces := func(p *cluster.Proc, part string, yes bool) func(*checker.State) bool {
		return func(s *checker.State) bool {
			return yes == slices.ContainsFunc(s.Proc(p.Name).Addrs, func(a string) bool { return strings.Contains(a, part) })
		}
	}

	good, bad := n.newRouter(11, false), n.newRouter(12, false)
	good.mapPorts(true)
	bad.mapPorts(false)
	spec.Name = "mapped"
	mapped := good.home.on(c, spec)
	spec.Name = "deceived"
	deceived := bad.home.on(c, spec)
	atGood, atBad := "/ip4/"+good.ip+"/udp/", "/ip4/"+bad.ip+"/udp/"
	c.Wait(soon, "the mapped ports are announced, and the relays", all(
		announces(mapped, atGood, true), announces(mapped, "/p2p-circuit/", true),
		announces(deceived, atBad, true), announces(deceived, "/p2p-circuit/", true)))
	c.Wait(soon, "one was found to be dialable", all(announces(mapped, atGood, true), announces(mapped, "/p2p-circuit/", false)))
	c.Wait(soon, "the other was not", all(announces(deceived, atBad, false), announces(deceived, "/p2p-circuit/", true)))

	// The newcomer, who punches no holes, asks for its seed's other peers.
	other := n.public(3).on(c, cluster.Spec{Name: "other", Seeds: relays[:1]})
	c.Wait(soon, "linked over the mapped port", linked(mapped, other))
	exchange(t, c, 20, mapped, deceived, other)
	c.Check(checker.Config{})
}

// natJoin: nodes behind NATs, without any option, find their links among the nodes
// that can be dialed, because they dial too; those get to know each other, and all
// hear all.
func natJoin(t *testing.T) {
	t.Parallel()
	n := newInternet(t)
	c := cluster.New(t)
	open := n.public(1)
	seed := open.on(c, cluster.Spec{Name: "seed"})
	procs := []*cluster.Proc{seed}
	seeds := []string{open.ip + ":8495"}
	for i := range 2 {
		procs = append(procs, n.public(2+i).on(c, cluster.Spec{Name: fmt.Sprintf("open%d", i), Seeds: seeds}))
	}
	for i := range 4 {
		procs = append(procs, n.behindNAT(11+i, i%2 == 1).on(c, cluster.Spec{Name: fmt.Sprintf("home%d", i), Seeds: seeds}))
	}
	took := c.Wait(time.Minute, "one network", func(s *checker.State) bool {
		parts := s.Components()
		return len(parts) == 1 && len(parts[0]) == len(procs)
	})
	t.Logf("joined after %v", took.Round(time.Millisecond))
	exchange(t, c, 20, procs...)
	for _, p := range procs[3:] {
		if r := p.Ask(cluster.Command{Do: cluster.Ready, Within: soon}); r.Err != "" {
			t.Errorf("%s: %s", p.Name, r.Err)
		}
	}
	c.Check(checker.Config{})
}
