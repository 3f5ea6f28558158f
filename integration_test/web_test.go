package integration_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/internal/hosttest"
	"github.com/go-smokesignal/smokesignal/internal/seed"
)

// The page of examples/web in Chromium, through examples/web/test/browser.js.

// chromium is a browser with some pages.
type chromium struct {
	t       *testing.T
	stdin   io.WriteCloser
	answers chan []byte
}

// startChromium starts the browser that SMOKESIGNAL_CHROMIUM names, or an installed one.
func startChromium(t *testing.T) *chromium {
	t.Helper()
	path := os.Getenv("SMOKESIGNAL_CHROMIUM")
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path == "" {
			path, _ = exec.LookPath(name)
		}
	}
	if path == "" {
		cannot(t, errors.New("there is no Chromium here, and SMOKESIGNAL_CHROMIUM does not name one"))
	}
	cmd := nodeCommand(webDir, "test/browser.js", path)
	cmd.Stderr = t.Output()
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &chromium{t: t, stdin: stdin, answers: make(chan []byte, 1)}
	go func() {
		defer close(c.answers)
		for s := bufio.NewScanner(out); s.Scan(); {
			c.answers <- slices.Clone(s.Bytes())
		}
	}()
	t.Cleanup(func() {
		stdin.Close()
		kill := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
		defer kill.Stop()
		for range c.answers {
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("the browser ended with %v", err)
		}
	})
	return c
}

// browserCommand is one of the commands in browser.js.
type browserCommand struct {
	Do     string   `json:"do"`
	Page   string   `json:"page,omitempty"`
	URL    string   `json:"url,omitempty"`
	Width  int      `json:"width,omitempty"`
	Height int      `json:"height,omitempty"`
	Dark   bool     `json:"dark,omitempty"`
	Text   string   `json:"text,omitempty"`
	Names  []string `json:"names,omitempty"`
	Path   string   `json:"path,omitempty"`
}

// do carries out a command, and stores its answer in result, if that is not nil.
func (c *chromium) do(cmd browserCommand, result any) {
	c.t.Helper()
	if err := json.NewEncoder(c.stdin).Encode(cmd); err != nil {
		c.t.Fatal(err)
	}
	var answer struct {
		Error  string
		Result json.RawMessage
	}
	select {
	case b, ok := <-c.answers:
		if !ok {
			c.t.Fatal("the browser is gone")
		}
		if err := json.Unmarshal(b, &answer); err != nil {
			c.t.Fatal(err)
		}
	case <-time.After(2 * time.Minute): // each command gives up after one
		c.t.Fatalf("the browser does not answer %+v", cmd)
	}
	if answer.Error != "" {
		c.t.Fatalf("%s: %s %s %q: %s", cmd.Page, cmd.Do, cmd.Text, cmd.Names, answer.Error)
	}
	if result != nil {
		if err := json.Unmarshal(answer.Result, result); err != nil {
			c.t.Fatalf("%s: %s: %v", cmd.Page, cmd.Do, err)
		}
	}
}

// webPage is a person at the page.
type webPage struct {
	*chromium
	page, name string
}

// typed enters a line by keyboard, into the element that has the focus.
func (p webPage) typed(text string) {
	p.t.Helper()
	p.do(browserCommand{Do: "type", Page: p.page, Text: text}, nil)
}

// line waits until the log has the line.
func (p webPage) line(text string) {
	p.t.Helper()
	p.do(browserCommand{Do: "line", Page: p.page, Text: text}, nil)
}

// status waits until the page shows the status.
func (p webPage) status(text string) {
	p.t.Helper()
	p.do(browserCommand{Do: "status", Page: p.page, Text: text}, nil)
}

// here waits until the page lists exactly these other people.
func (p webPage) here(others ...string) {
	p.t.Helper()
	p.do(browserCommand{Do: "here", Page: p.page, Names: append([]string{p.name + " (you)"}, others...)}, nil)
}

func (p webPage) press(button string) {
	p.t.Helper()
	p.do(browserCommand{Do: "press", Page: p.page, Text: button}, nil)
}

// shot saves a picture of the page as an artifact of the test.
func (p webPage) shot(file string) {
	p.t.Helper()
	path := filepath.Join(p.t.ArtifactDir(), file)
	p.do(browserCommand{Do: "shot", Page: p.page, Path: path}, nil)
	p.t.Logf("picture: %s", path)
}

