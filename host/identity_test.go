package host

import (
	"bytes"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
)

// idOf returns the peer id of an identity.
func idOf(i *Identity) peer.ID {
	id, err := peer.IDFromPrivateKey(i.Key)
	if err != nil {
		panic(err)
	}
	return id
}

func newIdentityText(t *testing.T) (peer.ID, []byte) {
	t.Helper()
	key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	text, err := encodeIdentity(key)
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return id, text
}

// Opening an identity again returns the same key.
func TestIdentityIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "identity")
	first, err := OpenIdentity(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if runtime.GOOS != "windows" && info.Mode() != 0o600 {
		t.Errorf("mode %v, want 0600", info.Mode())
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), "Peer-Id: "+idOf(first).String()) {
		t.Errorf("a person cannot read the id in\n%s", text)
	}
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 1 {
		t.Errorf("files left beside it: %v", entries)
	}
	if err := errors.Join(first.Close(), first.Close()); err != nil {
		t.Error(err)
	}

	again, err := OpenIdentity(path)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if !again.Key.Equals(first.Key) || idOf(again) != idOf(first) {
		t.Errorf("was %s, is %s", idOf(first), idOf(again))
	}
	if after, _ := os.ReadFile(path); !bytes.Equal(after, text) {
		t.Error("reading changed the file")
	}
}

// An identity that is open cannot be opened a second time, in this process or in another.
func TestIdentityIsLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "identity")
	first, err := OpenIdentity(path)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 { // a refused attempt must not unlock
		if _, err := OpenIdentity(path); !errors.Is(err, ErrIdentityInUse) || !strings.Contains(err.Error(), path) {
			t.Fatalf("second in this process: %v", err)
		}
	}
	if out := childOpens(t, path); !strings.Contains(out, "in use by another node") {
		t.Errorf("second process: %s", out)
	}
	first.Close()
	if out := childOpens(t, path); !strings.HasSuffix(out, idOf(first).String()) {
		t.Errorf("after Close: %s", out)
	}
	// The child ended without Close, as by a crash.
	second, err := OpenIdentity(path)
	if err != nil {
		t.Fatal(err)
	}
	second.Close()
}

// childOpens opens the identity in another process and returns the id or the
// error.
func childOpens(t *testing.T, path string) string {
	t.Helper()
	return strings.TrimSpace(runChild(t, "identity", nil, "IDENTITY="+path))
}

func childOpensIdentity() {
	id, err := OpenIdentity(os.Getenv("IDENTITY"))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(idOf(id))
}

// Two nodes started at once with the same new file: one has it, and the key is
// the same for whoever comes later.
func TestTwoStartsAtOnceGetOneIdentity(t *testing.T) {
	for _, links := range []bool{true, false} {
		t.Run(fmt.Sprintf("links=%t", links), func(t *testing.T) {
			if !links {
				linkFile = func(string, string) error { return errors.ErrUnsupported }
				defer func() { linkFile = os.Link }()
			}
			for range 20 {
				path := filepath.Join(t.TempDir(), "identity")
				const starts = 8
				var opened [starts]*Identity
				var errs [starts]error
				var begin, done sync.WaitGroup
				begin.Add(1)
				for i := range starts {
					done.Go(func() {
						begin.Wait()
						opened[i], errs[i] = OpenIdentity(path)
					})
				}
				begin.Done()
				done.Wait()
				var winner *Identity
				for i, id := range opened {
					switch {
					case id != nil && winner != nil:
						t.Fatalf("both %s and %s", idOf(winner), idOf(id))
					case id != nil:
						winner = id
					case links && !errors.Is(errs[i], ErrIdentityInUse):
						t.Fatalf("the error of the later start: %v", errs[i])
					}
				}
				if winner == nil {
					if links {
						t.Fatalf("nobody won: %v", errs)
					}
					continue // may happen without links, and is safe
				}
				winner.Close()
				later, err := OpenIdentity(path)
				if err != nil {
					t.Fatal(err)
				}
				if idOf(later) != idOf(winner) {
					t.Fatalf("the winner had %s, the file has %s", idOf(winner), idOf(later))
				}
				later.Close()
			}
		})
	}
}

// An identity file that other users can read is refused.
func TestAnIdentityThatOthersCanReadIsRefused(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no such modes")
	}
	_, text := newIdentityText(t)
	path := filepath.Join(t.TempDir(), "identity")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	for mode := fs.FileMode(0o400); mode <= 0o777; mode++ {
		if mode&0o400 == 0 {
			continue
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		id, err := OpenIdentity(path)
		if ok := mode&0o077 == 0; ok != (err == nil) {
			t.Errorf("mode %v: %v", mode, err)
		} else if !ok && !strings.Contains(err.Error(), "chmod 600 "+path) {
			t.Errorf("mode %v: the error does not say what to do: %v", mode, err)
		}
		if id != nil {
			id.Close()
		}
	}
}

