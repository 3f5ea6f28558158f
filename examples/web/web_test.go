package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-smokesignal/smokesignal"
)

// start runs the program on loopback and returns the address of its page.
func start(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := run(ctx, append([]string{"-http", "127.0.0.1:0", "-listen", "127.0.0.1:0"}, args...), w)
		w.CloseWithError(err)
		done <- err
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("it ended with %v", err)
		}
	})
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if url, ok := strings.CutPrefix(lines.Text(), "* the page: "); ok {
			go io.Copy(io.Discard, r)
			return url
		}
	}
	t.Fatalf("it says nothing of a page: %v", lines.Err())
	return ""
}

func get(t *testing.T, url string) (*http.Response, string) {
	t.Helper()
	answer, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer, string(body)
}

// All files that the page names are served, and the page may load nothing from elsewhere.
func TestPage(t *testing.T) {
	at := start(t)
	for path, want := range map[string]string{
		"": "<title>", "app.js": "./bundle.js", "chat.js": "class Chat", "commands.js": "parseLine", "roster.js": "class Roster", "text.js": "clean",
		"bundle.js": "made by npm run build", "LICENSES.txt": "MIT", "style.css": "color-scheme", "icon.svg": "<svg",
	} {
		answer, body := get(t, at+path)
		if answer.StatusCode != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("%q: %s, without %q", path, answer.Status, want)
		}
		if p := answer.Header.Get("Content-Security-Policy"); !strings.HasPrefix(p, "default-src 'none'") {
			t.Errorf("%q: policy %q", path, p)
		}
	}
	for _, path := range []string{"main.go", "bundle.d.ts", "..%2fmain.go"} {
		if answer, _ := get(t, at+path); answer.StatusCode == http.StatusOK {
			t.Errorf("%q is served", path)
		}
	}
	if answer, err := http.Post(at+"join.json", "text/plain", nil); err != nil || answer.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("a post: %v, %v", answer, err)
	}
}

// The node is reached through the port of the page.
func TestJoinThroughThePage(t *testing.T) {
	at := start(t, "-network", "the web's")
	_, body := get(t, at+"join.json")
	var info struct{ ID, Network, Ticket, Command string }
	if err := json.Unmarshal([]byte(body), &info); err != nil {
		t.Fatal(err)
	}
	if want := ` -network 'the web'\''s'`; info.Network != "the web's" || !strings.HasSuffix(info.Command, want) {
		t.Errorf("got %+v", info)
	}
	if ticket, err := smokesignal.ParseTicket(info.Ticket); err != nil || ticket.ID.String() != info.ID || len(ticket.Addrs) < 4 {
		t.Errorf("ticket %+v, %v", ticket, err)
	}
	port := strings.Trim(strings.TrimPrefix(at, "http://127.0.0.1:"), "/")
	node, err := smokesignal.New(smokesignal.Listen("127.0.0.1:0"), smokesignal.Network(info.Network),
		smokesignal.Seeds("/ip4/127.0.0.1/tcp/"+port+"/ws/p2p/"+info.ID))
	if err != nil {
		t.Fatal(err)
	}
	defer node.Close()
	if err := node.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := node.Ready(ctx); err != nil {
		t.Fatal(err)
	}
}

// Addresses for browsers are added to the given Listen addresses.
func TestListens(t *testing.T) {
	browsers := func(at string) []string {
		return []string{at + "/tcp/0/ws", at + "/udp/0/quic-v1/webtransport", at + "/udp/0/webrtc-direct"}
	}
	for _, tc := range []struct{ given, want []string }{
		{nil, append([]string{":0"}, browsers("/ip4/0.0.0.0")...)},
		{[]string{"localhost:8495"}, append([]string{"localhost:8495"}, browsers("/ip4/127.0.0.1")...)},
		{[]string{"[fd00::1]:8495"}, append([]string{"[fd00::1]:8495"}, browsers("/ip6/fd00::1")...)},
		{[]string{"/ip4/10.0.0.1/tcp/1/ws"}, []string{"/ip4/10.0.0.1/tcp/1/ws"}},
		{[]string{"host.example:1"}, []string{"host.example:1", "/ip4/127.0.0.1/tcp/0/ws"}},
	} {
		if got := listens(tc.given); !slices.Equal(got, tc.want) {
			t.Errorf("%q: got %q, want %q", tc.given, got, tc.want)
		}
	}
}

// A list of addresses is on loopback only if all of them are.
func TestAllLoopback(t *testing.T) {
	for text, want := range map[string]bool{
		"": false, ":0": false, "127.0.0.1:1": true, "localhost:1": true, "[::1]:1": true, "192.168.2.1:1": false,
		"host.example:1": false, "/ip4/127.0.0.1/tcp/1/ws": true, "/ip4/0.0.0.0/tcp/1": false,
	} {
		var list []string
		if text != "" {
			list = []string{text}
		}
		if got := allLoopback(list); got != want {
			t.Errorf("%q: got %v", text, got)
		}
	}
	if allLoopback([]string{"127.0.0.1:1", ":0"}) {
		t.Error("one of two is enough")
	}
}

// The error of a bad flag names the mistake.
func TestBadFlags(t *testing.T) {
	for want, args := range map[string][]string{
		"-help lists":  {"-nonsense"},
		"give another": {"-http", "256.0.0.1:0"},
		"unexpected":   {"-http", "127.0.0.1:0", "word"},
		`Listen "///"`: {"-http", "127.0.0.1:0", "-listen", "///"},
	} {
		err := run(t.Context(), args, io.Discard)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v", args, err)
		}
	}
	var help strings.Builder
	if err := run(t.Context(), []string{"-help"}, &help); err != nil || !strings.Contains(help.String(), "-http") {
		t.Errorf("%v, %q", err, help.String())
	}
}
