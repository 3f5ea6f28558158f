package discovery

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/discovery/internal/overlay"
	"github.com/go-smokesignal/smokesignal/discovery/internal/peerrecord"
	"github.com/go-smokesignal/smokesignal/internal/bubble"
)

// A fakeSource stands for a driver that knows the given nodes.
type fakeSource struct {
	mu       sync.Mutex
	contacts []overlay.Contact
	linked   map[peer.ID]bool
	learned  []overlay.Contact
	asked    int
	closed   bool
}

func (o *fakeSource) known(context.Context) ([]overlay.Contact, map[peer.ID]bool, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.asked++
	if o.closed {
		return nil, nil, ErrClosed
	}
	return o.contacts, o.linked, nil
}

func (o *fakeSource) learn(list ...overlay.Contact) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.learned = append(o.learned, list...)
}

func (o *fakeSource) writes() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.asked
}

// nodeAt returns a contact with a genuine record.
func nodeAt(t testing.TB, addr string) overlay.Contact {
	t.Helper()
	key := newKey(t)
	addrs := []ma.Multiaddr{ma.StringCast(addr)}
	record, err := peerrecord.Seal(key, addrs, uint64(time.Now().UnixNano()))
	if err != nil {
		t.Fatal(err)
	}
	return overlay.Contact{ID: idOf(t, key), Record: record, Addrs: addrs}
}

func openBook(t testing.TB, path, network string) *peerBook {
	t.Helper()
	b, err := openPeerBook(path, network, nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// keepOnce writes the nodes that o knows into the book at path.
func keepOnce(t testing.TB, path string, o *fakeSource) {
	t.Helper()
	b := openBook(t, path, "home")
	b.start(o)
	if err := b.close(); err != nil {
		t.Fatal(err)
	}
}

// idsIn returns the ids of the nodes that the overlay gets from the book at path.
func idsIn(t testing.TB, path string) (ids []peer.ID) {
	t.Helper()
	for _, c := range openBook(t, path, "home").contacts(time.Now()) {
		ids = append(ids, c.ID)
	}
	return ids
}

// A peer book returns the contacts that an earlier run kept.
func TestPeerBookRemembers(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "book")
	link, known, mute := nodeAt(t, "/ip4/192.0.2.1/tcp/1"), nodeAt(t, "/ip4/127.0.0.1/udp/2/quic-v1"), overlay.Contact{ID: "x", Addrs: nil}
	keepOnce(t, path, &fakeSource{contacts: []overlay.Contact{known, link, mute}, linked: map[peer.ID]bool{link.ID: true}})

	o := &fakeSource{}
	b := openBook(t, path, "home")
	b.start(o)
	defer b.close()
	if len(o.learned) != 2 || o.learned[0].ID != link.ID || o.learned[1].ID != known.ID {
		t.Fatalf("learned %v, want the link and then the known node", o.learned)
	}
	for i, want := range []overlay.Contact{link, known} {
		if got := o.learned[i]; !bytes.Equal(got.Record, want.Record) || fmt.Sprint(got.Addrs) != fmt.Sprint(want.Addrs) {
			t.Errorf("learned %v, want %v", got, want)
		}
	}
	if b.len() != 2 {
		t.Errorf("Len is %d, want 2", b.len())
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 && runtime.GOOS != "windows" {
		t.Errorf("%v, %v: want it readable by its owner alone", info.Mode(), err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// All dials fail then, so the overlay knows no node, but the book does.
func TestStartWithoutANetworkDoesNotEmptyThePeerBook(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "book")
	c := nodeAt(t, "/ip4/192.0.2.1/tcp/1")
	keepOnce(t, path, &fakeSource{contacts: []overlay.Contact{c}})
	keepOnce(t, path, &fakeSource{}) // all dials have failed
	if got := idsIn(t, path); !slices.Equal(got, []peer.ID{c.ID}) {
		t.Errorf("the book has %v, want %v", got, c.ID)
	}
}

// The overlay knows such a node for a while, because it was in the book. That does not keep it
// there.
func TestPeerBookDropsNodesNotFoundForSevenDays(t *testing.T) {
	dead, linked, moved, fresh := nodeAt(t, "/ip4/192.0.2.1/tcp/1"), nodeAt(t, "/ip4/192.0.2.2/tcp/1"), nodeAt(t, "/ip4/192.0.2.3/tcp/1"), nodeAt(t, "/ip4/192.0.2.4/tcp/1")
	newer := moved
	newer.Record = slices.Clone(moved.Record)
	newer.Record[0]++ // the book compares, it does not look into it again
	bubble.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "book")
		keepOnce(t, path, &fakeSource{contacts: []overlay.Contact{dead, linked, moved}})
		time.Sleep(5 * 24 * time.Hour)
		b := openBook(t, path, "home")
		links := map[peer.ID]bool{linked.ID: true}
		list := b.merge(time.Now(), nil, []overlay.Contact{dead, linked, newer, fresh}, links)
		if len(list) != 4 || list[0].ID != linked.ID || list[3].ID != dead.ID {
			t.Fatalf("the book is %v; want the link first and who was not seen last", list)
		}
		if err := b.write(list); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * 24 * time.Hour)
		list = openBook(t, path, "home").merge(time.Now(), nil, nil, nil)
		for _, e := range list {
			if e.ID == dead.ID {
				t.Error("a node that was last found eight days ago is still there")
			}
		}
		// A node that has run for long has looked at all addresses it knows.
		b.opened = time.Now().Add(-bookProofTime)
		list = b.merge(time.Now(), nil, []overlay.Contact{dead}, nil)
		if !slices.ContainsFunc(list, func(e bookEntry) bool { return e.ID == dead.ID }) {
			t.Error("a node that has been known for long is not there")
		}
	})
}

