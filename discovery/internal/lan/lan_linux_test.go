package lan

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/discovery/mdns"
	"golang.org/x/net/ipv4"

	"github.com/go-smokesignal/smokesignal/internal/hosttest"
)

// roleEnv names the environment variable with the machine that the test binary plays.
const roleEnv = "SMOKESIGNAL_LAN_ROLE"

// TestNodesFindEachOtherInNamespaces runs two machines, which are network namespaces of its
// own with a cable (veth) between them. No packet reaches a real network.
func TestNodesFindEachOtherInNamespaces(t *testing.T) {
	switch os.Getenv(roleEnv) {
	case "near":
		lanNear(t)
		return
	case "far":
		lanFar(t)
		return
	}
	if os.Getenv("SMOKESIGNAL_LONG") == "" {
		t.Skip("SKIPPED: mDNS needs network namespaces; SMOKESIGNAL_LONG=1 runs it")
	}
	cmd := namespaced(t, "near")
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		if exit := cmd.ProcessState; exit == nil {
			t.Skip("SKIPPED: no network namespace can be made here: ", err)
		}
		t.Fatal(err)
	}
	if !bytes.Contains(out, []byte("--- PASS: TestNodesFindEachOtherInNamespaces")) {
		t.Fatal("the test did not run in the namespace")
	}
}

// namespaced returns this test as a process in a network namespace of its own.
func namespaced(t *testing.T, role string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe, "-test.run=^TestNodesFindEachOtherInNamespaces$", "-test.v", "-test.count=1")
	cmd.Env = append(os.Environ(), roleEnv+"="+role)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	return cmd
}

func ip(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// onlyNamespace fails, before anything is sent, where a real interface is seen.
func onlyNamespace(t *testing.T) {
	t.Helper()
	ifis, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range ifis {
		if i.Name != "lo" && !strings.HasPrefix(i.Name, "smoke") && i.Flags&net.FlagUp != 0 {
			t.Fatalf("not in a namespace of its own: there is %s", i.Name)
		}
	}
}

func hasIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err == nil
}

