package leaks

import (
	"testing"
	"time"
)

// recorder is a test that notes whether a check has failed it.
type recorder struct {
	testing.TB
	failed bool
}

func (r *recorder) Helper()      {}
func (r *recorder) Error(...any) { r.failed = true }

// Watch fails only for goroutines that began after it and do not end.
func TestWatchFindsOnlyGoroutinesThatBeganLaterAndStay(t *testing.T) {
	before, end := make(chan struct{}), make(chan struct{})
	go func() { <-before }()
	r := &recorder{TB: t}
	check := watch(r, 100*time.Millisecond)
	if check(); r.failed {
		t.Error("a goroutine that was there before is found")
	}
	go func() { <-end }()
	if check(); !r.failed {
		t.Error("a goroutine that goes on does not fail the test")
	}
	close(end)
	close(before)
}

// Watch waits for goroutines that are about to end.
func TestWatchWaitsForGoroutinesThatEnd(t *testing.T) {
	r := &recorder{TB: t}
	check := Watch(r)
	end := make(chan struct{})
	go func() { <-end }()
	time.AfterFunc(time.Second, func() { close(end) })
	if check(); r.failed {
		t.Error("a goroutine that ends a second later fails the test")
	}
}