func buildWeb(t *testing.T) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "web.exe")
	if out, err := exec.Command("go", "build", "-o", path, "../examples/web").CombinedOutput(); err != nil {
		t.Fatalf("building examples/web: %v\n%s", err, out)
	}
	return path
}

// startWeb starts examples/web. It is a chatProc that shows no lines of the chat.
func startWeb(t *testing.T, path, http string, args ...string) *chatProc {
	t.Helper()
	web := startProgram(t, "web", path, append([]string{"-http", http, "-listen", "127.0.0.1:0"}, args...)...)
	web.want(soon, "* the page: http://"+http)
	return web
}

// joinInfo returns the information that the server gives the page.
func joinInfo(t *testing.T, at string) (info struct{ ID, Ticket, Command string }) {
	t.Helper()
	answer, err := http.Get("http://" + at + "/join.json")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if err := json.NewDecoder(answer.Body).Decode(&info); err != nil {
		t.Fatal(err)
	}
	return info
}

// Two pages and two terminals see each other's lines and names. A terminal is killed and
// returns; then the server does, with a new identity. One page is on a phone at a plain http
// address, where browsers offer neither crypto.subtle nor WebTransport. The other joins with a
// ticket.
func TestWebChat(t *testing.T) {
	needsJS(t)
	path := buildWeb(t)
	browser := startChromium(t)
	at := hosttest.FreeAddress(t)
	_, port, _ := strings.Cut(at, ":")
	web := startWeb(t, path, at)
	info := joinInfo(t, at)
	after := func(text, word string) string { // the word after a word
		_, rest, _ := strings.Cut(text, word)
		return strings.Fields(rest)[0]
	}
	seed := after(info.Command, "-seed ")

	alice := startChat(t, "alice", "-listen", "127.0.0.1:0", "-seed", seed)
	invited := after(alice.want(soon, "* to join, another person types:"), "-seed ")
	alice.want(soon, "* connected. Happy chatting!")
	startBob := func() *chatProc { return startChat(t, "bob", "-listen", "127.0.0.1:0", "-seed", seed) }
	bob := startBob()

	phone, desk := webPage{browser, "phone", "carol"}, webPage{browser, "desk", "dave"}
	var secure bool
	browser.do(browserCommand{Do: "open", Page: phone.page, URL: "http://phone.test:" + port, Width: 360, Height: 740, Dark: true}, &secure)
	if secure {
		t.Error("the phone's page is a secure context, which no page on a local network is")
	}
	browser.do(browserCommand{Do: "open", Page: desk.page, URL: "http://" + at + "/#" + info.Ticket, Width: 1024, Height: 640}, &secure)
	for _, p := range []webPage{phone, desk} {
		p.typed(p.name)
		p.status("Connected")
	}
	phone.here("alice", "bob", "dave")
	desk.here("alice", "bob", "carol")
	for _, c := range []*chatProc{alice, bob} {
		for _, name := range []string{"carol", "dave"} {
			c.want(soon, "* "+name+" joined")
		}
	}
	alice.want(soon, "* bob joined")
	bob.want(soon, "* alice joined")

	// Everybody speaks.
	says := map[string]string{
		"alice": "Hello from a terminal!", "bob": "And from another one",
		"carol": "I am on my phone", "dave": "Here is a page that came with a ticket",
	}
	for _, name := range []string{"alice", "bob", "carol", "dave"} {
		text := name + ": " + says[name]
		for _, c := range []*chatProc{alice, bob} {
			if c.name == name {
				c.enter(says[name])
			}
		}
		for _, p := range []webPage{phone, desk} {
			if p.name == name {
				p.typed(says[name])
			}
		}
		for _, c := range []*chatProc{alice, bob} {
			if c.name != name {
				c.want(soon, text)
			}
		}
		for _, p := range []webPage{phone, desk} {
			p.line(text)
		}
	}

	// A private line is never broadcast, even if it cannot be sent: alice's program is not
	// connected to the phone. A line that begins with two slashes says one.
	phone.typed("/msg alice a secret")
	browser.do(browserCommand{Do: "trouble", Page: phone.page, Text: "no connection to alice"}, nil)
	browser.do(browserCommand{Do: "clear", Page: phone.page}, nil)
	phone.typed("//etc/hosts is a file")
	for _, c := range []*chatProc{alice, bob} {
		if line := c.want(soon, "carol: "); !strings.Contains(line, "carol: /etc/hosts is a file") {
			t.Errorf("%s sees %q", c.name, line)
		}
	}

	// A terminal is killed, and returns.
	bob.kill()
	phone.line("bob left")
	desk.line("bob left")
	phone.here("alice", "dave")
	desk.here("alice", "carol")
	bob = startBob()
	phone.here("alice", "bob", "dave")
	desk.here("alice", "bob", "carol")
	bob.want(soon, "* carol joined")
	phone.typed("Welcome back")
	bob.want(soon, "carol: Welcome back")
	bob.enter("Thanks, I was only killed")
	desk.line("bob: Thanks, I was only killed")
	phone.line("bob: Thanks, I was only killed")

	// Pictures, and checks of the layout, the roles and the keyboard.
	desk.shot("web-desk.png")
	browser.do(browserCommand{Do: "people", Page: phone.page}, nil)
	phone.shot("web-phone.png")
	var order []string
	for _, c := range []struct {
		page webPage
		want []string
	}{
		{phone, []string{"Send", "invite", "Here: 4", "leave", "log", "line"}},
		{desk, []string{"Send", "invite", "Here: 4", "leave", "log", "line"}},
	} {
		browser.do(browserCommand{Do: "check", Page: c.page.page}, &order)
		if !slices.Equal(order, c.want) {
			t.Errorf("%s: tab goes through %q, want %q", c.page.page, order, c.want)
		}
	}
	phone.press("Invite")
	phone.shot("web-invite.png")
	phone.press("Close")

	// Markup in a line is shown as text.
	rest := "äöü 漢字 \U0001f44b " + strings.Repeat("wide", 200)
	alice.enter("<b>bold</b> <script>document.body.remove()</script> \u202e" + rest)
	phone.line("alice: <b>bold</b> <script>document.body.remove()</script> " + rest)
	browser.do(browserCommand{Do: "check", Page: phone.page}, nil)

	// A page that leaves says so.
	desk.press("Leave")
	alice.want(soon, "* dave left")
	phone.here("alice", "bob")

	// The server goes, and returns with a new identity.
	web.kill()
	phone.status("trying again")
	startWeb(t, path, at, "-seed", invited)
	phone.status("Connected")
	phone.here("alice", "bob")
	phone.typed("Is anybody here?")
	alice.want(soon, "carol: Is anybody here?")

	// A tab is closed.
	browser.do(browserCommand{Do: "open", Page: desk.page, URL: "http://" + at, Width: 1024, Height: 640}, nil)
	desk.typed(desk.name)
	phone.here("alice", "bob", "dave")
	began := time.Now()
	browser.do(browserCommand{Do: "close", Page: desk.page}, nil)
	phone.here("alice", "bob")
	t.Logf("a closed tab has left after %v", time.Since(began).Round(time.Millisecond))

	var faults []string
	browser.do(browserCommand{Do: "faults"}, &faults)
	for _, f := range faults {
		t.Errorf("in a page: %s", f)
	}
	if t.Failed() {
		var text string
		browser.do(browserCommand{Do: "text", Page: phone.page}, &text)
		t.Logf("the phone shows:\n%s", text)
	}
}

