package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"golang.org/x/sys/unix"
)

// boundSockets returns "tcp 127.0.0.1:8495" and the like for every socket of
// this process that listens, or is a UDP socket.
func boundSockets(t *testing.T) map[string]int {
	t.Helper()
	// The kernel's tables are read in pieces. When other processes open and close sockets
	// in between, one of ours can be passed over.
	for bound := readSockets(t); ; {
		again := readSockets(t)
		if maps.Equal(bound, again) {
			return bound
		}
		bound = again
	}
}

func readSockets(t *testing.T) map[string]int {
	t.Helper()
	mine := map[string]bool{}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if link, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(link, "socket:[") {
			mine[strings.Trim(link[len("socket:"):], "[]")] = true
		}
	}
	bound := map[string]int{}
	for _, table := range []string{"tcp", "tcp6", "udp", "udp6"} {
		text, err := os.ReadFile("/proc/self/net/" + table)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			f := strings.Fields(line)
			const listen = "0A"
			if len(f) < 10 || !mine[f[9]] || strings.HasPrefix(table, "tcp") && f[3] != listen {
				continue
			}
			host, port, _ := strings.Cut(f[1], ":")
			n, err := strconv.ParseUint(port, 16, 16)
			if err != nil {
				t.Fatal(err)
			}
			bound[fmt.Sprintf("%s %v", strings.TrimSuffix(table, "6"), netip.AddrPortFrom(kernelIP(t, host), uint16(n)))]++
		}
	}
	return bound
}

// kernelIP reads an address as the kernel prints it: words in host order.
func kernelIP(t *testing.T, text string) netip.Addr {
	t.Helper()
	var b []byte
	for ; text != ""; text = text[8:] {
		n, err := strconv.ParseUint(text[:8], 16, 32)
		if err != nil {
			t.Fatal(err)
		}
		b = append(b, byte(n), byte(n>>8), byte(n>>16), byte(n>>24)) // little endian
	}
	ip, _ := netip.AddrFromSlice(b)
	return ip
}

func newlyBound(t *testing.T, before map[string]int) map[string]int {
	t.Helper()
	now := boundSockets(t)
	for s, n := range before {
		if now[s] -= n; now[s] <= 0 {
			delete(now, s)
		}
	}
	return now
}

// Listen binds exactly the requested sockets.
func TestOnlyWhatWasAskedForIsBound(t *testing.T) {
	v6 := hasIPv6Loopback(t)
	for _, tt := range []struct {
		listen []string
		v6     bool
		want   []string // %d is the port, the same for all of one text
	}{
		{listen: []string{"127.0.0.1:0"}, want: []string{"tcp 127.0.0.1:%d", "udp 127.0.0.1:%d"}},
		{listen: []string{"[::1]:0"}, v6: true, want: []string{"tcp [::1]:%d", "udp [::1]:%d"}},
		{listen: []string{"localhost:0"}, v6: true, want: []string{"tcp 127.0.0.1:%d", "udp 127.0.0.1:%d", "tcp [::1]:%d", "udp [::1]:%d"}},
		{listen: []string{"0.0.0.0:0"}, want: []string{"tcp 0.0.0.0:%d", "udp 0.0.0.0:%d"}},
		{listen: []string{"[::]:0"}, v6: true, want: []string{"tcp [::]:%d", "udp [::]:%d"}},
		{listen: []string{":0"}, v6: true, want: []string{"tcp 0.0.0.0:%d", "udp 0.0.0.0:%d", "tcp [::]:%d", "udp [::]:%d"}},
		{listen: []string{"0"}, v6: true, want: []string{"tcp 0.0.0.0:%d", "udp 0.0.0.0:%d", "tcp [::]:%d", "udp [::]:%d"}},
		{listen: nil, v6: true, want: []string{"tcp 0.0.0.0:%d", "udp 0.0.0.0:%d", "tcp [::]:%d", "udp [::]:%d"}},
		{listen: []string{"/ip4/127.0.0.1/tcp/0"}, want: []string{"tcp 127.0.0.1:%d"}},
		{listen: []string{"/ip4/127.0.0.1/tcp/0/ws"}, want: []string{"tcp 127.0.0.1:%d"}},
		{listen: []string{"/ip4/127.0.0.1/udp/0/quic-v1"}, want: []string{"udp 127.0.0.1:%d"}},
		{listen: []string{"/ip6/::1/udp/0/quic-v1/webtransport"}, v6: true, want: []string{"udp [::1]:%d"}},
		{listen: []string{"/ip4/127.0.0.1/udp/0/webrtc-direct"}, want: []string{"udp 127.0.0.1:%d"}},
	} {
		t.Run(strings.Join(tt.listen, " "), func(t *testing.T) {
			if tt.v6 && !v6 {
				t.Skip("no IPv6 here")
			}
			before := boundSockets(t)
			h, err := New(Config{Listen: tt.listen})
			if err != nil {
				t.Fatal(err)
			}
			defer h.Close()
			if got := newlyBound(t, before); len(got) != 0 {
				t.Errorf("bound before Listen: %v", got)
			}
			if err := h.Listen(); err != nil {
				t.Fatal(err)
			}
			at, _, _ := splitAddr(h.Host().Network().ListenAddresses()[0])
			got := newlyBound(t, before)
			for _, want := range tt.want {
				want = fmt.Sprintf(want, at.Port())
				if got[want] != 1 {
					t.Errorf("not bound: %s", want)
				}
				delete(got, want)
			}
			if len(got) != 0 {
				t.Errorf("bound unasked: %v", got)
			}
			h.Close()
			if got := newlyBound(t, before); len(got) != 0 {
				t.Errorf("still bound after Close: %v", got)
			}
		})
	}
}

