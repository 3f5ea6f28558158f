package leaks

import (
	"runtime"
	"testing"
	"time"
)

// heapPatience is how long WantHeap waits for the heap to shrink.
const heapPatience = 30 * time.Second

// Heap runs a garbage collection and returns the size of the heap in bytes.
func Heap() int {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// WantHeap fails the test if the heap stays larger than before by more than most bytes. It
// waits up to heapPatience, because pools, finalizers and closing libp2p hosts keep some memory
// until a later garbage collection.
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
