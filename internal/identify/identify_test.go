package identify

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/event"
	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify/pb"
	"google.golang.org/protobuf/proto"

	"github.com/go-smokesignal/smokesignal/internal/frame"
	"github.com/go-smokesignal/smokesignal/internal/hosttest"
)

func TestMain(m *testing.M) { os.Exit(hosttest.Main(m)) }

// shortPauses are a fifth of the real ones.
var shortPauses = pauses{queryInterval / 5, recheckDelay / 5}

// newListener returns a host that tracks which peers speak two protocols, and the updates
// on its bus.
func newListener(t *testing.T, listen string) (corehost.Host, *Tracker, event.Subscription) {
	t.Helper()
	h, err := libp2p.New(libp2p.ListenAddrStrings(listen), libp2p.DisableRelay(), libp2p.DisableMetrics())
	if err != nil {
		t.Fatal(err)
	}
	k, err := track(h, nil, shortPauses, []protocol.ID{"/a", "/b"})
	if err != nil {
		t.Fatal(err)
	}
	updates, err := h.EventBus().Subscribe(new(event.EvtPeerProtocolsUpdated))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		updates.Close()
		k.Close()
		h.Close()
	})
	return h, k, updates
}

func known(h corehost.Host, p peer.ID) []protocol.ID {
	list, _ := h.Peerstore().GetProtocols(p)
	slices.Sort(list)
	return list
}

// hear waits for an update on the bus, with what was added and removed.
func hear(t *testing.T, updates event.Subscription, added, removed string) {
	t.Helper()
	select {
	case ev := <-updates.Out():
		update := ev.(event.EvtPeerProtocolsUpdated)
		if got := fmt.Sprint(update.Added, update.Removed); got != added+" "+removed {
			t.Errorf("the bus says %s, want %s %s", got, added, removed)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("the bus does not say %s %s", added, removed)
	}
}

// The protocols of an older answer are replaced by those of a newer one.
func TestAnOlderAnswerDoesNotStay(t *testing.T) {
	t.Parallel()
	hosttest.OverTCPAndQUIC(t, testAnOlderAnswerDoesNotStay)
}

func testAnOlderAnswerDoesNotStay(t *testing.T, listen string) {
	h, _, updates := newListener(t, listen)
	n := hosttest.NewScripted(t)
	n.Dial(h)
	first := n.Next()

	// A push is read before the older answer to what every connection begins with.
	n.Push(h.ID(), "/a")
	hear(t, updates, "[/ipfs/id/1.0.0 /ipfs/id/push/1.0.0 /a]", "[]")
	first("/x")
	second := n.Next()
	if got := known(h, n.ID()); slices.Contains(got, "/a") {
		t.Fatalf("the older answer does not stay: %v; the test shows nothing", got)
	}
	second("/a")
	hear(t, updates, "[/a]", "[/x]")

	// A change of a protocol that is not watched causes no query. The next change does, and
	// another one arrives during the query.
	n.Push(h.ID(), "/a", "/x")
	hear(t, updates, "[/x]", "[]")
	n.Push(h.ID(), "/b", "/x")
	hear(t, updates, "[/b]", "[/a]")
	third := n.Next()
	n.Push(h.ID(), "/x")
	hear(t, updates, "[]", "[/b]")
	third("/b", "/x")
	hear(t, updates, "[/b]", "[]")
	n.Next()("/x")
	hear(t, updates, "[]", "[/b]")
	if got := known(h, n.ID()); !slices.Equal(got, []protocol.ID{identify.ID, identify.IDPush, "/x"}) {
		t.Errorf("in the end it is known to speak %v", got)
	}
	select {
	case <-n.Asked:
		t.Error("it is asked though it has said the same twice")
	case <-time.After(2 * shortPauses.query): // nothing reports that none comes
	}
}

// A peer that does not answer when the connection begins is queried again, but not without
// end.
func TestASilentPeerIsQueriedAgain(t *testing.T) {
	t.Parallel()
	h, _, updates := newListener(t, hosttest.TCP)
	n := hosttest.NewScripted(t)
	n.Dial(h)
	n.Next()()
	n.Next()()
	n.Next()("/a")
	hear(t, updates, "[/ipfs/id/push/1.0.0 /a]", "[]")

	silent := hosttest.NewScripted(t)
	silent.Dial(h)
	for range 1 + queryTries {
		silent.Next()()
	}
	select {
	case <-silent.Asked:
		t.Error("it is asked without end")
	case <-time.After(2 * shortPauses.query): // nothing reports that none comes
	}
}

// A peer that does something that only speakers of a protocol do is queried, unless libp2p
// learns of the protocol meanwhile.
func TestRecheckQueriesAPeerThatHidesAProtocol(t *testing.T) {
	t.Parallel()
	h, k, updates := newListener(t, hosttest.TCP)
	n := hosttest.NewScripted(t)
	n.Dial(h)
	n.Next()("/x")
	k.Recheck(n.ID(), "/x") // which is known, so there is no query
	k.Recheck(n.ID(), "/b", "/a")
	n.Next()("/a")
	hear(t, updates, "[/a]", "[/x]")
	k.Recheck(n.ID(), "/b")

	other := hosttest.NewScripted(t)
	other.Dial(h)
	k.Recheck(other.ID(), "/a")
	other.Next()("/a")
	for _, n := range []*hosttest.Scripted{n, other} {
		select {
		case <-n.Asked:
			t.Error("it is asked again")
		case <-time.After(2 * shortPauses.recheck): // nothing reports that none comes
		}
	}

	k.mu.Lock()
	k.peers[n.ID()].rechecked = time.Now().Add(-reorderWindow)
	k.mu.Unlock()
	k.Recheck(n.ID(), "/b")
	n.Next()("/b")
	hear(t, updates, "[/b]", "[/a]")
}

// An identify answer may come in several messages, up to a limit.
func TestAnswersComeInPartsAndAreBounded(t *testing.T) {
	part := func(m *pb.Identify) []byte {
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return frame.Append(nil, b)
	}
	some := part(&pb.Identify{Protocols: []string{"/a"}})
	for name, c := range map[string]struct {
		in   []byte
		want string
	}{
		"nothing":        {nil, "[] <nil>"},
		"two parts":      {append(some, some...), "[/a /a] <nil>"},
		"half a part":    {some[:len(some)-1], "[] identify: read an answer: unexpected EOF"},
		"a large part":   {part(&pb.Identify{Protocols: []string{strings.Repeat("x", maxIdentify)}}), "[] identify: read an answer: frame: too large: 8195 bytes announced, the limit is 8192"},
		"too many parts": {bytes.Repeat(some, maxIdentifyParts), "[] identify: read an answer: it has more than 10 parts"},
	} {
		t.Run(name, func(t *testing.T) {
			list, err := readIdentify(bytes.NewReader(c.in))
			if got := fmt.Sprint(list, " ", err); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
	if _, err := readIdentify(bytes.NewReader(frame.Append(nil, []byte{0xff}))); err == nil {
		t.Error("garbage is accepted")
	}
}
