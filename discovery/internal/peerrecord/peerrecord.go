// Package peerrecord makes and reads libp2p's signed peer records, the form in which
// addresses travel between nodes: only the holder of a key can say where its node is
// reached.
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
	maxBytes = 4 << 10
	maxAddrs = 16
)

// Seal returns addrs in an envelope signed with key. A /p2p/ part at the end of an address
// is left out. The record holds at most 16 addresses and 4 KiB, and later addresses are
// dropped first. A node that cannot be dialed has a record without addresses. Of two
// records of one node the one with the higher seq is the newer.
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
		if len(rec.Addrs) == 0 { // a huge key
			return nil, fmt.Errorf("discovery: seal record: %d bytes without any address, the limit is %d", len(b), maxBytes)
		}
		rec.Addrs = rec.Addrs[:len(rec.Addrs)-1]
	}
}

// Open returns the node that sealed a record, the addresses at which it says to be
// reached, and the sequence number. It fails when the record has more than 4 KiB or 16
// addresses, when the signature is wrong, or when the signing key is not that of the id.
// The addresses are claims of a stranger: filter them before a dial.
func Open(b []byte) (info peer.AddrInfo, seq uint64, err error) {
	// Before anything is parsed, so that a stranger cannot make that expensive.
	if len(b) > maxBytes {
		return peer.AddrInfo{}, 0, fmt.Errorf("discovery: record of %d bytes, the limit is %d", len(b), maxBytes)
	}
	var rec peer.PeerRecord
	env, err := record.ConsumeTypedEnvelope(b, &rec)
	if err != nil {
		return peer.AddrInfo{}, 0, fmt.Errorf("discovery: bad record: %w", err)
	}
	// The signature covers the type, but libp2p does not compare it with the type asked for.
	if string(env.PayloadType) != string(rec.Codec()) {
		return peer.AddrInfo{}, 0, errors.New("discovery: bad record: the envelope does not hold a peer record")
	}
	// Anybody can sign a record that names another's id.
	if !rec.PeerID.MatchesPublicKey(env.PublicKey) {
		return peer.AddrInfo{}, 0, fmt.Errorf("discovery: bad record: not signed by %s", rec.PeerID)
	}
	if len(rec.Addrs) > maxAddrs {
		return peer.AddrInfo{}, 0, fmt.Errorf("discovery: record of %d addresses, the limit is %d", len(rec.Addrs), maxAddrs)
	}
	return peer.AddrInfo{ID: rec.PeerID, Addrs: rec.Addrs}, rec.Seq, nil
}