// A peer book keeps a bounded number of contacts.
func TestPeerBookIsBounded(t *testing.T) {
	t.Parallel()
	now := time.Now()
	b := &peerBook{opened: now}
	var contacts []overlay.Contact
	links := map[peer.ID]bool{}
	for i := range 2 * maxBook {
		c := overlay.Contact{ID: peer.ID(fmt.Sprint(i)), Record: []byte{1}, Addrs: []ma.Multiaddr{ma.StringCast("/ip4/192.0.2.1/tcp/1")}}
		contacts = append(contacts, c)
		links[c.ID] = i%4 == 3
	}
	list := b.merge(now, nil, contacts, links)
	if len(list) != maxBook {
		t.Fatalf("%d nodes, want %d", len(list), maxBook)
	}
	for i, e := range list {
		if want := i < maxBook/2; links[e.ID] != want {
			t.Fatalf("entry %d: linked is %v, want %v", i, links[e.ID], want)
		}
	}
}

// A file that is not a peer book is refused and not overwritten.
func TestOtherFilesAreNotPeerBooks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, c := range []struct{ name, path, want string }{
		{"somebody's file", file("letter", "Dear Sir,\n"), "not a peer book"},
		{"other JSON", file("json", `{"network":"home"}`+"\n"), "not a peer book"},
		{"another network", file("office", `{"smokesignal peer book":1,"network":"office"}`+"\n"), `network "office", not "home"`},
		{"a later version", file("later", `{"smokesignal peer book":2,"network":"home"}`+"\n"), "later version"},
		{"a directory", dir, "not a regular file"},
		{"no directory", filepath.Join(dir, "none", "book"), "does not exist"},
	} {
		before, _ := os.ReadFile(c.path)
		_, err := openPeerBook(c.path, "home", nil)
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "discovery: peer book "+c.path+": ") {
			t.Errorf("%s: %v, want %q in it", c.name, err, c.want)
		}
		if after, _ := os.ReadFile(c.path); !bytes.Equal(before, after) {
			t.Errorf("%s: it was changed", c.name)
		}
	}
}

// The file may be replaced by another while the book is open.
func TestPeerBookDoesNotOverwriteAnotherFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "book")
	b := openBook(t, path, "home")
	b.start(&fakeSource{contacts: []overlay.Contact{nodeAt(t, "/ip4/192.0.2.1/tcp/1")}})
	if err := os.WriteFile(path, []byte("Dear Sir,\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := b.close(); err == nil || !strings.Contains(err.Error(), "not a peer book") {
		t.Errorf("Close returned %v", err)
	}
	if text, _ := os.ReadFile(path); string(text) != "Dear Sir,\n" {
		t.Errorf("it was overwritten with %q", text)
	}
}

// The other lines are used, and a forged line is not.
func TestPeerBookSkipsDamagedLines(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "book")
	a, b, c := nodeAt(t, "/ip4/192.0.2.1/tcp/1"), nodeAt(t, "/ip4/192.0.2.2/tcp/1"), nodeAt(t, "/ip4/192.0.2.3/tcp/1")
	keepOnce(t, path, &fakeSource{contacts: []overlay.Contact{a, b, c}, linked: map[peer.ID]bool{a.ID: true}})
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(whole, []byte("\n"))
	other := func(i int) peer.ID { // of b and c, whichever line i is not
		if bytes.Contains(lines[i], []byte(b.ID.String())) {
			return c.ID
		}
		return b.ID
	}
	for name, spoil := range map[string]func() []byte{
		"cut short":     func() []byte { return whole[:len(whole)-20] },
		"garbage":       func() []byte { return slices.Concat(lines[0], lines[1], lines[2], []byte("\x00\xff\n{}\n")) },
		"another's id":  func() []byte { return bytes.Replace(whole, []byte(other(2).String()), []byte(a.ID.String()), 1) },
		"not ours":      func() []byte { return bytes.Replace(whole, []byte("192.0.2.2/tcp/1"), []byte("192.0.2.2/tcp/22"), 1) },
		"not an addr":   func() []byte { return bytes.Replace(whole, []byte("/ip4/192.0.2.3"), []byte("/ip5/192.0.2.3"), 1) },
		"spoilt record": func() []byte { return bytes.Replace(whole, []byte(`"record":"C`), []byte(`"record":"D`), 1) },
	} {
		if err := os.WriteFile(path, spoil(), 0o600); err != nil {
			t.Fatal(err)
		}
		book := openBook(t, path, "home")
		if n := book.len(); n != 2 {
			t.Errorf("%s: %d nodes are left, want 2", name, n)
		}
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if n := openBook(t, path, "home").len(); n != 0 {
		t.Errorf("%d nodes in an empty file", n)
	}
}

