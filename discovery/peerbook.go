package discovery

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/discovery/internal/dialguard"
	"github.com/go-smokesignal/smokesignal/discovery/internal/overlay"
	"github.com/go-smokesignal/smokesignal/internal/addr"
	"github.com/go-smokesignal/smokesignal/internal/logging"
)

const (
	// bookTTL is how long a node stays in the book that is not found again. A machine
	// that is off for a weekend or a few days of holiday finds its network; older
	// addresses mostly lead nowhere.
	bookTTL = 7 * 24 * time.Hour
	// maxBook bounds the nodes in the book: those the overlay knows, and as many of
	// former times.
	maxBook = 256
	// maxBookBytes is above what maxBook records and addresses take.
	maxBookBytes = 4 << 20
	// bookTold bounds what the overlay is told of the book, since it keeps no more.
	bookTold = 128
	// bookSettle is how long the links may change before the book is written, and
	// bookPause the least time between two writes.
	bookSettle = time.Second
	bookPause  = 30 * time.Second
	// bookRefresh is when it is written if the links do not change.
	bookRefresh = 10 * time.Minute
	// bookProof is after what time the overlay has looked at each known address at
	// least once: those it still has then are no mere memory of this book.
	bookProof = 2 * time.Hour
	// bookVersion is the version of the file's form.
	bookVersion = 1
)

// A PeerBook keeps the nodes of a network in a file, so that a node which is
// started again finds the network though all seeds are gone. It holds the links,
// the known addresses, and what was in the book before, up to 256 nodes; one
// that was not found for seven days is left out.
//
// The file is text: a line that says what it is, and a line of JSON for each
// node, with its signed peer record and the addresses at which to dial it. It is
// replaced in one step, so that whoever looks after a crash finds the old file or
// the new one. Nodes of one network may share a file: each keeps what the others
// wrote.
//
// Its methods may be called from several goroutines.
type PeerBook struct {
	name    string // the path as it was given
	path    string // where that leads
	network string
	log     *slog.Logger
	opened  time.Time
	first   []bookEntry // what was in the file then

	changed chan struct{} // a token when the links have changed
	cancel  context.CancelFunc
	tasks   sync.WaitGroup
	source  bookSource // nil before Keep

	warned string // the failure logged last; of run, then of Close
}

// A bookSource is the Driver.
type bookSource interface {
	Known(context.Context) (contacts []overlay.Contact, linked map[peer.ID]bool, err error)
	Learn(...overlay.Contact)
}

// A bookEntry is a line of the file.
type bookEntry struct {
	ID     peer.ID   `json:"id"`
	Seen   time.Time `json:"seen"` // when it was last known to be there
	Addrs  []string  `json:"addrs"`
	Record []byte    `json:"record"`
}

// bookHeader is the first line.
type bookHeader struct {
	Version int    `json:"smokesignal peer book"`
	Network string `json:"network"`
}

// OpenPeerBook reads the book of the network in the file at path. There need not
// be one; the directory must exist. An empty file is a book without nodes, and
// lines that are damaged are left out, with a warning in the log. Any error names
// the file: that it is no peer book, one of another network, or of a later version
// of this package, and so is left as it is; or that it cannot be read or written.
// log may be nil.
func OpenPeerBook(path, network string, log *slog.Logger) (*PeerBook, error) {
	if log == nil {
		log = logging.Room("discovery", nil)
	}
	b := &PeerBook{name: path, path: path, network: network, log: log, opened: time.Now(), changed: make(chan struct{}, 1)}
	if err := b.open(); err != nil {
		return nil, b.failed(err)
	}
	return b, nil
}

func (b *PeerBook) failed(err error) error {
	if err == nil {
		return nil
	}
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		err = pe.Err // the path is named already
	}
	return fmt.Errorf("discovery: peer book %s: %w", b.name, err)
}

func (b *PeerBook) open() error {
	// A link is followed once, since the file it points to is what gets replaced.
	if real, err := filepath.EvalSymlinks(b.path); err == nil {
		b.path = real
	}
	dir := filepath.Dir(b.path)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the directory %s does not exist", dir)
	}
	var damaged int
	var err error
	if b.first, damaged, err = b.read(); err != nil {
		return err
	}
	if damaged > 0 {
		b.log.Warn("the peer book is damaged; its other lines are used", "path", b.name, "damaged lines", damaged, "nodes", len(b.first))
	}
	// Better to say now that it cannot be written than when it is needed.
	temp, err := b.temp()
	if err != nil {
		return fmt.Errorf("cannot write to its directory: %w", err)
	}
	return errors.Join(temp.Close(), os.Remove(temp.Name()))
}

func (b *PeerBook) temp() (*os.File, error) {
	return os.CreateTemp(filepath.Dir(b.path), "."+filepath.Base(b.path)+".*") // with mode 0600
}

