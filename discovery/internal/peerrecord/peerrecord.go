// Package peerrecord makes and reads libp2p's signed peer records. Nodes send each other
// addresses in this form: since a record is signed, only a node itself can state its
// addresses.
package peerrecord

import (
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/record"
	ma "github.com/multiformats/go-multiaddr"
)

const (
	maxBytes = 4 << 10 // the largest size of a record in bytes
	maxAddrs = 16      // the largest number of addresses in a record
)

// Seal returns a record of addrs, signed with key. It removes a /p2p/ID at the end of an
// address. If there are more than 16 addresses, or the record would exceed 4 KiB, it drops
// addresses from the end of the list. An empty list is allowed, for a node that cannot be
// dialed. Of two records of one node, the one with the higher seq is newer.
func Seal(key crypto.PrivKey, addrs []ma.Multiaddr, seq uint64) ([]byte, error) {
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("discovery: seal record: %w", err)
	}
	rec := &peer.PeerRecord{PeerID: id, Seq: seq}
	for _, a := range addrs {
		if t, _ := peer.SplitAddr(a); len(t) > 0 && len(rec.Addrs) < maxAddrs {
			rec.Addrs = append(rec.Addrs, t)
		}
	}
	for {
		env, err := record.Seal(rec, key)
		if err != nil {
			return nil, fmt.Errorf("discovery: seal record: %w", err)
		}
		b, err := env.Marshal()
		if err != nil {
			return nil, fmt.Errorf("discovery: seal record: %w", err)
		}
		if len(b) <= maxBytes {
			return b, nil
		}
		if len(rec.Addrs) == 0 { // the key is so large that no record fits
			return nil, fmt.Errorf("discovery: seal record: %d bytes without any address, the limit is %d", len(b), maxBytes)
		}
		rec.Addrs = rec.Addrs[:len(rec.Addrs)-1]
	}
}

// Open checks a record and returns the id of the node that signed it, its addresses, and
// the sequence number. It fails if the record has more than 4 KiB or 16 addresses, if the
// signature is wrong, or if the signing key does not belong to the id. The node may have
// stated any addresses, also those of others, so filter them before a dial.
func Open(b []byte) (info peer.AddrInfo, seq uint64, err error) {
	// The size is checked before anything is parsed, so that a peer cannot make parsing
	// expensive.
	if len(b) > maxBytes {
		return peer.AddrInfo{}, 0, fmt.Errorf("discovery: record of %d bytes, the limit is %d", len(b), maxBytes)
	}
	var rec peer.PeerRecord
	env, err := record.ConsumeTypedEnvelope(b, &rec)
	if err != nil {
		return peer.AddrInfo{}, 0, fmt.Errorf("discovery: bad record: %w", err)
	}
	// libp2p checks that the signature covers the type in the envelope, but not that this is
	// the type of a peer record.
	if string(env.PayloadType) != string(rec.Codec()) {
		return peer.AddrInfo{}, 0, errors.New("discovery: bad record: the envelope does not hold a peer record")
	}
	// Anybody can sign, with a key of their own, a record that holds the id of another node.
	if !rec.PeerID.MatchesPublicKey(env.PublicKey) {
		return peer.AddrInfo{}, 0, fmt.Errorf("discovery: bad record: not signed by %s", rec.PeerID)
	}
	if len(rec.Addrs) > maxAddrs {
		return peer.AddrInfo{}, 0, fmt.Errorf("discovery: record of %d addresses, the limit is %d", len(rec.Addrs), maxAddrs)
	}
	return peer.AddrInfo{ID: rec.PeerID, Addrs: rec.Addrs}, rec.Seq, nil
}
