// Package outputtest collects what a program under test prints, and waits for texts in it.
package outputtest

import (
	"bytes"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// timeout is how long Wait and WaitText wait. Only a failing test waits so long.
const timeout = 30 * time.Second

// Printed is a writer that keeps everything written to it. The zero value is empty and
// ready to use. All methods may be called from several goroutines.
type Printed struct {
	mu      sync.Mutex
	text    bytes.Buffer
	changed chan struct{} // closed at the next Write; nil if nobody has asked for it
}

// Write appends b to the output. It never fails.
func (o *Printed) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.changed != nil {
		close(o.changed)
		o.changed = nil
	}
	return o.text.Write(b)
}

// String returns everything that was written until now.
func (o *Printed) String() string {
	text, _ := o.Now()
	return text
}

// Now returns everything that was written until now, and a channel that is closed at the
// next Write.
func (o *Printed) Now() (text string, changed <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.changed == nil {
		o.changed = make(chan struct{})
	}
	return o.text.String(), o.changed
}

// Wait waits until the output has a match of the regular expression, and returns the match
// and its groups. It fails the test after thirty seconds.
func (o *Printed) Wait(t testing.TB, pattern string) (match []string) {
	t.Helper()
	re := regexp.MustCompile(pattern)
	o.wait(t, pattern, func(text string) bool {
		match = re.FindStringSubmatch(text)
		return match != nil
	})
	return match
}

// WaitText waits until the output contains text. It fails the test after thirty seconds.
func (o *Printed) WaitText(t testing.TB, text string) {
	t.Helper()
	o.wait(t, text, func(all string) bool { return strings.Contains(all, text) })
}

func (o *Printed) wait(t testing.TB, what string, found func(text string) bool) {
	t.Helper()
	late := time.After(timeout)
	for {
		text, changed := o.Now()
		if found(text) {
			return
		}
		select {
		case <-changed:
		case <-late:
			t.Fatalf("no %q in\n%s", what, text)
		}
	}
}
