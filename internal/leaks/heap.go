package leaks

import (
	"runtime"
	"testing"
	"time"
)

// heapPatience is how long WantHeap waits for the heap to shrink.
const heapPatience = 30 * time.Second

// Heap returns how many bytes the heap has after a garbage collection.
func Heap() int {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// WantHeap fails the test unless the heap comes back to at most this many bytes above
// before. It waits, because pools, finalizers and closing hosts of libp2p hold some
// memory until a later collection.
func WantHeap(t *testing.T, before, most int) {
	t.Helper()
	grown := Heap() - before
	for began := time.Now(); grown > most && time.Since(began) < heapPatience; grown = Heap() - before {
		time.Sleep(10 * time.Millisecond)
	}
	if grown > most {
		t.Errorf("the heap has grown by %d KiB, and may by %d", grown>>10, most>>10)
	}
}
