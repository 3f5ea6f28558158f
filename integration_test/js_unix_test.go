//go:build unix

package integration_test

import (
	"syscall"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal/internal/hosttest"
)

// A node's process is frozen: its kernel keeps the connection open, but the node says
// nothing. A leaf gives it up after about ten seconds, without libp2p's own pings, and is
// connected again when the process goes on.
func TestJSDeadNode(t *testing.T) {
	needsJS(t)
	at := hosttest.FreeAddress(t)
	web := startWeb(t, buildWeb(t), at)
	leaf := startLeaf(t, jsConfig{Ticket: joinInfo(t, at).Ticket, NoMonitor: true})
	began := time.Now()
	if err := web.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	leaf.line("disconnected")
	took := time.Since(began)
	if err := web.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if took > 15*time.Second {
		t.Errorf("the leaf noticed after %v", took)
	}
	leaf.line("connected")
	t.Logf("the leaf noticed after %v", took.Round(time.Millisecond))
}
