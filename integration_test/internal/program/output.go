package program

import (
	"bufio"
	"encoding/json"
	"io"
	"sync"
	"time"

	"github.com/go-smokesignal/smokesignal/integration_test/internal/checker"
)

// An output writes records as lines of JSON. add never blocks: records wait in memory while a
// write is in progress. Records of consecutive events of one sender are merged into one.
type output struct {
	w       *bufio.Writer
	mu      sync.Mutex
	more    sync.Cond
	pending []checker.Record
	closed  bool
	done    chan struct{}
}

func newOutput(w io.Writer) *output {
	o := &output{w: bufio.NewWriterSize(w, 64<<10), done: make(chan struct{})}
	o.more.L = &o.mu
	go o.run()
	return o
}

// add appends a record, with the current time, to the records that wait to be written.
func (o *output) add(r checker.Record) {
	r.At = time.Now().UnixNano()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.pending = checker.Merge(o.pending, r)
	o.more.Signal()
}

// close waits until all records have been written.
func (o *output) close() {
	o.mu.Lock()
	o.closed = true
	o.more.Signal()
	o.mu.Unlock()
	<-o.done
}

func (o *output) run() {
	defer close(o.done)
	enc := json.NewEncoder(o.w)
	for {
		o.mu.Lock()
		for len(o.pending) == 0 && !o.closed {
			o.more.Wait()
		}
		batch, closed := o.pending, o.closed
		o.pending = nil
		o.mu.Unlock()
		for _, r := range batch {
			enc.Encode(r) // an error means that the test has ended, so there is no place to report it
		}
		o.w.Flush()
		if closed && len(batch) == 0 {
			return
		}
	}
}