// A host that does not dial relays gets none of them from the book.
func TestPeerBookKeepsAddressesBehindRelays(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "book")
	const direct = "/ip4/192.0.2.1/tcp/1"
	relayed := "/ip4/192.0.2.9/tcp/1/p2p/" + testID + "/p2p-circuit"
	a, b := nodeAt(t, relayed), nodeAt(t, direct)
	b.Addrs = append(b.Addrs, ma.StringCast(relayed))
	keepOnce(t, path, &fakeSource{contacts: []overlay.Contact{a, b}})
	o := &fakeSource{}
	book := openBook(t, path, "home")
	book.start(o)
	if err := book.close(); err != nil {
		t.Fatal(err)
	}
	got := map[peer.ID]int{}
	for _, c := range o.learned {
		got[c.ID] = len(c.Addrs)
	}
	if want := map[peer.ID]int{a.ID: 1, b.ID: 2}; !maps.Equal(got, want) {
		t.Errorf("the overlay gets so many addresses of each node: %v, want %v", got, want)
	}
	x := newTester(t, testConfig{opts: []libp2p.Option{libp2p.DisableRelay()}}).start()
	x.d.learn(o.learned...)
	x.d.ask(t.Context(), func() {
		for _, c := range x.d.state.Known() {
			if c.ID != b.ID || len(c.Addrs) != 1 || c.Addrs[0].String() != direct {
				t.Errorf("without relays it knows %v at %v", c.ID, c.Addrs)
			}
		}
	})
	if n := x.d.Status().Known; n != 1 {
		t.Errorf("without relays it knows %d nodes, want 1", n)
	}
}

// Nodes with one peer book keep each other's entries.
func TestNodesThatShareAPeerBookKeepEachOthersEntries(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "book")
	x, y := nodeAt(t, "/ip4/192.0.2.1/tcp/1"), nodeAt(t, "/ip4/192.0.2.2/tcp/1")
	one, two := openBook(t, path, "home"), openBook(t, path, "home")
	one.start(&fakeSource{contacts: []overlay.Contact{x}})
	two.start(&fakeSource{contacts: []overlay.Contact{y}})
	for _, b := range []*peerBook{one, two} {
		if err := b.close(); err != nil {
			t.Fatal(err)
		}
	}
	got := idsIn(t, path)
	if len(got) != 2 || !slices.Contains(got, x.ID) || !slices.Contains(got, y.ID) {
		t.Errorf("the book has %v, want %v and %v", got, x.ID, y.ID)
	}
}

// The first write comes soon after the first change.
func TestPeerBookIsWrittenEveryThirtySecondsAtMost(t *testing.T) {
	path := filepath.Join(t.TempDir(), "book")
	bubble.Test(t, func(t *testing.T) {
		o := &fakeSource{}
		b := openBook(t, path, "home")
		b.start(o)
		want := func(n int, when string) {
			t.Helper()
			synctest.Wait()
			if got := o.writes(); got != n {
				t.Errorf("%s: %d writes, want %d", when, got, n)
			}
		}
		time.Sleep(time.Minute)
		want(0, "nothing has changed")
		b.linksChanged()
		time.Sleep(bookSettleTime)
		want(1, "a second after a change")
		for range 290 {
			b.linksChanged()
			time.Sleep(100 * time.Millisecond)
		}
		want(1, "29 s of changes")
		time.Sleep(time.Second)
		want(2, "thirty seconds after the first")
		time.Sleep(bookRefreshInterval)
		want(3, "ten minutes later")
		if err := b.close(); err != nil {
			t.Error(err)
		}
		want(4, "at Close")
	})
}

// A driver that is closed already does not empty the peer book.
func TestPeerBookIsNotEmptiedByAClosedDriver(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "book")
	b := openBook(t, path, "home")
	b.start(&fakeSource{closed: true})
	if err := b.close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("it was written")
	}
}

// A peer book at a symbolic link is written to the file behind the link.
func TestPeerBookFollowsASymbolicLink(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path, link := filepath.Join(dir, "book"), filepath.Join(dir, "link")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(path, link); err != nil {
		t.Skip(err)
	}
	keepOnce(t, link, &fakeSource{contacts: []overlay.Contact{nodeAt(t, "/ip4/192.0.2.1/tcp/1")}})
	if info, err := os.Lstat(link); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link is %v, %v", info.Mode(), err)
	}
	if got := idsIn(t, path); len(got) != 1 {
		t.Errorf("the book has %v", got)
	}
}