// lanFar is the other machine: a node of ours, and a libp2p host with libp2p's own mDNS. It prints
// the nodes that they find.
func lanFar(t *testing.T) {
	in := bufio.NewReader(os.Stdin)
	if _, err := in.ReadString('\n'); err != nil { // the cable is in
		t.Fatal(err)
	}
	onlyNamespace(t)
	ip(t, "link", "set", "lo", "up")
	ip(t, "addr", "add", "10.77.1.2/24", "dev", "smoke1")
	listen := []string{"/ip4/10.77.1.2/tcp/0"}
	if hasIPv6() {
		ip(t, "addr", "add", "fd77::2/64", "dev", "smoke1", "nodad")
		listen = append(listen, "/ip6/fd77::2/tcp/0")
	}
	ip(t, "link", "set", "smoke1", "up")

	ours, plain := hosttest.New(t, libp2p.ListenAddrStrings(listen...)), hosttest.New(t, libp2p.ListenAddrStrings("/ip4/10.77.1.2/tcp/0"))
	fmt.Println("OURS", ours.ID())
	fmt.Println("PLAIN", plain.ID())
	l, err := Start(ours, "home", func(info peer.AddrInfo) { fmt.Println("ours found", info.ID) }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	service := mdns.NewMdnsService(plain, "", printer{})
	if err := service.Start(); err != nil {
		t.Fatal(err)
	}
	defer service.Close()
	io.Copy(io.Discard, in) // until the near machine has seen enough
}

type printer struct{}

func (printer) HandlePeerFound(info peer.AddrInfo) { fmt.Println("plain found", info.ID) }

// events waits for things that happen, named by text.
type events struct {
	mu   sync.Mutex
	cond *sync.Cond
	seen map[string]bool
}

func newEvents() *events {
	e := &events{seen: map[string]bool{}}
	e.cond = sync.NewCond(&e.mu)
	return e
}

func (e *events) add(text string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.seen[text] = true
	e.cond.Broadcast()
}

func (e *events) has(text string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.seen[text]
}

func (e *events) want(t *testing.T, text string) {
	t.Helper()
	late := false
	timer := time.AfterFunc(30*time.Second, func() { e.mu.Lock(); late = true; e.mu.Unlock(); e.cond.Broadcast() })
	defer timer.Stop()
	e.mu.Lock()
	defer e.mu.Unlock()
	for !e.seen[text] {
		if late {
			t.Fatalf("not within 30 s: %q; there were %v", text, e.seen)
		}
		e.cond.Wait()
	}
}

func lanNear(t *testing.T) {
	onlyNamespace(t)
	ip(t, "link", "set", "lo", "up")
	happened := newEvents()
	early := hosttest.New(t, libp2p.ListenAddrStrings("/ip4/0.0.0.0/tcp/0"))
	search, err := Start(early, "home", func(info peer.AddrInfo) { happened.add("early found " + info.ID.String()) }, slog.New(slog.DiscardHandler))
	if err == nil {
		t.Error("nothing was said of a machine without a network")
	}
	defer search.Close()
	ip(t, "link", "add", "smoke0", "type", "veth", "peer", "name", "smoke1")
	ip(t, "link", "add", "smokeB0", "type", "veth", "peer", "name", "smokeB1")
	ip(t, "addr", "add", "10.77.1.1/24", "dev", "smoke0")
	ip(t, "addr", "add", "10.77.2.1/24", "dev", "smokeB0")
	if hasIPv6() {
		ip(t, "addr", "add", "fd77::1/64", "dev", "smoke0", "nodad")
	}
	for _, dev := range []string{"smoke0", "smokeB0", "smokeB1"} {
		ip(t, "link", "set", dev, "up")
	}
	far := namespaced(t, "far")
	stdin, err := far.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := far.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	far.Stderr = os.Stderr
	if err := far.Start(); err != nil {
		t.Fatal(err)
	}
	ip(t, "link", "set", "smoke1", "netns", fmt.Sprint(far.Process.Pid))
	io.WriteString(stdin, "\n")
	ids := make(chan string, 2)
	var reading sync.WaitGroup
	reading.Go(func() {
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			t.Log("far: ", lines.Text())
			kind, id, _ := strings.Cut(lines.Text(), " ")
			if kind == "OURS" || kind == "PLAIN" {
				ids <- id
			}
			happened.add(lines.Text())
		}
	})
	defer func() {
		stdin.Close()
		reading.Wait()
		if err := far.Wait(); err != nil {
			t.Error("far: ", err)
		}
	}()
	ours, plain := <-ids, <-ids

	happened.want(t, "early found "+ours) // its search has gone on
	happened.want(t, "ours found "+early.ID().String())
	search.Close()

	wire := sniff(t, "smoke0", happened)
	aside := sniff(t, "smokeB0", happened)
	start := func(name, network string, listen ...string) (id string, stop func()) {
		h := hosttest.New(t, libp2p.ListenAddrStrings(listen...))
		l, err := Start(h, network, func(info peer.AddrInfo) {
			happened.add(name + " found " + info.ID.String())
			if info.ID.String() == ours && !strings.HasPrefix(info.Addrs[0].String(), "/ip4/10.77.1.2/tcp/") {
				t.Errorf("%s at %v", name, info.Addrs)
			}
		}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		return h.ID().String(), func() { l.Close() }
	}

	id, stop := start("a", "home", "/ip4/10.77.1.1/tcp/0", "/ip4/10.77.1.1/udp/0/quic-v1", "/ip4/127.0.0.1/tcp/0")
	other, stopOther := start("other", "lab", "/ip4/10.77.1.1/tcp/0")
	happened.want(t, "a found "+ours)
	happened.want(t, "ours found "+id)
	happened.want(t, "plain found "+id)
	happened.want(t, "plain found "+other)
	nowhere, err := Start(hosttest.New(t, libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0")), "home", nil, slog.New(slog.DiscardHandler))
	if err != ErrLoopback {
		t.Errorf("on loopback: %v", err)
	}
	nowhere.Close()
	// The sniffers hear in the order of sending, so what was to be seen of the
	// above on the other interface has been seen.
	if !wire.saw(id, "10.77.1.1") || wire.saw("127.0.0.1") {
		t.Errorf("on the wire: %d packets", wire.count())
	}
	if n := aside.count(); n > 0 {
		t.Errorf("%d packets on an interface the node does not listen on", n)
	}
	for _, wrong := range []string{"a found " + plain, "a found " + other, "a found " + id, "other found " + id, "ours found " + other} {
		if happened.has(wrong) {
			t.Errorf("it happened that %q", wrong)
		}
	}

	// A host that listens on every interface announces to each network its address there.
	everywhere, stopEverywhere := start("everywhere", "home", "/ip4/0.0.0.0/tcp/0")
	happened.want(t, "a found "+everywhere)
	happened.want(t, "everywhere found "+ours)
	happened.want(t, "smokeB0 "+everywhere)
	if !aside.saw(everywhere, "10.77.2.1") || aside.saw("10.77.1.1") || wire.saw("10.77.2.1") {
		t.Error("an address of one network was announced in the other")
	}

	if hasIPv6() {
		six, stopSix := start("six", "home", "/ip6/fd77::1/tcp/0")
		happened.want(t, "six found "+ours)
		happened.want(t, "ours found "+six)
		stopSix()
	} else {
		t.Log("no IPv6 here")
	}

	stop()
	stopOther()
	stopEverywhere()
	happened.want(t, "smoke0 goodbye "+id)
	stacks := make([]byte, 1<<20)
	if stacks = stacks[:runtime.Stack(stacks, true)]; bytes.Contains(stacks, []byte("discovery.(*search")) {
		t.Errorf("a goroutine is left behind:\n%s", stacks)
	}
}

// A sniffer records the mDNS packets of one interface, of this machine and others.
type sniffer struct {
	mu      sync.Mutex
	packets [][]byte
}

func sniff(t *testing.T, name string, happened *events) *sniffer {
	t.Helper()
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.ListenMulticastUDP("udp4", ifi, &net.UDPAddr{IP: mdnsGroup4, Port: mdnsPort})
	if err != nil {
		t.Fatal(err)
	}
	p := ipv4.NewPacketConn(conn)
	if err := p.SetControlMessage(ipv4.FlagInterface, true); err != nil {
		t.Fatal(err)
	}
	s := &sniffer{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, maxPacket)
		for {
			n, cm, from, err := p.ReadFrom(buf)
			if err != nil {
				return
			}
			if cm.IfIndex != ifi.Index || strings.HasPrefix(from.String(), "10.77.1.2:") {
				continue
			}
			packet := bytes.Clone(buf[:n])
			s.mu.Lock()
			s.packets = append(s.packets, packet)
			s.mu.Unlock()
			if _, id, ok := bytes.Cut(packet, []byte("/p2p/")); ok {
				happened.add(name + " " + string(id[:52]))
				// The first record's TTL: zero is a farewell.
				if i := bytes.Index(packet, []byte("\x00\x0c\x00\x01")); i > 0 && bytes.Equal(packet[i+4:i+8], make([]byte, 4)) {
					happened.add(name + " goodbye " + string(id[:52]))
				}
			}
		}
	}()
	t.Cleanup(func() { conn.Close(); <-done })
	return s
}

func (s *sniffer) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.packets)
}

// saw reports whether one packet held all the texts.
func (s *sniffer) saw(texts ...string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.packets {
		all := true
		for _, text := range texts {
			all = all && bytes.Contains(p, []byte(text))
		}
		if all {
			return true
		}
	}
	return false
}
