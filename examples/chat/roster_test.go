package main

import (
	"slices"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal"
)

// Members with equal names get different ones on the screen.
func TestRosterNames(t *testing.T) {
	a, b, c := smokesignal.ID("idA-aaaaaa"), smokesignal.ID("idB-bbbbbb"), smokesignal.ID("idC-cccccc")
	now := time.Unix(0, 0)
	r := newRoster("me")
	for _, tc := range []struct {
		step    string
		id      smokesignal.ID
		claimed string
		want    string
		news    bool
	}{
		{"an unknown peer speaks", a, "", shortID(a), true},
		{"and speaks again", a, "", shortID(a), false},
		{"then gives a name", a, "Ann", "Ann", true},
		{"which it gives again", a, "Ann", "Ann", false},
		{"and used", a, "", "Ann", false},
		{"somebody else has that name", b, "ann", "ann-" + shortID(b), true},
		{"somebody has mine", c, "me", "me-" + shortID(c), true},
		{"and changes it", c, "cy", "cy", true},
	} {
		if got, news := r.noteAlive(tc.id, tc.claimed, now); got != tc.want || news != tc.news {
			t.Errorf("%s: got %q, news %v; want %q, %v", tc.step, got, news, tc.want, tc.news)
		}
	}
	if got, want := r.names(), []string{"Ann", "ann-" + shortID(b), "cy"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for name, want := range map[string]smokesignal.ID{"ann": a, "CY": c, shortID(b): b} {
		if id, ok := r.find(name); !ok || id != want {
			t.Errorf("%s: found %v, %v", name, id, ok)
		}
	}
	if _, ok := r.find("nobody"); ok {
		t.Error("found nobody")
	}
	if name, known := r.remove(b); !known || name != "ann-"+shortID(b) {
		t.Errorf("left: %q, %v", name, known)
	}
	if _, known := r.remove(b); known {
		t.Error("left twice")
	}
}

// TestRosterKeepsImitatedNamesApart: a name made to look like the one another would get.
func TestRosterKeepsImitatedNamesApart(t *testing.T) {
	a, b := smokesignal.ID("idA-aaaaaa"), smokesignal.ID("idB-bbbbbb")
	r := newRoster("bob")
	first, _ := r.noteAlive(a, "bob-"+shortID(b), time.Unix(0, 0))
	second, _ := r.noteAlive(b, "bob", time.Unix(0, 0))
	if first == second {
		t.Errorf("both are %q", first)
	}
}

// The roster keeps a limited number of members.
func TestRosterBounded(t *testing.T) {
	r := newRoster("me")
	for i := range maxRoster + 10 {
		r.noteAlive(smokesignal.ID(time.Unix(int64(i), 0).String()), "x", time.Unix(0, 0))
	}
	if n := len(r.names()); n != maxRoster {
		t.Errorf("%d names", n)
	}
}

// TestRollCall: who does not answer within absence is gone, and only those.
func TestRollCall(t *testing.T) {
	a, b, c := smokesignal.ID("a"), smokesignal.ID("b"), smokesignal.ID("c")
	start := time.Unix(0, 0)
	at := func(d time.Duration) time.Time { return start.Add(d) }
	r := newRoster("me")
	r.noteAlive(a, "ann", start)
	r.noteAlive(b, "bob", start)
	r.noteAlive(c, "cy", start)

	if gone := r.removeSilent(at(time.Hour)); gone != nil {
		t.Errorf("nobody was called, yet gone: %q", gone)
	}
	r.noteAlive(c, "", at(time.Second)) // before the call: no answer
	r.startRollCall(at(2 * time.Second))
	r.noteAlive(a, "ann", at(3*time.Second))
	if gone := r.removeSilent(at(2*time.Second + absence - 1)); gone != nil {
		t.Errorf("too early: %q", gone)
	}
	if gone, want := r.removeSilent(at(2*time.Second+absence)), []string{"bob", "cy"}; !slices.Equal(gone, want) {
		t.Errorf("gone: %q, want %q", gone, want)
	}
	if gone := r.removeSilent(at(time.Hour)); gone != nil {
		t.Errorf("settled twice: %q", gone)
	}
	if got := r.names(); !slices.Equal(got, []string{"ann"}) {
		t.Errorf("left: %q", got)
	}
}