// Whatever is wrong with the file, OpenIdentity says so, names it, leaves it
// as it is, and unlocks it.
func TestDamagedIdentitiesAreRefused(t *testing.T) {
	_, text := newIdentityText(t)
	other := func(generate func() (crypto.PrivKey, crypto.PubKey, error)) []byte {
		key, _, err := generate()
		if err != nil {
			t.Fatal(err)
		}
		b, err := encodeIdentity(key)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	// A bit of the secret half: the id is still right, and libp2p would not see it.
	block, _ := pem.Decode(text)
	block.Bytes[10] ^= 1
	wrongHalf := pem.EncodeToMemory(block)
	_, anotherKey := newIdentityText(t)
	swapped := bytes.Replace(text, text[bytes.Index(text, []byte("12D3")):][:52], anotherKey[bytes.Index(anotherKey, []byte("12D3")):][:52], 1)

	for _, tt := range []struct {
		name string
		text []byte
		want string
	}{
		{"empty", nil, "empty"},
		{"short", text[:20], "cut short"},
		{"zeros", make([]byte, len(text)), "no PEM block"},
		{"large", bytes.Repeat(text, 100), "too large"},
		{"rsa", other(func() (crypto.PrivKey, crypto.PubKey, error) { return crypto.GenerateRSAKeyPair(2048, rand.Reader) }), "Ed25519"},
		{"secp256k1", other(func() (crypto.PrivKey, crypto.PubKey, error) { return crypto.GenerateSecp256k1Key(rand.Reader) }), "Ed25519"},
		{"another id", swapped, "the file says"},
		{"secret half", wrongHalf, "do not belong together"},
		{"tail", append(bytes.Clone(text), '#'), "not as it was written"},
		{"twice", append(bytes.Clone(text), text...), "not as it was written"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "identity")
			if err := os.WriteFile(path, tt.text, 0o600); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				_, err := OpenIdentity(path)
				if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), path) {
					t.Fatalf("got %v, want %q", err, tt.want)
				}
			}
			if after, _ := os.ReadFile(path); !bytes.Equal(after, tt.text) {
				t.Error("the file was changed")
			}
		})
	}
}

// A truncated identity file, or one with a flipped bit, is refused.
func TestIdentityDetectsEveryTruncationAndBitFlip(t *testing.T) {
	_, text := newIdentityText(t)
	if _, _, err := decodeIdentity(text); err != nil {
		t.Fatal(err)
	}
	for n := range text {
		if _, _, err := decodeIdentity(text[:n]); err == nil {
			t.Errorf("cut to %d bytes: accepted", n)
		}
		for bit := range 8 {
			flipped := bytes.Clone(text)
			flipped[n] ^= 1 << bit
			if _, _, err := decodeIdentity(flipped); err == nil {
				t.Errorf("byte %d bit %d flipped: accepted", n, bit)
			}
		}
	}
}

// Any text is either refused or decoded to an identity that encodes to an equal one.
func FuzzDecodeIdentity(f *testing.F) {
	key, err := newKey()
	if err != nil {
		f.Fatal(err)
	}
	text, err := encodeIdentity(key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add(text[:100])
	f.Add([]byte("-----BEGIN LIBP2P PRIVATE KEY-----\nPeer-Id: x\n\nCAES\n-----END LIBP2P PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		key, id, err := decodeIdentity(text)
		if err != nil {
			return
		}
		again, err := encodeIdentity(key)
		if err != nil || !bytes.Equal(again, text) || !id.MatchesPrivateKey(key) {
			t.Errorf("accepted %q", text)
		}
	})
}

// The error of a path that cannot hold an identity names the path.
func TestBadPathsOfIdentitiesAreNamed(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	if err := os.Symlink(filepath.Join(dir, "nowhere"), link); err != nil {
		t.Skip(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ path, want string }{
		{filepath.Join(dir, "no", "such", "identity"), "directory " + filepath.Join(dir, "no", "such") + " does not exist"},
		{dir, "not a regular file"},
		{filepath.Join(dir, "file", "identity"), "not a directory"},
		{link, "dangling link"},
	} {
		_, err := OpenIdentity(tt.path)
		if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), tt.path) {
			t.Errorf("%s: got %v, want %q", tt.path, err, tt.want)
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 2 {
		t.Errorf("files were left behind: %v", entries)
	}
}

// A lock on a file which was replaced meanwhile would keep nobody out.
func TestAnIdentityReplacedWhileOpeningIsReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "identity")
	_, old := newIdentityText(t)
	id, text := newIdentityText(t)
	if err := os.WriteFile(path, old, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := openRegular(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := errors.Join(os.WriteFile(path+".new", text, 0o600), os.Rename(path+".new", path)); err != nil {
		t.Fatal(err)
	}
	if _, err := lockAndRead(f, path); !errors.Is(err, errReplaced) {
		t.Errorf("got %v", err)
	}
	got, err := OpenIdentity(path)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	if idOf(got) != id {
		t.Errorf("got %s, want %s", idOf(got), id)
	}
}

// A link to an identity elsewhere, as orchestrators mount secrets.
func TestAnIdentityMayBeASymbolicLink(t *testing.T) {
	dir := t.TempDir()
	id, text := newIdentityText(t)
	if err := os.WriteFile(filepath.Join(dir, "secret"), text, 0o400); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "identity")
	if err := os.Symlink("secret", link); err != nil {
		t.Skip(err)
	}
	got, err := OpenIdentity(link)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	if idOf(got) != id {
		t.Errorf("got %s, want %s", idOf(got), id)
	}
	if _, err := OpenIdentity(filepath.Join(dir, "secret")); !errors.Is(err, ErrIdentityInUse) {
		t.Errorf("the lock is on the link only: %v", err)
	}
}
