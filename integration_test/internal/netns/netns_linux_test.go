package netns

import (
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// newHalves makes the halves with two machines on side 0 and one on side 1. It skips
// the test if it may not. It returns nil if the test has run in another process.
func newHalves(t *testing.T) *Halves {
	t.Helper()
	inside, err := Enter(t)
	if err != nil {
		t.Skip("SKIPPED: ", err)
	}
	if !inside {
		return nil
	}
	h, err := NewHalves()
	if err != nil {
		t.Skip("SKIPPED: ", err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, side := range []int{0, 0, 1} {
		if _, err := h.Machine(side); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

// Packets between two halves are dropped during a cut and pass after it.
func TestHalvesAreCutAndHealed(t *testing.T) {
	h := newHalves(t)
	if h == nil {
		return
	}
	a, b, c := h.machines[0], h.machines[1], h.machines[2]
	reaches := func(from, to *Machine, want bool) {
		t.Helper()
		// If the machine is reached, it refuses the connection, as the port is closed.
		err := from.Run("bash", "-c", "exec timeout 2 bash -c '</dev/tcp/"+to.IP+"/9'")
		if err == nil {
			t.Error("port 9 is open")
			return
		}
		if got := strings.Contains(err.Error(), "refused"); got != want {
			t.Errorf("from %s to %s: %v", from.IP, to.IP, err)
		}
	}
	reaches(a, b, true)
	reaches(a, c, true)
	reaches(c, a, true)
	if err := h.Cut(); err != nil {
		t.Fatal(err)
	}
	reaches(a, b, true)
	var waiting sync.WaitGroup // both wait until they give up
	waiting.Go(func() { reaches(a, c, false) })
	waiting.Go(func() { reaches(c, a, false) })
	waiting.Wait()
	if err := h.Heal(); err != nil {
		t.Fatal(err)
	}
	reaches(a, c, true)
	reaches(c, a, true)
}

// Do returns the thread to its own namespace. Otherwise later sockets of other
// goroutines would be made in the wrong one.
func TestThreadComesBack(t *testing.T) {
	h := newHalves(t)
	if h == nil {
		return
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	where := func() string {
		text, err := os.Readlink("/proc/thread-self/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	home := where()
	for _, m := range h.machines {
		err := m.Do(func() error {
			if where() == home {
				t.Error("not in the namespace")
			}
			return os.ErrDeadlineExceeded
		})
		if err != os.ErrDeadlineExceeded || where() != home {
			t.Errorf("%v, and the thread is in %s, not %s", err, where(), home)
		}
	}
}
