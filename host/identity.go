package host

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/errs"
)

// ErrIdentityInUse is returned by [OpenIdentity] when another process, or another node of
// this process, has the identity open.
var ErrIdentityInUse = errors.New("host: in use by another node")

const (
	identityType   = "LIBP2P PRIVATE KEY"
	identityHeader = "Peer-Id"
	// maxIdentitySize is far above the few hundred bytes of an identity file.
	maxIdentitySize = 4 << 10
)

// An Identity is a key that is kept in a file, and the lock on that file. While it is
// open, no other node can open it. Its methods may be used by several goroutines.
type Identity struct {
	Key crypto.PrivKey

	close func() error
}

// newKey returns a new Ed25519 key.
func newKey() (crypto.PrivKey, error) {
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("host: new identity: %w", err)
	}
	return key, nil
}

// OpenIdentity reads the identity in the file at path and locks the file until
// [Identity.Close] or the end of the process. If the file does not exist, it is created
// with a new key, in one step: another process, or this one after a crash, finds the
// whole file or none. The directory must exist.
//
// An existing file is never written. It is an error if another node has the file open
// ([ErrIdentityInUse]), if other users may read it, if it is empty or any bit of it is
// damaged, and if its key is not an Ed25519 key. All errors name the file. It is PEM text
// with the peer id in a header.
func OpenIdentity(path string) (*Identity, error) {
	id, err := openIdentity(path)
	if err != nil {
		return nil, errs.Wrap("host: identity "+path, err)
	}
	return id, nil
}

// Close unlocks the identity. It may be called more than once.
func (i *Identity) Close() error { return i.close() }

func openIdentity(path string) (*Identity, error) {
	// The file may be created or removed by another process between two of these steps. Then
	// all steps are repeated.
	for range 10 {
		f, err := openRegular(path)
		if errors.Is(err, fs.ErrNotExist) {
			if err := createIdentity(path); err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		id, err := lockAndRead(f, path)
		if err == nil {
			return id, nil
		}
		f.Close()
		if !errors.Is(err, errReplaced) {
			return nil, err
		}
	}
	return nil, errors.New("the file appears and disappears; is it a dangling link?")
}

// openRegular opens the regular file at path. It opens the file for writing if permissions
// allow it, because on a network file system only a file that is open for writing can be
// locked. It fails if another kind of file is at path.
func openRegular(path string) (*os.File, error) {
	// Opening a pipe would block.
	info, err := os.Stat(path)
	if err != nil {
		return nil, reason(err)
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrPermission) || isReadOnly(err) {
		f, err = os.Open(path)
	}
	if err != nil {
		return nil, reason(err)
	}
	return f, nil
}

var errReplaced = errors.New("replaced while it was opened")

// lockAndRead locks f, which was opened at path, and reads the identity in it.
func lockAndRead(f *os.File, path string) (*Identity, error) {
	unlock, err := lockFile(f)
	if err != nil {
		return nil, err
	}
	id, err := readIdentity(f, path)
	if err != nil {
		unlock()
		return nil, err
	}
	id.close = sync.OnceValue(func() error { return errors.Join(unlock(), f.Close()) })
	return id, nil
}

func readIdentity(f *os.File, path string) (*Identity, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, reason(err)
	}
	// If another file is at path by now, other nodes would lock that one, so the lock on f
	// would be useless.
	if at, err := os.Stat(path); err != nil || !os.SameFile(info, at) {
		return nil, errReplaced
	}
	// Windows does not have these bits.
	if mode := info.Mode().Perm(); mode&0o077 != 0 && runtime.GOOS != "windows" {
		return nil, fmt.Errorf("others may read or change this private key (mode %#o); run: chmod 600 %s", mode, path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxIdentitySize+1))
	if err != nil {
		return nil, reason(err)
	}
	key, _, err := decodeIdentity(b)
	if err != nil {
		return nil, err
	}
	return &Identity{Key: key}, nil
}

