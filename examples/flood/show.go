package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"golang.org/x/term"

	"github.com/go-smokesignal/smokesignal"
)

// terminal returns f if it is a terminal, and nil otherwise, so that the progress bar is not
// written to a file.
func terminal(f *os.File) io.Writer {
	if !term.IsTerminal(int(f.Fd())) {
		return nil
	}
	return f
}

// showProgress draws a progress bar on w until stop is called. With a nil w it does nothing.
func showProgress(w io.Writer, label string, progress func() (n, of uint64)) (stop func()) {
	if w == nil {
		return func() {}
	}
	done := make(chan struct{})
	var drawing sync.WaitGroup
	drawing.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				if n, of := progress(); of > 0 && n > 0 {
					fmt.Fprint(w, "\r", bar(label, n, of), "\x1b[K")
				}
			case <-done:
				fmt.Fprint(w, clearLine(w))
				return
			}
		}
	})
	return func() {
		close(done)
		drawing.Wait()
	}
}

// clearLine returns the escape sequence that removes the progress bar, or "" if bar is nil.
func clearLine(bar io.Writer) string {
	if bar == nil {
		return ""
	}
	return "\r\x1b[K"
}

// bar returns a progress bar as text. It begins with label and shows how much n is of the
// total, which the parameter of gives.
func bar(label string, n, of uint64) string {
	const width = 30
	full := int(n * width / of)
	return fmt.Sprintf("%s %s%s %3d%% %d of %d", label,
		strings.Repeat("█", full), strings.Repeat("░", width-full), n*100/of, n, of)
}

// print prints the counts of each receiver. It returns an error if an event was lost, arrived
// twice or out of order, or if a receiver did not report.
func (o *outcome) print(w io.Writer, name func(smokesignal.ID) string) error {
	fmt.Fprintf(w, "%d events of %d bytes, accepted in %s: %s\n\n",
		o.Count, o.Size, seconds(o.took), rate(o.Count, o.Size, o.took))
	ids := make([]smokesignal.ID, 0, len(o.reports))
	for id := range o.reports {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b smokesignal.ID) int { return strings.Compare(name(a), name(b)) })

	tw := tabwriter.NewWriter(w, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "receiver\treceived\tlost\ttwice\tout of order\tseconds\tevents/s\tMiB/s\t")
	var f faults
	for _, id := range ids {
		r := o.reports[id]
		if r == nil {
			f.silent++
			fmt.Fprintf(tw, "%s\tno report\t\t\t\t\t\t\t\n", name(id))
			continue
		}
		f.add(o.announce, *r)
		fmt.Fprintf(tw, "%s\t%d\t%d\t%d\t%d\t%.2f\t%.0f\t%.2f\t\n", name(id), r.Received, o.Count-r.Received,
			r.Twice, r.Disordered, r.Took.Seconds(), perSecond(r.Received, r.Took),
			perSecond(r.Received, r.Took)*float64(o.Size)/(1<<20))
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	return f.err()
}

// faults adds up the faults in the reports of all receivers.
type faults struct {
	silent                  int // receivers that did not report
	lost, twice, disordered uint64
}

func (f *faults) add(a announce, r report) {
	f.lost += a.Count - r.Received
	f.twice += r.Twice
	f.disordered += r.Disordered
}

// err returns an error that lists the faults, or nil if there are none.
func (f *faults) err() error {
	if *f == (faults{}) {
		return nil
	}
	text := fmt.Sprintf("%d events lost, %d received twice, %d out of order", f.lost, f.twice, f.disordered)
	if f.silent > 0 {
		text += fmt.Sprintf("; receivers that did not report, and may have left: %d", f.silent)
	}
	return errors.New(text)
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }

func perSecond(n uint64, d time.Duration) float64 {
	if d <= 0 {
		return 0 // the time from the first event to the last is zero if there is only one
	}
	return float64(n) / d.Seconds()
}

func rate(n uint64, size int, d time.Duration) string {
	r := perSecond(n, d)
	return fmt.Sprintf("%.0f events/s, %.2f MiB/s", r, r*float64(size)/(1<<20))
}

// shortID returns the last six characters of an id, which are enough to tell a few nodes
// apart. The first characters are the same in all ids.
func shortID(id smokesignal.ID) string {
	s := id.String()
	return s[max(0, len(s)-6):]
}

// summary returns a report as one line of text for the receiver's own user.
func (r report) summary(a announce) string {
	return fmt.Sprintf("%d of %d events of %d bytes in %s: %s; %d lost, %d twice, %d out of order",
		r.Received, a.Count, a.Size, seconds(r.Took), rate(r.Received, a.Size, r.Took),
		a.Count-r.Received, r.Twice, r.Disordered)
}
