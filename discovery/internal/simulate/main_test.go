package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func runCommand(t *testing.T, args ...string) (out, log string, err error) {
	t.Helper()
	var o, l bytes.Buffer
	err = run(args, &o, &l)
	return o.String(), l.String(), err
}

// The plain case prints its table and its trace, and draws.
func TestCasePrintsAndDraws(t *testing.T) {
	dir := t.TempDir()
	out, log, err := runCommand(t, "-n", "12", "-kill", "50", "-runs", "2", "-svg", dir, "-v")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"### crash-50: ", "| 12 | whole after |", "| met |"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	for _, want := range []string{" starts\n", " links n0", " crashes\n"} {
		if !strings.Contains(log, want) {
			t.Errorf("no %q in the trace", want)
		}
	}
	svg, err := os.ReadFile(filepath.Join(dir, "smokesignal-crash-50-12.svg"))
	if err != nil || !bytes.HasPrefix(svg, []byte("<svg ")) {
		t.Errorf("drawing: %v, %.20q", err, svg)
	}
}

// Without -n there are two sizes, but a case of fixed size is played once.
func TestDefaultSizes(t *testing.T) {
	out, _, err := runCommand(t, "-case", "undialable-30", "-runs", "1")
	if err != nil || !strings.Contains(out, "\n| 10 |") || !strings.Contains(out, "\n| 100 |") {
		t.Errorf("%v\n%s", err, out)
	}
	out, _, err = runCommand(t, "-case", "mixed", "-runs", "1")
	if err != nil || strings.Count(out, "nodes left out") != 1 {
		t.Errorf("%v\n%s", err, out)
	}
}

// The figures of the yardstick stand beside the others, and figures without a bar can be
// left out.
func TestYardstickStandsBeside(t *testing.T) {
	out, _, err := runCommand(t, "-n", "30", "-kill", "80", "-rules", "both", "-bars", "-runs", "3")
	if err != nil || !strings.Contains(out, "| whole after |") || !strings.Contains(out, "| met | never | never |") || strings.Contains(out, "dials") {
		t.Errorf("%v\n%s", err, out)
	}
}

// A missed bar makes the command fail.
func TestMissedBarFails(t *testing.T) {
	if out, _, err := runCommand(t, "-n", "50", "-kill", "80", "-rules", "original", "-runs", "2"); !errors.Is(err, errMissed) {
		t.Errorf("%v\n%s", err, out)
	}
}

// Each bad flag is named.
func TestBadFlagIsNamed(t *testing.T) {
	for want, args := range map[string]string{
		"-rules theirs: want smokesignal":    "-rules theirs",
		"-case no: want all or one of burst": "-case no",
		"-n 1: want":                         "-n 1",
		"-n 10,x: want":                      "-n 10,x",
		"120 % of the nodes":                 "-kill 120",
		"-1 % of the nodes":                  "-silent -1",
		`"x" is not a flag`:                  "x",
		"not defined: -nodes":                "-nodes 5",
		"no such file":                       "-n 5 -kill 50 -runs 1 -svg /nowhere/at/all",
	} {
		if _, _, err := runCommand(t, strings.Fields(args)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", args, err, want)
		}
	}
}
