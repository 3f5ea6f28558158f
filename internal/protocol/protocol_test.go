package protocol

import "testing"

// IsOurs recognizes the protocols of this library and no others.
func TestIsOurs(t *testing.T) {
	for id, want := range map[ID]bool{
		Overlay: true, Repair: true, Events: true, Stream: true,
		"/smokesignal/overlay/2.0.0": true,
		"/floodsub/1.0.0":            false,
		"/app/smokesignal/1.0.0":     false,
		"":                           false,
	} {
		if got := IsOurs(id); got != want {
			t.Errorf("IsOurs(%q) is %v", id, got)
		}
	}
}

// TestNames: other implementations write these names, so they never change.
func TestNames(t *testing.T) {
	for got, want := range map[string]string{
		string(Overlay): "/smokesignal/overlay/1.0.0",
		string(Repair):  "/smokesignal/repair/1.0.0",
		string(Events):  "/smokesignal/events/1.0.0",
		string(Stream):  "/smokesignal/stream/1.0.0",
		Topic("home"):   "smokesignal/home",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// Two sessions are different.
func TestSessionsDiffer(t *testing.T) {
	if a, b := NewSession(), NewSession(); a == b || a.IsZero() {
		t.Errorf("%x, then %x", a, b)
	}
	if !(Session{}).IsZero() {
		t.Error("the zero session is not zero")
	}
}