// Keep tells d what is in the book, and from then on writes into the book what d
// knows: a second after a change of the links, but at most every thirty seconds,
// and at Close. It must be called once at most, after d has been started, and is
// not to be called after Close.
func (b *PeerBook) Keep(d *Driver) { b.keep(d) }

func (b *PeerBook) keep(source bookSource) {
	b.source = source
	source.Learn(b.contacts(time.Now())...)
	ctx, cancel := context.WithCancel(context.Background())
	b.cancel = cancel
	b.tasks.Go(func() { b.run(ctx) })
}

// Len returns how many nodes were in the book when it was opened.
func (b *PeerBook) Len() int { return len(b.first) }

// LinksChanged says that a link was made or ended. It does not wait.
func (b *PeerBook) LinksChanged() {
	select {
	case b.changed <- struct{}{}:
	default:
	}
}

// Close writes the book a last time, so it has to come before the driver leaves.
// Nothing is written if Keep was not called. The error names the file.
func (b *PeerBook) Close() error {
	if b.cancel == nil {
		return nil
	}
	b.cancel()
	b.tasks.Wait()
	return b.save(context.Background())
}

func (b *PeerBook) run(ctx context.Context) {
	last := b.opened.Add(-bookPause)
	timer := time.NewTimer(bookRefresh)
	defer timer.Stop()
	waiting := false // for a write after a change
	for {
		select {
		case <-b.changed:
			if !waiting {
				waiting = true
				timer.Reset(max(bookSettle, time.Until(last.Add(bookPause))))
			}
		case <-timer.C:
			waiting, last = false, time.Now()
			b.warn(b.save(ctx))
			timer.Reset(bookRefresh)
		case <-ctx.Done():
			return
		}
	}
}

// warn logs why the book cannot be written, once for each reason.
func (b *PeerBook) warn(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != b.warned && text != "" {
		b.log.Warn("cannot keep the peer book", "err", err)
	}
	b.warned = text
}

// save writes what the driver knows. It writes nothing when the driver is closed,
// as that knows nothing any more.
func (b *PeerBook) save(ctx context.Context) error {
	contacts, linked, err := b.source.Known(ctx)
	if err != nil {
		return nil
	}
	// Another node may have written meanwhile, and the file may have become another.
	before, _, err := b.read()
	if err == nil {
		err = b.write(b.merge(time.Now(), before, contacts, linked))
	}
	return b.failed(err)
}

// merge returns what the book holds at now: the links, then the rest of contacts
// and of what was in it before, whatever was seen last coming first. What the
// overlay knows from the book alone is no news: it keeps its time until the node
// was linked to, has told of new addresses, or has been known for bookProof.
func (b *PeerBook) merge(now time.Time, before []bookEntry, contacts []overlay.Contact, linked map[peer.ID]bool) []bookEntry {
	entries := map[peer.ID]bookEntry{}
	for _, e := range slices.Concat(b.first, before) {
		if old, ok := entries[e.ID]; !ok || e.Seen.After(old.Seen) {
			entries[e.ID] = e
		}
	}
	proved := now.Sub(b.opened) >= bookProof
	for _, c := range contacts {
		if len(c.Record) == 0 || len(c.Addrs) == 0 {
			continue // nobody could dial it
		}
		e := bookEntry{ID: c.ID, Seen: now, Record: c.Record}
		for _, a := range c.Addrs {
			e.Addrs = append(e.Addrs, a.String())
		}
		old, ok := entries[c.ID]
		if ok && !proved && !linked[c.ID] && bytes.Equal(old.Record, c.Record) {
			e.Seen = old.Seen
		}
		entries[c.ID] = e
	}
	var list []bookEntry
	for _, e := range entries {
		if now.Sub(e.Seen) < bookTTL {
			list = append(list, e)
		}
	}
	slices.SortFunc(list, func(x, y bookEntry) int {
		switch {
		case linked[x.ID] != linked[y.ID]:
			if linked[x.ID] {
				return -1
			}
			return 1
		case !x.Seen.Equal(y.Seen):
			return y.Seen.Compare(x.Seen)
		}
		return bytes.Compare([]byte(x.ID), []byte(y.ID))
	})
	return list[:min(len(list), maxBook)]
}

// contacts returns what the overlay is told of the book: the first nodes whose
// record is genuine, with those addresses that can belong to a node.
func (b *PeerBook) contacts(now time.Time) (list []overlay.Contact) {
	for _, e := range b.first {
		if len(list) == bookTold {
			break
		}
		if c, err := e.contact(); err == nil && now.Sub(e.Seen) < bookTTL {
			list = append(list, c)
		}
	}
	return list
}

