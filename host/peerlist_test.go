package host

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/internal/bubble"
)

type listLog struct {
	lines    []string
	releases []func()
}

func (l *listLog) Connected()    { l.lines = append(l.lines, "connect") }
func (l *listLog) Disconnected() { l.lines = append(l.lines, "disconnect") }
func (l *listLog) PeerAdded(p peer.ID, release func()) {
	l.lines = append(l.lines, "add "+string(p))
	l.releases = append(l.releases, release)
}
func (l *listLog) PeerRemoved(p peer.ID, reason error) {
	l.lines = append(l.lines, fmt.Sprintf("remove %s: %v", string(p), reason))
}

// TestPeerListReportsInOrder: connect before the first addition, disconnect
// before the last removal, each once; repeated additions and removals of unknown
// peers report nothing.
func TestPeerListReportsInOrder(t *testing.T) {
	log := &listLog{}
	l := NewPeerList(1, 2, log)
	if l.Full() || l.Sufficient() {
		t.Error("an empty list is full or sufficient")
	}
	why := errors.New("why")
	l.Remove("x", why)
	l.Add("a")
	l.Add("a")
	l.Add("b")
	if !l.Full() || !l.Sufficient() || !l.Has("a") || l.Len() != 2 {
		t.Errorf("list of two: full %v, sufficient %v, has %v, len %d", l.Full(), l.Sufficient(), l.Has("a"), l.Len())
	}
	l.Remove("a", why)
	l.Remove("a", why)
	l.Remove("b", why)
	l.Add("a")
	want := []string{"connect", "add a", "add b", "remove a: why", "disconnect", "remove b: why", "connect", "add a"}
	if !reflect.DeepEqual(log.lines, want) {
		t.Errorf("reported\n%q, want\n%q", log.lines, want)
	}
}

// TestAdmitWaitsForRelease: the events of a peer are held back from Expect until
// its addition was reported, or it is not added after all. A release that comes
// late, when the peer is expected anew, opens nothing.
func TestAdmitWaitsForRelease(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		log := &listLog{}
		l := NewPeerList(1, 2, log)
		admitted := func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			return l.Admit(ctx, "a") == nil
		}
		if !admitted() {
			t.Error("a peer which nobody expects is held back")
		}
		l.Expect("a")
		l.Expect("a")
		if admitted() {
			t.Error("an expected peer is admitted")
		}
		l.Add("a")
		if admitted() {
			t.Error("admitted before the addition was reported")
		}
		log.releases[0]()
		if !admitted() {
			t.Error("held back after its release")
		}
		l.Remove("a", nil)
		l.Expect("a")
		log.releases[0]()
		if admitted() {
			t.Error("an old release opened the new gate")
		}
		l.Remove("a", nil)
		if !admitted() {
			t.Error("held back although it was not added")
		}
	})
}
