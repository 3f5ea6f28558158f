package discovery

import (
	"errors"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/record"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal/discovery/internal/overlay"
)

const (
	maxRecordBytes = 4 << 10
	maxRecordAddrs = 16
)

// SealRecord returns addrs as a libp2p signed peer record (envelope), the form
// in which addresses travel between nodes: only who holds the key can say where
// it is reached. A /p2p/ part at the end of an address is left out. At most 16
// addresses and 4 KiB go in, the first ones; no address at all is fine, for a
// node that cannot be dialled. The record's sequence number is now in
// nanoseconds.
func SealRecord(key crypto.PrivKey, addrs []ma.Multiaddr, now time.Time) ([]byte, error) {
	return sealRecord(key, addrs, uint64(now.UnixNano()))
}

func sealRecord(key crypto.PrivKey, addrs []ma.Multiaddr, seq uint64) ([]byte, error) {
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("discovery: seal record: %w", err)
	}
	rec := &peer.PeerRecord{PeerID: id, Seq: seq}
	for _, a := range addrs {
		if t, _ := peer.SplitAddr(a); len(t) > 0 && len(rec.Addrs) < maxRecordAddrs {
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
		if len(b) <= maxRecordBytes {
			return b, nil
		}
		if len(rec.Addrs) == 0 {
			return nil, fmt.Errorf("discovery: seal record: %d bytes without any address, the limit is %d", len(b), maxRecordBytes)
		}
		rec.Addrs = rec.Addrs[:len(rec.Addrs)-1]
	}
}

// OpenRecord returns who sealed a record and where it says to be reached. It
// fails when the record has more than 4 KiB or 16 addresses, when the signature
// is wrong, or when the key that signed is not that of the id. The addresses
// are what the other claims: pass them through [FilterAddrs] before a dial.
func OpenRecord(b []byte) (peer.AddrInfo, error) {
	info, _, err := openRecord(b)
	return info, err
}

// openRecord also returns the sequence number.
func openRecord(b []byte) (peer.AddrInfo, uint64, error) {
	if len(b) > maxRecordBytes {
		return peer.AddrInfo{}, 0, fmt.Errorf("discovery: record of %d bytes, the limit is %d", len(b), maxRecordBytes)
	}
	var rec peer.PeerRecord
	env, err := record.ConsumeTypedEnvelope(b, &rec)
	if err != nil {
		return peer.AddrInfo{}, 0, fmt.Errorf("discovery: bad record: %w", err)
	}
	if string(env.PayloadType) != string(rec.Codec()) {
		return peer.AddrInfo{}, 0, errors.New("discovery: bad record: it is no peer record")
	}
	if !rec.PeerID.MatchesPublicKey(env.PublicKey) {
		return peer.AddrInfo{}, 0, fmt.Errorf("discovery: bad record: signed by another than %s", rec.PeerID)
	}
	if len(rec.Addrs) > maxRecordAddrs {
		return peer.AddrInfo{}, 0, fmt.Errorf("discovery: record of %d addresses, the limit is %d", len(rec.Addrs), maxRecordAddrs)
	}
	return peer.AddrInfo{ID: rec.PeerID, Addrs: rec.Addrs}, rec.Seq, nil
}

// openContact returns the contact that a record makes, with all the addresses it
// claims.
func openContact(record []byte) (overlay.Contact, error) {
	info, seq, err := openRecord(record)
	if err != nil {
		return overlay.Contact{}, err
	}
	return overlay.Contact{ID: info.ID, Record: record, Seq: seq, Addrs: info.Addrs}, nil
}
