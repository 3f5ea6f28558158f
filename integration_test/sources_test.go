package integration_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corediscovery "github.com/libp2p/go-libp2p/core/discovery"
	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/checker"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/cluster"
)

// readyWithin is how soon a node with a peer book has to be back without seeds.
const readyWithin = 5 * time.Second

// TestPeerBookFindsTheNetwork: a node that is started again with all its seeds
// gone finds the network through its book, whether it was closed in peace or not.
func TestPeerBookFindsTheNetwork(t *testing.T) {
	t.Parallel()
	l := newLocal(t)
	seed := l.start(cluster.Spec{Name: "seed"})
	at := addr(seed)
	spec := func(name string) cluster.Spec { return cluster.Spec{Name: name, Seeds: []string{at}} }
	var others []*smokesignal.Node
	for i := range 4 {
		others = append(others, l.start(spec(fmt.Sprint("other", i))))
	}
	dir := t.TempDir()
	book := smokesignal.PeerBook(filepath.Join(dir, "book"))
	me := l.start(spec("me"), book)
	if err := me.Ready(within(t, soon)); err != nil {
		t.Fatal(err)
	}
	// A peer that stays; the seed alone would be of no use.
	l.wait(soon, "me has another peer than the seed", func(s *checker.State) bool {
		for _, o := range others {
			if s.Proc("me").Has(o.ID().String()) {
				return true
			}
		}
		return false
	})
	// What a crash leaves is the file as it was at some time.
	var crashed []byte
	patience := within(t, soon)
	for crashed == nil {
		text, err := os.ReadFile(filepath.Join(dir, "book"))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		for _, o := range others {
			if strings.Contains(string(text), o.ID().String()) {
				crashed = text
			}
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-patience.Done():
			t.Fatal("the book was not written")
		}
	}
	if err := me.Close(); err != nil {
		t.Fatal(err)
	}
	if err := seed.Close(); err != nil {
		t.Fatal(err)
	}

	again := func(name string, opts ...smokesignal.Option) {
		t.Helper()
		began := time.Now()
		n := l.start(spec(name), opts...)
		if err := n.Ready(within(t, soon)); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(began); d > readyWithin*slow {
			t.Errorf("%s was ready after %v, want %v at most", name, d, readyWithin)
		} else {
			t.Logf("%s was ready after %v", name, d.Round(time.Millisecond))
		}
	}
	again("closed", book)
	if err := os.WriteFile(filepath.Join(dir, "crashed"), crashed, 0o600); err != nil {
		t.Fatal(err)
	}
	again("crashed", smokesignal.PeerBook(filepath.Join(dir, "crashed")))
}

// TestCloseKeepsTheSources: a node that is closed has its peers in the book, however
// soon that is, and leaves no goroutine of the search behind. It looks for
// goroutines, so it runs alone.
func TestCloseKeepsTheSources(t *testing.T) {
	leavesNothing(t, 2, func(t *testing.T) {
		s, book := newSquare(), filepath.Join(t.TempDir(), "book")
		l := newLocal(t)
		a := l.start(cluster.Spec{Name: "a", Limits: manual}, smokesignal.WithDiscovery(s.of), smokesignal.PeerBook(book))
		b := l.start(cluster.Spec{Name: "b", Limits: manual})
		if _, err := a.Connect(within(t, soon), addr(b)); err != nil {
			t.Fatal(err)
		}
		closed(t, a, b)
		text, err := os.ReadFile(book)
		if err != nil || !strings.Contains(string(text), b.ID().String()) {
			t.Errorf("the book is %q, %v; want %s in it", text, err, b.ID())
		}
	})
}

// TestReadySaysWhatTheSourcesFound: the error of a node that finds nobody names the sources that
// it searched.
func TestReadySaysWhatTheSourcesFound(t *testing.T) {
	t.Parallel()
	l := newLocal(t)
	square := newSquare()
	square.err = errors.New("the square is closed")
	n := l.start(cluster.Spec{Name: "n"}, smokesignal.PeerBook(filepath.Join(t.TempDir(), "book")), smokesignal.WithDiscovery(square.of))
	square.until(t, func() bool { return len(square.asked) > 0 })
	err := n.Ready(within(t, 100*time.Millisecond))
	if !errors.Is(err, smokesignal.ErrNotConnected) || !errors.Is(err, square.err) || !strings.Contains(err.Error(), "the peer book is empty; discovery: the square is closed") {
		t.Errorf("Ready returned %v", err)
	}
}

