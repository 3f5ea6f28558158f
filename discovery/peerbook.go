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
	"github.com/go-smokesignal/smokesignal/internal/logging"
	"github.com/go-smokesignal/smokesignal/internal/notify"
)

const (
	// bookTTL is the time for which a node stays in the book after it was last found. So a
	// machine that was off for a weekend or a short holiday still finds its network. Older
	// addresses are mostly useless.
	bookTTL = 7 * 24 * time.Hour
	// maxBook bounds the nodes in the book. It is twice the number of live nodes that the
	// overlay remembers.
	maxBook = 256
	// maxBookBytes bounds the bytes that are read from the file. maxBook nodes need less.
	maxBookBytes = 4 << 20
	// maxBookContacts bounds the nodes that the overlay gets from the book. The overlay
	// would not remember more.
	maxBookContacts = 128
	// bookSettleTime is the time from a change of the links to the write of the book;
	// if more changes follow in that time, one write serves for all. bookWriteInterval
	// is the least time between two writes.
	bookSettleTime    = time.Second
	bookWriteInterval = 30 * time.Second
	// bookRefreshInterval is the time between two writes if the links do not change.
	bookRefreshInterval = 10 * time.Minute
	// bookProofTime is the time in which the overlay checks each known address at least
	// once. A node that the overlay still knows after that is alive, even if its address
	// came from the book.
	bookProofTime = 2 * time.Hour
	// bookVersion is the version of the file's format.
	bookVersion = 1
)

// A peerBook stores the nodes of a network in a file. A node that is started again then finds
// the network even if all seeds are gone. The book has at most 256 nodes: the neighbors, other
// nodes that the overlay believes to be alive, and nodes that were in the book before. A node
// that was not found for seven days is dropped.
//
// The file is text: one line that identifies the format, and for each node a line of JSON with
// its signed peer record and the addresses at which to dial it. The file is replaced in one
// step, so after a crash it has either the old or the new content. Several nodes of one network
// may share the file, since each of them keeps the entries of the others.
//
// Its methods may be called from several goroutines.
type peerBook struct {
	name    string // the path in the configuration
	path    string // the path in the configuration, with symbolic links resolved
	network string
	log     *slog.Logger
	opened  time.Time
	first   []bookEntry // the entries that the file had when it was opened

	changed notify.Signal // set when the links have changed
	cancel  context.CancelFunc
	tasks   sync.WaitGroup
	source  bookSource // nil before start

	lastWarning string // the last error of a write; used only by run
}

// A bookSource has the methods of the Driver that a peerBook needs.
type bookSource interface {
	known(context.Context) (contacts []overlay.Contact, linked map[peer.ID]bool, err error)
	learn(...overlay.Contact)
}

// A bookEntry is one line of the file.
type bookEntry struct {
	ID     peer.ID   `json:"id"`
	Seen   time.Time `json:"seen"` // when the node was last known to be alive
	Addrs  []string  `json:"addrs"`
	Record []byte    `json:"record"`
}

// bookHeader is the first line of the file.
type bookHeader struct {
	Version int    `json:"smokesignal peer book"`
	Network string `json:"network"`
}

// openPeerBook reads the peer book of the network from the file at path. The directory must
// exist, but the file need not. An empty file is a book without nodes. Damaged lines are skipped
// with a warning in the log. The error names the file. It means that the file cannot be read or
// written, is not a peer book, belongs to another network, or was written by a later version of
// this package; such a file is not changed. log may be nil.
func openPeerBook(path, network string, log *slog.Logger) (*peerBook, error) {
	if log == nil {
		log = logging.Package("discovery", nil)
	}
	b := &peerBook{name: path, path: path, network: network, log: log, opened: time.Now(), changed: notify.NewSignal()}
	if err := b.load(); err != nil {
		return nil, b.failed(err)
	}
	return b, nil
}

func (b *peerBook) failed(err error) error {
	if err == nil {
		return nil
	}
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		err = pe.Err // the text of pe has the path already, and the line below adds it as well
	}
	return fmt.Errorf("discovery: peer book %s: %w", b.name, err)
}

func (b *peerBook) load() error {
	// If the path is a symbolic link, a write replaces the file that it points to, not the
	// link.
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
		b.log.Warn("the peer book is damaged; its other lines are used", "path", b.name, "damaged", damaged, "nodes", len(b.first))
	}
	// If the directory cannot be written to, the caller should learn that when the book
	// is opened, and not at the first write.
	temp, err := b.createTemp()
	if err != nil {
		return fmt.Errorf("cannot write to its directory: %w", err)
	}
	return errors.Join(temp.Close(), os.Remove(temp.Name()))
}

// createTemp creates a temporary file in the directory of the book. Only the user of this
// process can read it.
func (b *peerBook) createTemp() (*os.File, error) {
	return os.CreateTemp(filepath.Dir(b.path), "."+filepath.Base(b.path)+".*")
}

// start gives the nodes in the book to source. From then on, the nodes that source knows are
// written to the book a second after each change of the links, but at most every thirty
// seconds, and at close. It must be called at most once, and not after close.
func (b *peerBook) start(source bookSource) {
	b.source = source
	source.learn(b.contacts(time.Now())...)
	ctx, cancel := context.WithCancel(context.Background())
	b.cancel = cancel
	b.tasks.Go(func() { b.run(ctx) })
}

