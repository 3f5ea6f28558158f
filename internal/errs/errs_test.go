package errs

import (
	"errors"
	"fmt"
	"testing"
)

// Text returns the message of an error without the prefix of its package.
func TestTextLeavesThePackageOut(t *testing.T) {
	for _, test := range []struct{ err, want string }{
		{"smokesignal: closed", "closed"},
		{"events: queue full", "queue full"},
		{"discovery: seed: events: x", "seed: events: x"},
		{"no route to host: 192.0.2.1", "no route to host: 192.0.2.1"},
		{"", ""},
	} {
		if got := Text(errors.New(test.err)); got != test.want {
			t.Errorf("Text(%q) is %q, want %q", test.err, got, test.want)
		}
	}
	if got := fmt.Sprintf("seed a: %s", Text(ErrClosed)); got != "seed a: closed" {
		t.Error(got)
	}
}