// TestBadSourcesAreErrorsAtNew names the option or the file, and touches nothing.
func TestBadSourcesAreErrorsAtNew(t *testing.T) {
	t.Parallel()
	letter := filepath.Join(t.TempDir(), "letter")
	if err := os.WriteFile(letter, []byte("Dear Sir,\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("no table")
	for want, opt := range map[string]smokesignal.Option{
		`smokesignal: PeerBook("")`:        smokesignal.PeerBook(""),
		letter + ": it is not a peer book": smokesignal.PeerBook(letter),
		"smokesignal: WithDiscovery(nil)":  smokesignal.WithDiscovery(nil),
		"WithDiscovery: no table":          smokesignal.WithDiscovery(func(corehost.Host) (corediscovery.Discovery, error) { return nil, broken }),
		"returned no Discovery":            smokesignal.WithDiscovery(func(corehost.Host) (corediscovery.Discovery, error) { return nil, nil }),
	} {
		n, err := smokesignal.New(opt)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New returned %v, want %q", err, want)
		}
		if err == nil {
			n.Close()
		}
	}
	if text, _ := os.ReadFile(letter); string(text) != "Dear Sir,\n" {
		t.Errorf("the file is %q now", text)
	}
}

// square is a rendezvous point within this process.
type square struct {
	mu      sync.Mutex
	there   map[string]map[peer.ID]corehost.Host // by namespace
	asked   []string
	err     error
	changed chan struct{}
}

func newSquare() *square {
	return &square{there: map[string]map[peer.ID]corehost.Host{}, changed: make(chan struct{})}
}

// of is the argument of WithDiscovery.
func (s *square) of(h corehost.Host) (corediscovery.Discovery, error) { return &visitor{s, h}, nil }

func (s *square) until(t *testing.T, ok func() bool) {
	t.Helper()
	for ctx := within(t, soon); ; {
		s.mu.Lock()
		done, changed := ok(), s.changed
		s.mu.Unlock()
		if done {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatal("waited in vain")
		}
	}
}

type visitor struct {
	*square
	host corehost.Host
}

func (v *visitor) Advertise(_ context.Context, ns string, _ ...corediscovery.Option) (time.Duration, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.there[ns] == nil {
		v.there[ns] = map[peer.ID]corehost.Host{}
	}
	v.there[ns][v.host.ID()] = v.host
	return time.Hour, v.err
}

func (v *visitor) FindPeers(_ context.Context, ns string, _ ...corediscovery.Option) (<-chan peer.AddrInfo, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.asked = append(v.asked, ns)
	close(v.changed)
	v.changed = make(chan struct{})
	found := make(chan peer.AddrInfo, len(v.there[ns]))
	for id, h := range v.there[ns] {
		found <- peer.AddrInfo{ID: id, Addrs: h.Addrs()}
	}
	close(found)
	return found, v.err
}

// TestNodesFindEachOtherByDiscovery: nodes without seeds find each other where WithDiscovery
// says, under the name of their network; those of another network do not.
func TestNodesFindEachOtherByDiscovery(t *testing.T) {
	t.Parallel()
	l, s := newLocal(t), newSquare()
	var nodes []*smokesignal.Node
	for i := range 5 {
		nodes = append(nodes, l.start(cluster.Spec{Name: fmt.Sprint("n", i), Network: "home"}, smokesignal.WithDiscovery(s.of)))
	}
	office := l.start(cluster.Spec{Name: "stranger", Network: "office"}, smokesignal.WithDiscovery(s.of))
	for _, n := range nodes {
		if err := n.Ready(within(t, soon)); err != nil {
			t.Fatal(err)
		}
	}
	l.wait(soon, "all have three peers", func(st *checker.State) bool {
		for i := range nodes {
			if nodes[i].Peers().Len() < 3 {
				return false
			}
		}
		return true
	})
	if office.Connected() {
		t.Error("a node of another network joined")
	}
	s.until(t, func() bool {
		seen := map[string]bool{}
		for _, ns := range s.asked {
			seen[ns] = true
		}
		return len(seen) == 2 && seen["smokesignal/home"] && seen["smokesignal/office"]
	})
}

// TestDiscoveryOfOthers: other libp2p code finds the nodes of the network at a node.
func TestDiscoveryOfOthers(t *testing.T) {
	t.Parallel()
	l := newLocal(t)
	a := l.create(cluster.Spec{Name: "a", Limits: manual})
	d := a.Discovery()
	if _, err := d.FindPeers(t.Context(), "x"); !errors.Is(err, smokesignal.ErrNotStarted) {
		t.Errorf("before Start: FindPeers returned %v", err)
	}
	if _, err := d.Advertise(t.Context(), "x"); !errors.Is(err, smokesignal.ErrNotStarted) {
		t.Errorf("before Start: Advertise returned %v", err)
	}
	if err := a.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	b := l.start(cluster.Spec{Name: "b", Limits: manual})
	c := l.start(cluster.Spec{Name: "c", Limits: manual})
	l.link(a, b)
	l.link(a, c)

	find := func(opts ...corediscovery.Option) map[peer.ID][]string {
		t.Helper()
		list, err := d.FindPeers(t.Context(), "anything", opts...)
		if err != nil {
			t.Fatal(err)
		}
		found := map[peer.ID][]string{}
		for info := range list {
			for _, a := range info.Addrs {
				found[info.ID] = append(found[info.ID], a.String())
			}
		}
		return found
	}
	found := find()
	for _, n := range []*smokesignal.Node{b, c} {
		if got := strings.Join(found[n.ID()], " "); !strings.Contains(got, strings.Split(addr(n), "/p2p/")[0]) {
			t.Errorf("%s is found at %q, want %s", l.name(n), got, addr(n))
		}
	}
	if len(found) != 2 {
		t.Errorf("found %v", found)
	}
	if n := len(find(corediscovery.Limit(1))); n != 1 {
		t.Errorf("found %d, want 1", n)
	}
	if ttl, err := d.Advertise(t.Context(), "anything", corediscovery.TTL(time.Minute)); err != nil || ttl != time.Minute {
		t.Errorf("Advertise returned %v, %v", ttl, err)
	}
	if err := l.close(a); err != nil {
		t.Fatal(err)
	}
	if _, err := d.FindPeers(t.Context(), "x"); !errors.Is(err, smokesignal.ErrClosed) {
		t.Errorf("after Close: FindPeers returned %v", err)
	}
}
