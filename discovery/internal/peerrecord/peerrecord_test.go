package peerrecord

import (
	"bytes"
	"crypto/rand"
	"strconv"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/record"
	ma "github.com/multiformats/go-multiaddr"
)

func newKey(t testing.TB) crypto.PrivKey {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func idOf(t testing.TB, key crypto.PrivKey) peer.ID {
	t.Helper()
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func manyAddrs(n int, suffix string) (addrs []ma.Multiaddr) {
	for i := range n {
		addrs = append(addrs, ma.StringCast("/ip4/192.0.2.1/tcp/"+strconv.Itoa(1000+i)+suffix))
	}
	return addrs
}

// An opened record has the id and the addresses that were sealed.
func TestRecordSaysWhatWasSealed(t *testing.T) {
	rsa, _, err := crypto.GenerateRSAKeyPair(2048, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []crypto.PrivKey{newKey(t), rsa} {
		id := idOf(t, key)
		for _, c := range []struct {
			in   []ma.Multiaddr
			want int
		}{
			{nil, 0},
			{manyAddrs(1, ""), 1},
			{manyAddrs(3, "/p2p/"+id.String()), 3},
			{manyAddrs(16, ""), 16},
			{manyAddrs(40, ""), 16},
			{[]ma.Multiaddr{nil, ma.StringCast("/p2p/" + id.String()), manyAddrs(1, "")[0]}, 1},
		} {
			b, err := Seal(key, c.in, 1)
			if err != nil {
				t.Fatal(err)
			}
			info, _, err := Open(b)
			if err != nil {
				t.Fatal(err)
			}
			want := manyAddrs(c.want, "")
			if info.ID != id || len(info.Addrs) != len(want) {
				t.Fatalf("%v, want %s with %d addresses", info, id, c.want)
			}
			for i := range want {
				if !info.Addrs[i].Equal(want[i]) {
					t.Errorf("address %d is %s, want %s", i, info.Addrs[i], want[i])
				}
			}
		}
	}
}

// A record never exceeds its size limit.
func TestRecordStaysInItsSize(t *testing.T) {
	long := "/dns4/" + strings.Repeat(strings.Repeat("a", 60)+".", 4) + "test/tcp/"
	var addrs []ma.Multiaddr
	for i := range 16 {
		addrs = append(addrs, ma.StringCast(long+strconv.Itoa(1+i)+"/tls/sni/"+strings.Repeat("b", 200)+"/ws"))
	}
	b, err := Seal(newKey(t), addrs, 1)
	if err != nil {
		t.Fatal(err)
	}
	info, _, err := Open(b)
	if err != nil || len(b) > maxBytes || len(info.Addrs) == 0 || len(info.Addrs) == 16 {
		t.Fatalf("%d bytes, %d addresses, %v", len(b), len(info.Addrs), err)
	}
}

// A record of another peer is refused.
func TestRecordOfAnotherIsRefused(t *testing.T) {
	key, other := newKey(t), newKey(t)
	good, err := Seal(key, manyAddrs(2, ""), 1)
	if err != nil {
		t.Fatal(err)
	}
	seal := func(rec record.Record) []byte {
		env, err := record.Seal(rec, key)
		if err != nil {
			t.Fatal(err)
		}
		b, err := env.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for name, b := range map[string][]byte{
		"empty":              nil,
		"noise":              []byte("record"),
		"cut":                good[:len(good)-1],
		"longer":             append(bytes.Clone(good), make([]byte, maxBytes)...),
		"another's id":       seal(&peer.PeerRecord{PeerID: idOf(t, other), Addrs: manyAddrs(1, "")}),
		"no id":              seal(&peer.PeerRecord{Addrs: manyAddrs(1, "")}),
		"too many addresses": seal(&peer.PeerRecord{PeerID: idOf(t, key), Addrs: manyAddrs(17, "")}),
	} {
		if info, _, err := Open(b); err == nil {
			t.Errorf("%s: opened as %v", name, info)
		}
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		info, _, err := Open(bad)
		if err == nil && (info.ID != idOf(t, key) || len(info.Addrs) != 2 || !info.Addrs[0].Equal(manyAddrs(1, "")[0])) {
			t.Errorf("byte %d changed: opened as %v", i, info)
		}
	}
}

// A record keeps its sequence number.
func TestRecordKeepsItsSequenceNumber(t *testing.T) {
	for _, want := range []uint64{0, 1, 1 << 63} {
		b, err := Seal(newKey(t), nil, want)
		if err != nil {
			t.Fatal(err)
		}
		if _, seq, err := Open(b); err != nil || seq != want {
			t.Errorf("%d, %v, want %d", seq, err, want)
		}
	}
}

func FuzzOpen(f *testing.F) {
	good, err := Seal(newKey(f), manyAddrs(2, ""), 1)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:10])
	f.Fuzz(func(t *testing.T, b []byte) {
		info, _, err := Open(b)
		if err == nil && (info.ID == "" || len(info.Addrs) > maxAddrs) {
			t.Fatalf("opened as %v", info)
		}
	})
}
