package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/internal/hosttest"
	"github.com/go-smokesignal/smokesignal/internal/outputtest"
)

// TestMain lets the test binary be the program, for the tests that kill it.
func TestMain(m *testing.M) {
	if os.Getenv("CHAT_TEST_MAIN") != "" {
		main()
		return
	}
	patience = 5 * time.Second
	os.Exit(hosttest.Main(m))
}

// patient bounds what a loaded machine may take.
const patient = 30 * time.Second

// talker is a chat with its two ends.
type talker struct {
	t    *testing.T
	name string
	in   io.WriteCloser
	out  *outputtest.Printed
	read int // up to where wait has looked
	kill func()
	done chan error
}

// talk starts a chat in this process. It listens on loopback, unless the arguments say
// where.
func talk(t *testing.T, name string, args ...string) *talker {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	k := &talker{t: t, name: name, in: w, out: new(outputtest.Printed), kill: cancel, done: make(chan error, 1)}
	if !slices.Contains(args, "-listen") {
		args = append([]string{"-listen", "127.0.0.1:0"}, args...)
	}
	args = named(t, name, args)
	go func() {
		k.done <- run(ctx, args, r, k.out)
		r.Close()
	}()
	k.cleanup(cancel)
	return k
}

// talkProcess starts a chat as a process, so that it can be killed.
func talkProcess(t *testing.T, name string, args ...string) *talker {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, named(t, name, args)...)
	cmd.Env = append(os.Environ(), "CHAT_TEST_MAIN=1")
	k := &talker{t: t, name: name, out: new(outputtest.Printed), done: make(chan error, 1)}
	cmd.Stdout, cmd.Stderr = k.out, k.out
	if k.in, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { k.done <- cmd.Wait() }()
	k.kill = func() { cmd.Process.Kill() }
	k.cleanup(k.kill)
	return k
}

// named adds a name to the arguments of a chat, and a network of the test's own unless
// the arguments say which by -network or a ticket.
func named(t *testing.T, name string, args []string) []string {
	chosen := func(arg string) bool { return arg == "-network" || strings.HasPrefix(arg, "smoke1") }
	if !slices.ContainsFunc(args, chosen) {
		args = append([]string{"-network", network(t)}, args...)
	}
	return append([]string{"-name", name}, args...)
}

// network keeps tests that run at the same time apart.
func network(t *testing.T) string {
	name, _, _ := strings.Cut(t.Name(), "/")
	return name
}

func (k *talker) cleanup(stop func()) {
	k.t.Cleanup(func() {
		stop()
		select {
		case <-k.done:
		case <-time.After(patient):
			k.t.Errorf("%s does not end", k.name)
		}
		if k.t.Failed() {
			k.t.Logf("%s printed\n%s", k.name, k.out)
		}
	})
}

func (k *talker) say(text string) {
	k.t.Helper()
	if _, err := io.WriteString(k.in, text+"\n"); err != nil {
		k.t.Fatalf("%s cannot say %q: %v", k.name, text, err)
	}
}

// wait waits until the chat prints a line that matches, after the last one that
// was waited for, and returns its groups.
func (k *talker) wait(pattern string, within time.Duration) []string {
	k.t.Helper()
	re := regexp.MustCompile("(?m)^" + pattern + "$")
	timeout := time.After(within)
	for {
		text, changed := k.out.Now()
		text = text[k.read:]
		if m := re.FindStringSubmatchIndex(text); m != nil {
			k.read += m[1]
			var groups []string
			for i := 0; i < len(m); i += 2 {
				groups = append(groups, text[m[i]:m[i+1]])
			}
			return groups
		}
		select {
		case <-changed:
		case <-timeout:
			k.t.Fatalf("%s did not print %q within %v", k.name, pattern, within)
		}
	}
}

// seed returns the address in the command that the chat prints.
func (k *talker) seed() string {
	k.t.Helper()
	return k.wait(`\* to join, another person types: go run ./examples/chat -seed (\S+) -network \w+`, patient)[1]
}

// end waits until the chat has ended by itself.
func (k *talker) end() error {
	k.t.Helper()
	select {
	case err := <-k.done:
		k.done <- err
		return err
	case <-time.After(patient):
		k.t.Fatalf("%s does not end", k.name)
		return nil
	}
}