func (e bookEntry) contact() (overlay.Contact, error) {
	c, err := openContact(e.Record)
	if err != nil {
		return overlay.Contact{}, err
	}
	if c.ID != e.ID {
		return overlay.Contact{}, fmt.Errorf("the record is that of %s", c.ID)
	}
	c.Addrs = nil
	for _, text := range e.Addrs {
		a, err := ma.NewMultiaddr(text)
		if err != nil {
			return overlay.Contact{}, err
		}
		c.Addrs = append(c.Addrs, a)
	}
	// The classes were looked at when the addresses came. The file is the user's
	// own, so an address on this machine is as good as any.
	if c.Addrs = append(dialguard.Filter(c.Addrs, thisMachine), dialguard.FilterRelayed(c.Addrs, thisMachine)...); len(c.Addrs) == 0 {
		return overlay.Contact{}, errNoAddress
	}
	return c, nil
}

var thisMachine = ma.StringCast("/ip4/127.0.0.1/tcp/1")

// read returns the entries of the file and how many of its lines are damaged. No
// file is an empty one.
func (b *PeerBook) read() (list []bookEntry, damaged int, err error) {
	// Opening a pipe would block, so look first.
	info, err := os.Stat(b.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, 0, nil
	case err != nil:
		return nil, 0, err
	case !info.Mode().IsRegular():
		return nil, 0, errors.New("not a regular file")
	}
	f, err := os.Open(b.path)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxBookBytes))
	if err != nil || len(text) == 0 {
		return nil, 0, err
	}
	first, rest, _ := bytes.Cut(text, []byte("\n"))
	var header bookHeader
	switch err := json.Unmarshal(first, &header); {
	case err != nil || header.Version < 1:
		return nil, 0, errors.New("it is no peer book and is left as it is: give another path, or remove it")
	case header.Version > bookVersion:
		return nil, 0, errors.New("it was written by a later version and is left as it is: give another path, or remove it")
	case header.Network != b.network:
		return nil, 0, fmt.Errorf("it is that of network %q, not %q, and is left as it is: give each network its own", header.Network, b.network)
	}
	now := time.Now()
	for line := range bytes.Lines(rest) {
		var e bookEntry
		err := json.Unmarshal(line, &e)
		if err == nil {
			_, err = e.contact()
		}
		if err != nil {
			damaged++
			continue
		}
		if e.Seen.After(now) {
			e.Seen = now // a clock was wrong
		}
		if list = append(list, e); len(list) == maxBook {
			break
		}
	}
	return list, damaged, nil
}

// write replaces the file.
func (b *PeerBook) write(list []bookEntry) error {
	var text bytes.Buffer
	lines := json.NewEncoder(&text)
	err := lines.Encode(bookHeader{bookVersion, b.network})
	for _, e := range list {
		e.Seen = e.Seen.UTC().Truncate(time.Second)
		err = errors.Join(err, lines.Encode(e))
	}
	if err != nil {
		return err
	}
	temp, err := b.temp()
	if err != nil {
		return fmt.Errorf("cannot write it: %w", err)
	}
	defer os.Remove(temp.Name())
	_, err = temp.Write(text.Bytes())
	err = errors.Join(err, temp.Sync(), temp.Close())
	if err == nil {
		err = os.Rename(temp.Name(), b.path)
	}
	if err != nil {
		return fmt.Errorf("cannot write it: %w", err)
	}
	if dir, err := os.Open(filepath.Dir(b.path)); err == nil {
		dir.Sync() // so that the new name survives a power cut; not every system can
		dir.Close()
	}
	return nil
}

// Known returns the links and known addresses of the overlay, and who is linked.
func (d *Driver) Known(ctx context.Context) (contacts []overlay.Contact, linked map[peer.ID]bool, err error) {
	err = d.ask(ctx, func() {
		contacts = d.state.Known()
		linked = map[peer.ID]bool{}
		d.mu.Lock()
		defer d.mu.Unlock()
		for p := range d.links {
			linked[p] = true
		}
	})
	return contacts, linked, err
}

// Nodes returns the nodes of the network that this one knows and their addresses,
// those it is linked to first. It waits for the driver, or until ctx ends.
func (d *Driver) Nodes(ctx context.Context) (list []peer.AddrInfo, err error) {
	contacts, linked, err := d.Known(ctx)
	if err != nil {
		return nil, err
	}
	for _, first := range []bool{true, false} {
		for _, c := range contacts {
			if linked[c.ID] == first && len(c.Addrs) > 0 {
				list = append(list, peer.AddrInfo{ID: c.ID, Addrs: c.Addrs})
			}
		}
	}
	return list, nil
}

// Learn tells the overlay of nodes, with those of their addresses that this host can
// dial. It does not wait.
func (d *Driver) Learn(contacts ...overlay.Contact) {
	relays := dialsRelays(d.host)
	d.run(func() {
		for _, c := range contacts {
			if !relays {
				c.Addrs = slices.DeleteFunc(slices.Clone(c.Addrs), addr.IsRelayed)
			}
			if c.ID != d.host.ID() && len(c.Addrs) > 0 {
				d.step(overlay.Learned{Contact: c})
			}
		}
	})
}