// createIdentity creates the file at path with a new key. It does nothing if the file
// exists.
func createIdentity(path string) error {
	key, err := newKey()
	if err != nil {
		return err
	}
	text, err := encodeIdentity(key)
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the directory %s does not exist", dir)
	}
	temp, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*") // with mode 0600
	if err != nil {
		return fmt.Errorf("cannot create it: %w", err)
	}
	defer os.Remove(temp.Name())
	_, err = temp.Write(text)
	err = errors.Join(err, temp.Sync(), temp.Close())
	if err != nil {
		return fmt.Errorf("cannot write it: %w", err)
	}
	// If another node has created the file in the meantime, link fails, whereas rename would
	// replace the file. The key of that node is then used.
	err = linkFile(temp.Name(), path)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return writeExclusive(path, text) // no hard links on this file system
	}
	syncDir(dir)
	return nil
}

// linkFile is os.Link. It is a variable so that a test can simulate a file system without
// hard links.
var linkFile = os.Link

// writeExclusive creates the file at path with the content text, on a file system without
// hard links. It does not overwrite an existing file. A crash can leave an incomplete file,
// which OpenIdentity then reports as damaged.
func writeExclusive(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot create it: %w", err)
	}
	// The file is locked before text is written, so that another node gets
	// ErrIdentityInUse and does not read an empty file.
	unlock, lockErr := lockFile(f)
	_, err = f.Write(text)
	err = errors.Join(err, f.Sync())
	if lockErr == nil {
		err = errors.Join(err, unlock())
	}
	if err = errors.Join(err, f.Close()); err != nil {
		os.Remove(path)
		return fmt.Errorf("cannot write it: %w", err)
	}
	return nil
}

// syncDir writes the entry of a new file in dir to the disk, on systems that can, so that the
// file is still there after a power failure.
func syncDir(dir string) {
	if d, err := os.Open(dir); err == nil {
		d.Sync()
		d.Close()
	}
}

// encodeIdentity returns the text of the identity file for key. It is always the same text
// for the same key.
func encodeIdentity(key crypto.PrivKey) ([]byte, error) {
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return nil, err
	}
	b, err := crypto.MarshalPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{
		Type:    identityType,
		Headers: map[string]string{identityHeader: id.String()},
		Bytes:   b,
	}), nil
}

// decodeIdentity decodes text, which encodeIdentity has made, and returns the key and its
// peer id. It accepts no other text, so that it detects any damage.
func decodeIdentity(text []byte) (crypto.PrivKey, peer.ID, error) {
	switch {
	case len(text) == 0:
		return nil, "", errors.New("the file is empty")
	case len(text) > maxIdentitySize:
		return nil, "", errors.New("the file is too large for an identity")
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != identityType {
		return nil, "", fmt.Errorf("damaged, cut short or not an identity: it has no PEM block %q", identityType)
	}
	key, err := crypto.UnmarshalPrivateKey(block.Bytes)
	if err != nil {
		return nil, "", fmt.Errorf("damaged: %w", err)
	}
	if t := key.Type(); t != crypto.Ed25519 {
		return nil, "", fmt.Errorf("holds a key of type %v; an identity is an Ed25519 key", t)
	}
	// An Ed25519 key contains its public half, and libp2p does not check that the halves
	// match. Without this check a damaged secret half would be noticed only when other
	// nodes reject the signatures of this one.
	raw, err := key.Raw()
	if err != nil {
		return nil, "", fmt.Errorf("damaged: %w", err)
	}
	if !bytes.Equal(raw, ed25519.NewKeyFromSeed(raw[:ed25519.SeedSize])) {
		return nil, "", errors.New("damaged: the halves of the key do not belong together")
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return nil, "", fmt.Errorf("damaged: %w", err)
	}
	if said := block.Headers[identityHeader]; said != id.String() {
		return nil, "", fmt.Errorf("damaged: the key belongs to %s, the file says %s %q", id, identityHeader, said)
	}
	again, err := encodeIdentity(key)
	if err != nil {
		return nil, "", fmt.Errorf("damaged: %w", err)
	}
	if !bytes.Equal(again, text) {
		return nil, "", fmt.Errorf("damaged or edited: it is not as it was written for %s", id)
	}
	return key, id, nil
}

// reason returns the cause inside err, an error of package os, without the operation and
// the path. The caller's own error names the path.
func reason(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}