// Two chats show each other's lines.
func TestTwoChats(t *testing.T) {
	t.Parallel()
	alice := talk(t, "alice")
	bob := talk(t, "bob", "-seed", alice.seed())
	for _, k := range []*talker{alice, bob} {
		k.wait(`\* connecting`, patient)
		k.wait(`\* connected\. Happy chatting!`, patient)
	}
	alice.say("hello bob")
	bob.wait("alice: hello bob", patient)
	bob.say("hello alice, \x1b[31mgot you, äöü 漢字")
	alice.wait(`bob: hello alice, ␛\[31mgot you, äöü 漢字`, patient)
	bob.say("/quit is text when it comes from a pipe")
	alice.wait("bob: /quit is text when it comes from a pipe", patient)

	bob.in.Close() // the end of the input
	if err := bob.end(); err != nil {
		t.Errorf("bob ended with %v", err)
	}
	alice.wait(`\* bob left`, patient)
	alice.wait(`\* disconnected\. Sorry\.`, patient)
	if strings.Contains(bob.out.String(), "disconnected") {
		t.Error("bob, who left, saw a message that he is disconnected")
	}
	alice.kill() // ctrl-c
	if err := alice.end(); err != nil {
		t.Errorf("alice ended with %v", err)
	}
}

// TestThreeInARow: each knows only the one before.
func TestThreeInARow(t *testing.T) {
	t.Parallel()
	a := talk(t, "ann")
	b := talk(t, "bob", "-seed", a.seed())
	c := talk(t, "cy", "-seed", b.seed())
	all := []*talker{a, b, c}
	for i, k := range all {
		seen := k.read
		for j, other := range all {
			if i != j {
				k.read = seen // in any order
				k.wait(`\* `+other.name+" joined", patient)
			}
		}
	}
	for i, k := range all {
		k.say("this is " + k.name)
		for j, other := range all {
			if i != j {
				other.wait(k.name+": this is "+k.name, patient)
			}
		}
	}
}

// TestKilledAndBack: when one of two processes is killed, the other says so, and it is
// connected again soon after the first was started anew with its identity.
func TestKilledAndBack(t *testing.T) {
	t.Parallel()
	at, identity := tcpAlone(hosttest.FreeAddress(t)), filepath.Join(t.TempDir(), "key")
	alice := talkProcess(t, "alice", "-listen", at, "-identity", identity)
	alice.wait(`\* connecting`, patient)
	bob := talkProcess(t, "bob", "-listen", "127.0.0.1:0", "-seed", at)
	bob.wait(`\* alice joined`, patient)
	alice.wait(`\* bob joined`, patient)

	alice.kill()
	// He may look for her before the last of her connections has ended.
	lost, refused := `\* disconnected\. Sorry\.`, `\* seed `+regexp.QuoteMeta(at)+`: connection refused; [^\n]*`
	bob.wait("(?s:"+lost+".*"+refused+"|"+refused+".*"+lost+")", patient)

	back := talkProcess(t, "alice", "-listen", at, "-identity", identity)
	back.wait(`\* connecting`, patient)
	bob.wait(`\* connected\. Happy chatting!`, 10*time.Second)
	back.say("here I am again")
	bob.wait("alice: here I am again", patient)
	if n := strings.Count(bob.out.String(), "connection refused"); n != 1 {
		t.Errorf("bob said %d times that the connection was refused", n)
	}
}

// TestKilledFarAway: a chat that is killed is missed by one that has no link to it.
func TestKilledFarAway(t *testing.T) {
	t.Parallel()
	a := talk(t, "ann", "-listen", tcp)
	at := a.seed()
	b := talkProcess(t, "bob", "-listen", tcp, "-seed", at)
	c := talk(t, "cy", "-listen", tcp, "-seed", at)
	c.wait(`\* bob joined`, patient)
	b.kill()
	c.wait(`\* bob left`, patient)
	a.wait(`\* bob left`, patient)
}

// TestRollCallKeepsItsCaller: a roll call does not strike the one who holds it, who says nothing
// more once the others have answered.
func TestRollCallKeepsItsCaller(t *testing.T) {
	t.Parallel()
	alice := talk(t, "alice")
	node, err := smokesignal.New(smokesignal.Listen("127.0.0.1:0"), smokesignal.Seeds(alice.seed()), smokesignal.Network(network(t)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { node.Close() })
	asked, answered := make(chan bool, 10), make(chan bool, 10)
	hello.On(node.Broadcast(), func(ctx context.Context, _ smokesignal.ID, g greeting) {
		if !g.Ask {
			answered <- true
		} else if err := hello.Emit(ctx, node.Broadcast(), greeting{Name: "cy"}); err == nil {
			asked <- true
		}
	})
	if err := node.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-asked
	alice.wait(`\* cy joined`, patient)
	if err := hello.Emit(t.Context(), node.Broadcast(), greeting{Name: "cy", Ask: true}); err != nil {
		t.Fatal(err)
	}
	<-answered
	time.Sleep(absence + time.Second) // no event shows that nothing happens
	if strings.Contains(alice.out.String(), "cy left") {
		t.Error("who held a roll call counts as gone")
	}
}

// TestPipe: echo hi | chat -seed ...
func TestPipe(t *testing.T) {
	t.Parallel()
	alice := talk(t, "alice")
	bob := talk(t, "bob", "-seed", alice.seed())
	bob.say("hi")
	bob.say("there")
	bob.in.Close() // before anybody is connected
	if err := bob.end(); err != nil {
		t.Errorf("bob ended with %v", err)
	}
	alice.wait("bob: hi", patient)
	alice.wait("bob: there", patient)
}

// TestPipeWithoutListener: what cannot be sent is an error, not silence.
func TestPipeWithoutListener(t *testing.T) {
	t.Parallel()
	bob := talk(t, "bob", "-seed", hosttest.FreeAddress(t))
	bob.say("hi")
	bob.say("there")
	start := time.Now()
	bob.in.Close()
	err := bob.end()
	if err == nil || !strings.Contains(err.Error(), "2 lines not sent") || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("got %v", err)
	}
	if d := time.Since(start); d < patience || d > patience+patient {
		t.Errorf("gave up after %v", d)
	}
}

