package engine

import (
	"fmt"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/events/internal/order"
	"github.com/go-smokesignal/smokesignal/events/internal/repair"
	"github.com/go-smokesignal/smokesignal/events/internal/store"
)

// Whatever neighbors tell, give and answer: no panic, all bounds kept, no question
// to strangers, and no time at which there is always something more to do.
func FuzzEngine(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 0, 0, 5, 1, 3, 0, 5, 1, 13, 0, 0, 4, 0, 100, 6, 0, 0})
	f.Add([]byte{0, 0, 0, 0, 1, 0, 3, 9, 200, 2, 1, 255, 4, 0, 100, 6, 1, 7, 4, 0, 255, 7, 0, 0, 1, 0, 0})
	f.Add([]byte{8, 0, 1, 5, 5, 5, 5, 9, 250, 7, 7, 7, 4, 4, 4})
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > 3000 {
			return
		}
		const room = 2000
		e := New[int]("self", order.SessionKey{Start: 5}, Config{
			Order: order.Config{GapTimeout: 70 * time.Second, SettleTimeout: 5 * time.Second, MaxSenders: 4, MaxHints: 4, MaxHeldPerSender: room / 2, MaxHeld: room},
			Store: store.Config{MaxBytes: room},
			Last:  uint64(len(in) % 3),
		})
		now := time.Unix(1000, 0)
		linked := make(map[peer.ID]bool)
		var open []repair.Ask
		for ; len(in) >= 3; in = in[3:] {
			op, a, b := in[0], in[1], in[2]
			id := peer.ID(fmt.Sprint("n", a&3))
			sender := peer.ID([]string{"n0", "n1", "far", "self", "x1", "x2", "x3", "x4"}[a>>2&7])
			session := order.SessionKey{Start: 4 + uint64(a>>5&3)}
			number := uint64(b)
			if b > 250 {
				number <<= 54
			}
			switch op & 7 {
			case 0:
				linked[id] = true
				e.AddNeighbor(id)
				e.ReceiveGreeting(now, id, e.Greeting(1+int(b)))
			case 1:
				delete(linked, id)
				e.RemoveNeighbor(now, id)
			case 2, 3:
				m := Mark{Progress: order.Progress{Sender: sender, Session: session, Begin: number / 2, Next: number, Above: number + uint64(op>>3)}, Floor: number / 3, Through: number, Ask: op>>3&1 == 1}
				if op&7 == 2 {
					e.ReceiveMarks(now, id, []Mark{m})
				} else {
					e.ReceiveGreeting(now, id, []Mark{m})
				}
			case 4:
				now = now.Add(time.Duration(b) * 10 * time.Millisecond)
			case 5:
				e.Receive(now, sender, Batch[int]{Session: session, First: number, Count: int(op >> 3), Size: 10 * int(op>>3)}, id)
			case 6:
				if len(open) > 0 {
					ask := open[0]
					open = open[1:]
					if op>>3&1 == 1 {
						e.ReceiveRepair(now, ask, Batch[int]{Session: ask.Session, First: max(1, ask.From-min(ask.From, uint64(a&3))), Count: 1 + int(b&15), Size: 50})
					}
					e.FinishAsk(now, ask, ask.From+uint64(b&15), repair.Outcome(a%3))
				}
			case 7:
				if e.CanPublish() {
					e.AddOwn(now, Batch[int]{Session: e.session, First: e.published, Count: 1 + int(b&7), Size: 1 + int(b)})
				}
				e.RequeueMarks(now, id, e.CollectMarks(now, id, 1+int(b)))
			}
			for tries := 0; ; tries++ {
				out := e.Advance(now)
				for _, s := range out.Steps {
					if s.From >= s.To {
						t.Fatalf("step %+v", s)
					}
				}
				for _, ask := range out.Asks {
					if !linked[ask.Peer] || ask.From >= ask.To {
						t.Fatalf("question %+v", ask)
					}
				}
				open = append(open, out.Asks...)
				if next := e.Next(); next.IsZero() || next.After(now) {
					break
				}
				if tries == 20 {
					t.Fatalf("next is %v at %v", e.Next(), now)
				}
			}
			if e.store.Bytes() > room || e.order.HeldBytes() > room || len(open) > 16 || e.order.SenderCount() > 4 {
				t.Fatalf("%d bytes stored, %d held, %d questions, %d senders", e.store.Bytes(), e.order.HeldBytes(), len(open), e.order.SenderCount())
			}
			if n := e.repair.HoleCount(); n > 100 || len(e.holes) > 100 || len(e.hintHoleSince) > 100 {
				t.Fatalf("%d needs, %d gaps, %d heard", n, len(e.holes), len(e.hintHoleSince))
			}
		}
	})
}