// A page joins over each transport that a browser has, with a ticket of only that transport.
func TestWebTransports(t *testing.T) {
	needsJS(t)
	browser := startChromium(t)
	at := hosttest.FreeAddress(t)
	startWeb(t, buildWeb(t), at)
	ticket, err := smokesignal.ParseTicket(joinInfo(t, at).Ticket)
	if err != nil {
		t.Fatal(err)
	}
	for _, over := range []int{ma.P_WS, ma.P_WEBTRANSPORT, ma.P_WEBRTC_DIRECT} {
		one := ticket
		one.Addrs = slices.DeleteFunc(slices.Clone(ticket.Addrs), func(a ma.Multiaddr) bool {
			_, err := a.ValueForProtocol(over)
			return err != nil
		})
		text, err := seed.Ticket(one).Encode()
		if err != nil {
			t.Fatal(err)
		}
		name := ma.ProtocolWithCode(over).Name
		page := webPage{browser, name, name}
		browser.do(browserCommand{Do: "open", Page: name, URL: "http://" + at + "/#" + text, Width: 360, Height: 740}, nil)
		page.typed(name)
		page.status("Connected")
		t.Logf("connected over %v", one.Addrs)
	}
	webPage{browser, "ws", "ws"}.here("webrtc-direct", "webtransport")
}