// A chat ends without an error when its input ends.
func TestEndOfInputEndsTheChat(t *testing.T) {
	t.Parallel()
	bob := talk(t, "bob", "-seed", hosttest.FreeAddress(t))
	bob.in.Close()
	if err := bob.end(); err != nil {
		t.Error(err)
	}
}

// TestCauseOfAFailedJoinIsShownOnce: the cause is on the screen within three seconds, once.
func TestCauseOfAFailedJoinIsShownOnce(t *testing.T) {
	t.Parallel()
	const otherID = "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp"
	alice := talk(t, "alice")
	seed := alice.seed()
	host, port, _ := net.SplitHostPort(seed)
	own := hosttest.FreeAddress(t)
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })

	full, err := smokesignal.New(smokesignal.Listen("127.0.0.1:0"), smokesignal.PeerLimits(0, 0), smokesignal.Network(network(t)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { full.Close() })
	if err := full.Start(t.Context()); err != nil {
		t.Fatal(err)
	}

	// Go's resolver knows by itself that no name server has names in .onion.
	for _, tc := range []struct {
		name, seed string
		args       []string
		want       string
	}{
		{"port closed", hosttest.FreeAddress(t), nil, "connection refused; is the other chat running.*"},
		{"wrong id", fmt.Sprintf("/ip4/%s/tcp/%s/p2p/%s", host, port, otherID), nil, "wrong id: .*; ask again for the address.*"},
		{"other network", seed, []string{"-network", "elsewhere"}, ".*another network.*; both need the same -network"},
		{"no such name", "nowhere.onion:8495", nil, ".*; is the name spelled right.*"},
		{"everybody full", full.Addrs()[0].String(), nil, ".*full.*; still trying.*"},
		{"itself", own, []string{"-listen", own}, ".*this is the node itself; give the address of another chat"},
		{"no answer", silent.Addr().String(), nil, "no answer yet.*"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			k := talk(t, "bob", append([]string{"-seed", tc.seed}, tc.args...)...)
			k.wait(`\* connecting`, patient)
			k.wait(`\* seed `+regexp.QuoteMeta(tc.seed)+": "+tc.want, 3*time.Second)
		})
	}
	// A chat of the loopback interface alone looks for nobody, and says so.
	alice.wait(`\* not looking for others on the local network, .*`, 3*time.Second)
}

// TestStartFails: an address in use is an error that names it.
func TestStartFails(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	at := l.Addr().(*net.TCPAddr)
	err = run(t.Context(), []string{"-listen", at.String()}, strings.NewReader("hi\n"), io.Discard)
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("/tcp/%d: address already in use", at.Port)) {
		t.Errorf("got %v, want an error that names %v", err, at)
	}
}

// TestSameName: two members with one name can be distinguished.
func TestSameName(t *testing.T) {
	t.Parallel()
	a := talk(t, "ann")
	b := talk(t, "bob", "-seed", a.seed())
	a.wait(`\* bob joined`, patient)
	c := talk(t, "bob", "-seed", b.seed())
	suffix := a.wait(`\* bob-(\w{6}) joined`, patient)[1]
	c.say("I am the other one")
	a.wait("bob-"+suffix+": I am the other one", patient)
}

// tcpAlone returns the multiaddr of a host and port over TCP. Over TCP it is noticed at
// once that a process was killed, over QUIC after 12 s.
func tcpAlone(hostPort string) string {
	host, port, _ := strings.Cut(hostPort, ":")
	return fmt.Sprintf("/ip4/%s/tcp/%s", host, port)
}
