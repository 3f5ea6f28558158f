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

// ErrIdentityInUse is returned by [OpenIdentity] when another process, or
// another node of this one, holds the identity.
var ErrIdentityInUse = errors.New("host: in use by another node")

const (
	identityType   = "LIBP2P PRIVATE KEY"
	identityHeader = "Peer-Id"
	// maxIdentitySize is far above the few hundred bytes of an identity file.
	maxIdentitySize = 4 << 10
)

// An Identity is a key kept in a file, and the lock on that file. As long as
// it is open no other node can have it. Its methods may be used by several
// goroutines.
type Identity struct {
	Key crypto.PrivKey
	// ID is the peer id that belongs to Key.
	ID peer.ID

	close func() error
}

// NewIdentity returns a new Ed25519 key, which lives in memory only.
func NewIdentity() (crypto.PrivKey, error) {
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("host: new identity: %w", err)
	}
	return key, nil
}

// OpenIdentity reads the identity kept in the file at path and locks it until
// [Identity.Close], or the end of the process. If there is no such file, it is
// made, with a new key, in one step: whoever comes at the same time or looks
// after a crash finds the whole file or none. The directory must exist.
//
// An existing file is never written to. Any error names it: [ErrIdentityInUse]
// if another node has it open; that others than the owner may read it; that it
// is empty, damaged in whatever bit, or holds no Ed25519 key. The file is PEM
// text whose header tells the peer id.
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
	// A second round is needed when the file comes or goes between two steps.
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
	return nil, errors.New("it comes and goes; is it a dangling link?")
}

// openRegular opens the file, for writing if that is allowed, since a lock on
// a network file system asks for it.
func openRegular(path string) (*os.File, error) {
	// Opening a pipe would block, so look first.
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
	// A lock on a file which is no longer at path would keep nobody out.
	if at, err := os.Stat(path); err != nil || !os.SameFile(info, at) {
		return nil, errReplaced
	}
	// Windows has no such bits.
	if mode := info.Mode().Perm(); mode&0o077 != 0 && runtime.GOOS != "windows" {
		return nil, fmt.Errorf("others may read or change this private key (mode %#o); run: chmod 600 %s", mode, path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxIdentitySize+1))
	if err != nil {
		return nil, reason(err)
	}
	key, id, err := decodeIdentity(b)
	if err != nil {
		return nil, err
	}
	return &Identity{Key: key, ID: id}, nil
}

// createIdentity makes the file at path, unless there is one.
func createIdentity(path string) error {
	key, err := NewIdentity()
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
		return fmt.Errorf("cannot make it: %w", err)
	}
	defer os.Remove(temp.Name())
	_, err = temp.Write(text)
	err = errors.Join(err, temp.Sync(), temp.Close())
	if err != nil {
		return fmt.Errorf("cannot write it: %w", err)
	}
	// Unlike rename, link fails if another node made the file meanwhile. Then
	// the other's key is the one.
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

// linkFile is a variable for the test of file systems without hard links.
var linkFile = os.Link

// writeExclusive is the second best to a link: never over an existing file,
// but a crash may leave part of one, which is then an error to read.
func writeExclusive(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot make it: %w", err)
	}
	// Whoever opens it now finds it locked rather than empty.
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

// syncDir makes the new name survive a power cut. Not every system can.
func syncDir(dir string) {
	if d, err := os.Open(dir); err == nil {
		d.Sync()
		d.Close()
	}
}

// encodeIdentity is the only form of a key on disk, to the byte.
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

// decodeIdentity accepts what encodeIdentity wrote and nothing else, so that
// no damage goes unseen.
func decodeIdentity(text []byte) (crypto.PrivKey, peer.ID, error) {
	switch {
	case len(text) == 0:
		return nil, "", errors.New("the file is empty")
	case len(text) > maxIdentitySize:
		return nil, "", errors.New("the file is too large for an identity")
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != identityType {
		return nil, "", fmt.Errorf("damaged, cut short or no identity: no PEM block %q in it", identityType)
	}
	key, err := crypto.UnmarshalPrivateKey(block.Bytes)
	if err != nil {
		return nil, "", fmt.Errorf("damaged: %w", err)
	}
	if t := key.Type(); t != crypto.Ed25519 {
		return nil, "", fmt.Errorf("holds a key of type %v; an identity is an Ed25519 key", t)
	}
	// The key carries its public half. libp2p believes it, so a flipped bit in
	// the secret half would show only when others reject our signatures.
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
		return nil, "", fmt.Errorf("damaged: the key is that of %s, the file says %s %q", id, identityHeader, said)
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

// reason strips operation and path from an error, since the path is named
// already.
func reason(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}
