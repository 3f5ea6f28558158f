package main

import (
	"bytes"
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/internal/outputtest"
)

// TestOneProcess: all events at all receivers, once and in order.
func TestOneProcess(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), []string{"-n", "4", "-m", "1000", "-s", "100"}, &out, nil); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	if n := len(regexp.MustCompile(`node \d(, the seed)? +1000 +0 +0 +0 `).FindAllString(out.String(), -1)); n != 3 {
		t.Errorf("%d good rows in\n%s", n, &out)
	}
}

// TestSeveralRuns: receivers of their own, a sender that comes later.
func TestSeveralRuns(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	start := func(args ...string) (*outputtest.Printed, chan error) {
		out, done := new(outputtest.Printed), make(chan error, 1)
		go func() { done <- run(ctx, append([]string{"-listen", "127.0.0.1:0"}, args...), out, nil) }()
		return out, done
	}
	first, firstDone := start()
	seed := first.Wait(t, `-seed (\S+)`)[1]
	second, secondDone := start("-seed", seed)
	sender, senderDone := start("-seed", seed, "-send", "-n", "3", "-m", "500")
	if err := <-senderDone; err != nil {
		t.Fatalf("%v\n%s", err, sender)
	}
	for _, out := range []*outputtest.Printed{first, second} {
		out.Wait(t, `500 of 500 events of 64 bytes in .*; 0 lost, 0 twice, 0 out of order`)
	}
	interrupt()
	for _, done := range []chan error{firstDone, secondDone} {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// TestLossFails: the table and the error show how many events are missing.
func TestLossFails(t *testing.T) {
	run := newRunID()
	for _, tc := range []struct {
		name   string
		report *report
		want   string
	}{
		{"good", &report{run, 10, 0, 0, time.Second}, ""},
		{"lost", &report{run, 7, 0, 0, time.Second}, "3 events lost, 0 received twice, 0 out of order"},
		{"twice", &report{run, 10, 1, 0, time.Second}, "0 events lost, 1 received twice, 0 out of order"},
		{"disordered", &report{run, 10, 0, 2, time.Second}, "0 events lost, 0 received twice, 2 out of order"},
		{"silent", nil, "did not report, and may have left: 1"},
	} {
		o := &outcome{announce{run, 10, 64}, time.Second, map[smokesignal.ID]*report{
			"a": {run, 10, 0, 0, time.Second}, "b": tc.report,
		}}
		var out bytes.Buffer
		err := o.print(&out, func(id smokesignal.ID) string { return string(id) })
		if got := fmt.Sprint(err); (tc.want == "") != (err == nil) || err != nil && !strings.Contains(got, tc.want) {
			t.Errorf("%s: got %v, want %q\n%s", tc.name, err, tc.want, &out)
		}
	}
}

// TestReceiverReportsLoss plays a flood with a hole to a receiver's handlers.
func TestReceiverReportsLoss(t *testing.T) {
	node, err := smokesignal.New(smokesignal.Listen("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer node.Close()
	var reports []report
	r := newReceiver(node, func(_ smokesignal.ID, _ announce, rep report) { reports = append(reports, rep) })
	a := announce{newRunID(), 3, minSize}
	r.handleAnnounce(t.Context(), "them", a)
	b := make([]byte, minSize)
	for _, n := range []uint64{0, 2} {
		fill(b, a.Run, n)
		r.handleEvent(t.Context(), "them", b)
		r.handleEvent(t.Context(), "somebody else", b)
	}
	r.handleEnd(t.Context(), "them", a.Run)
	if len(reports) != 0 {
		t.Error("reported before it could know that no more comes")
	}
	r.tally.last = r.tally.last.Add(-silence)
	r.handleEnd(t.Context(), "them", a.Run)
	r.handleEnd(t.Context(), "them", a.Run)
	if len(reports) != 1 || reports[0].Received != 2 || reports[0].Twice != 0 {
		t.Errorf("reported %+v", reports)
	}
}

// The error of a bad flag names the flag.
func TestParseNamesTheFlag(t *testing.T) {
	for args, want := range map[string]string{
		"-n 1": "-n 1", "-m 0": "-m 0", "-s 15": "-s 15", "-s 600000": "-s 600000", "-x": "-x", "stray": `"stray"`,
	} {
		_, err := parse(strings.Fields(args), &bytes.Buffer{})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "-help") {
			t.Errorf("%s: got %v", args, err)
		}
	}
	if o, err := parse([]string{"-send"}, &bytes.Buffer{}); err != nil || o.nodes != 2 {
		t.Errorf("-send: got %+v, %v", o, err)
	}
}

// The progress bar shows the count, and its line is cleared at the end.
func TestBar(t *testing.T) {
	if got, want := bar("sent", 5, 10), "sent "+strings.Repeat("█", 15)+strings.Repeat("░", 15)+"  50% 5 of 10"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	out := new(outputtest.Printed)
	stop := showProgress(out, "sent", func() (uint64, uint64) { return 1, 1 })
	out.Wait(t, `sent █{30} 100% 1 of 1`)
	stop()
	if !strings.HasSuffix(out.String(), clearLine(out)) {
		t.Error("the bar stays behind")
	}
}