var linuxChildren = map[string]func(){
	"free port": childFindsCommonPort,
	"one IP":    childJoinsFromOneIP,
	"full disk": childFillsDisk,
}

// runChildIn runs a child in a namespace of its own, as root there. It skips the
// test where that is not allowed.
func runChildIn(t *testing.T, namespace uintptr, name string, env ...string) string {
	t.Helper()
	attr := &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | namespace,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	probe := exec.Command("/proc/self/exe", "-test.run=^$")
	probe.SysProcAttr = attr
	if err := probe.Run(); err != nil {
		t.Skip("no namespaces: ", err)
	}
	return runChild(t, name, attr, env...)
}

// setUp brings loopback up and gives it one more address.
func setUp(extra string) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	check(err)
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	check(err)
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	check(unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo))
	if extra != "" {
		alias, err := unix.NewIfreq("lo:1")
		check(err)
		ip := netip.MustParseAddr(extra).As4()
		check(alias.SetInet4Addr(ip[:]))
		check(unix.IoctlIfreq(fd, unix.SIOCSIFADDR, alias))
	}
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

// Of the two free ports of this network one is in use for TCP.
func childFindsCommonPort() {
	setUp("")
	check(os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("40000 40001"), 0))
	first, err := net.Listen("tcp4", "127.0.0.1:40000")
	check(err)
	defer first.Close()
	for range 20 {
		h, err := New(Config{Listen: []string{"127.0.0.1:0"}})
		check(err)
		check(h.Listen())
		for _, a := range h.Host().Network().ListenAddresses() {
			if at, _, _ := splitAddr(a); at.Port() != 40001 {
				panic(a)
			}
		}
		h.Close()
	}
	second, err := net.Listen("tcp4", "127.0.0.1:40001")
	check(err)
	defer second.Close()
	h, err := New(Config{Listen: []string{"127.0.0.1:0"}})
	check(err)
	fmt.Print(h.Listen())
}

// A port that Listen chooses is free for TCP and UDP; if there is none, Listen fails.
func TestFreePortIsFreeForBoth(t *testing.T) {
	out := runChildIn(t, syscall.CLONE_NEWNET, "free port")
	if !strings.HasPrefix(out, "host: cannot listen: /ip4/127.0.0.1/tcp/4000") || !strings.HasSuffix(out, "address already in use") {
		t.Errorf("with no port free for both: %s", out)
	}
}

// 64 nodes behind one address that is not loopback, as behind a NAT. With
// libp2p's limits the ninth is refused.
func childJoinsFromOneIP() {
	setUp("10.1.2.3")
	hub, err := New(Config{Listen: []string{"10.1.2.3:0"}})
	check(err)
	check(hub.Listen())
	var addrs []ma.Multiaddr
	for _, a := range hub.Host().Addrs() {
		if strings.Contains(a.String(), os.Getenv("TRANSPORT")) {
			addrs = append(addrs, a)
		}
	}
	connected := make(chan struct{}, 128)
	hub.Host().Network().Notify(&network.NotifyBundle{ConnectedF: func(network.Network, network.Conn) { connected <- struct{}{} }})
	// One by one: of QUIC connections that are ready at once libp2p drops what
	// is beyond sixteen, which is another matter.
	for range 64 {
		h, err := New(Config{})
		check(err)
		check(h.Host().Connect(context.Background(), peer.AddrInfo{ID: hub.Host().ID(), Addrs: addrs}))
		<-connected
	}
	fmt.Print(len(hub.Host().Network().Peers()))
}

// Of 64 nodes behind one IP address, all connect.
func TestManyNodesBehindOneIP(t *testing.T) {
	for _, transport := range []string{"/tcp/", "/quic-v1"} {
		if out := runChildIn(t, syscall.CLONE_NEWNET, "one IP", "TRANSPORT="+transport); out != "64" {
			t.Errorf("%s: %s of 64 nodes connected", transport, out)
		}
	}
}

// A new identity on a disk that is full leaves nothing, and says why.
func childFillsDisk() {
	dir := os.Getenv("DIR")
	check(unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4k"))
	check(os.WriteFile(filepath.Join(dir, "filler"), make([]byte, 4096), 0o600))
	path := filepath.Join(dir, "identity")
	_, err := OpenIdentity(path)
	fmt.Println(err)
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		fmt.Println(e.Name())
	}
	check(os.Remove(filepath.Join(dir, "filler")))
	_, err = OpenIdentity(path)
	fmt.Println(err)
}

// A new identity on a full disk is an error and leaves no file.
func TestAFullDiskLeavesNoIdentity(t *testing.T) {
	dir := t.TempDir()
	out := runChildIn(t, syscall.CLONE_NEWNS, "full disk", "DIR="+dir)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != 3 || !strings.Contains(lines[0], "no space left") || !strings.Contains(lines[0], dir) || lines[1] != "filler" || lines[2] != "<nil>" {
		t.Errorf("got\n%s", out)
	}
}