// len returns the number of nodes that were in the book when it was opened.
func (b *peerBook) len() int { return len(b.first) }

// linksChanged tells the book that a link was made or ended. It does not block.
func (b *peerBook) linksChanged() { b.changed.Set() }

// close writes the book for the last time. It must be called while the driver still has its
// links. If start was not called, nothing is written. The error names the file.
func (b *peerBook) close() error {
	if b.cancel == nil {
		return nil
	}
	b.cancel()
	b.tasks.Wait()
	return b.save(context.Background())
}

func (b *peerBook) run(ctx context.Context) {
	last := b.opened.Add(-bookWriteInterval)
	timer := time.NewTimer(bookRefreshInterval)
	defer timer.Stop()
	waiting := false // the timer is set for a write after a change of the links
	for {
		select {
		case <-b.changed:
			if !waiting {
				waiting = true
				timer.Reset(max(bookSettleTime, time.Until(last.Add(bookWriteInterval))))
			}
		case <-timer.C:
			waiting, last = false, time.Now()
			b.warn(b.save(ctx))
			timer.Reset(bookRefreshInterval)
		case <-ctx.Done():
			return
		}
	}
}

// warn logs the error of a write, unless the last write had the same error.
func (b *peerBook) warn(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != b.lastWarning && text != "" {
		b.log.Warn("cannot write the peer book", "error", err)
	}
	b.lastWarning = text
}

// save writes the nodes that the driver knows to the book, together with earlier entries.
func (b *peerBook) save(ctx context.Context) error {
	contacts, linked, err := b.source.known(ctx)
	if err != nil {
		return nil // the driver is closed and knows no nodes, so the book stays as it is
	}
	// Another node that shares the file may have written to it since.
	before, _, err := b.read()
	if err == nil {
		err = b.write(b.merge(time.Now(), before, contacts, linked))
	}
	return b.failed(err)
}

// merge returns the new entries of the book. before has the entries that the file has now, and
// contacts the nodes that the overlay knows. The neighbors come first, and then all others, the
// node last seen alive first. A contact counts as seen now if it is a neighbor, if its record
// differs from the one in the book, or if the overlay knows it for bookProofTime. Otherwise the
// overlay may have it from the book only, so the entry keeps its time.
func (b *peerBook) merge(now time.Time, before []bookEntry, contacts []overlay.Contact, linked map[peer.ID]bool) []bookEntry {
	entries := map[peer.ID]bookEntry{}
	for _, e := range slices.Concat(b.first, before) {
		// Of two entries for one node, the one that was seen later counts.
		if old, ok := entries[e.ID]; !ok || e.Seen.After(old.Seen) {
			entries[e.ID] = e
		}
	}
	proved := now.Sub(b.opened) >= bookProofTime // all contacts were checked since
	for _, c := range contacts {
		if len(c.Record) == 0 || len(c.Addrs) == 0 {
			continue // a node without a record or an address cannot be dialed
		}
		e := bookEntry{ID: c.ID, Seen: now, Record: c.Record}
		for _, a := range c.Addrs {
			e.Addrs = append(e.Addrs, a.String())
		}
		old, ok := entries[c.ID]
		// The overlay may have this node from the book only, which does not show that it is
		// alive.
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

// contacts returns the nodes in the book for the overlay: the first maxBookContacts that have a
// valid record and an address that can be dialed.
func (b *peerBook) contacts(now time.Time) (list []overlay.Contact) {
	for _, e := range b.first {
		if len(list) == maxBookContacts {
			break
		}
		if c, err := e.contact(); err == nil && now.Sub(e.Seen) < bookTTL {
			list = append(list, c)
		}
	}
	return list
}

// contact returns the entry as a contact. It fails if the record is not valid or no address can
// be dialed.
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
	// The addresses were filtered when this node or another one received them. The file
	// belongs to the user, so all addresses are allowed that a peer on this machine may state.
	if c.Addrs = append(dialguard.Filter(c.Addrs, thisMachine), dialguard.FilterRelayed(c.Addrs, thisMachine)...); len(c.Addrs) == 0 {
		return overlay.Contact{}, errNoAddress
	}
	return c, nil
}

var thisMachine = ma.StringCast("/ip4/127.0.0.1/tcp/1")

// read returns the entries of the file, and the number of damaged lines. A file that does not
// exist has no entries.
func (b *peerBook) read() (list []bookEntry, damaged int, err error) {
	// If the path is a pipe, opening it would block. So only regular files are opened.
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
		return nil, 0, errors.New("it is not a peer book and is left as it is: give another path, or remove it")
	case header.Version > bookVersion:
		return nil, 0, errors.New("it was written by a later version and is left as it is: give another path, or remove it")
	case header.Network != b.network:
		return nil, 0, fmt.Errorf("it belongs to network %q, not %q, and is left as it is: give each network its own", header.Network, b.network)
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
			e.Seen = now // an entry from the future would not expire; it was written by a machine with a wrong clock
		}
		if list = append(list, e); len(list) == maxBook {
			break
		}
	}
	return list, damaged, nil
}

// write replaces the file with one that has the entries in list.
func (b *peerBook) write(list []bookEntry) error {
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
	temp, err := b.createTemp()
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
		dir.Sync() // so that the rename survives a power cut, on systems that support it
		dir.Close()
	}
	return nil
}
