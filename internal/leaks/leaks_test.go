package leaks

import (
	"testing"
	"time"
)

// recorder notes what a check says.
type recorder struct {
	testing.TB
	failed bool
}

func (r *recorder) Helper()      {}
func (r *recorder) Error(...any) { r.failed = true }

func TestWatch(t *testing.T) {
	end := make(chan struct{})
	before := make(chan struct{})
	go func() { <-before }()
	r := &recorder{TB: t}
	check := Watch(r)
	if check(); r.failed {
		t.Error("a goroutine that was there before is found")
	}
	go func() { <-end }()
	if find(0) == nil {
		t.Error("a goroutine that goes on is not found")
	}
	if check(); !r.failed {
		t.Error("a goroutine that goes on does not fail the test")
	}
	r.failed = false
	time.AfterFunc(time.Second, func() { close(end) })
	if check(); r.failed {
		t.Error("a goroutine that ends a second later fails the test")
	}
	close(before)
}
