package main

import (
	"embed"
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"

	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal"
)

//go:embed page/index.html page/style.css page/icon.svg page/*.js page/LICENSES.txt
var files embed.FS

// site serves the page and forwards the page's WebSocket to the node. So a browser that can
// load the page can also join the chat through the same port, even behind a proxy with TLS.
type site struct {
	files   http.Handler
	proxy   http.Handler
	join    []byte
	command string
}

// newSite returns the site of node, which must have been started.
func newSite(node *smokesignal.Node) (*site, error) {
	var target string
	for _, a := range node.Addrs() {
		if at, ok := over(a, ma.P_TCP, ma.P_WS); ok {
			target = at
		}
	}
	if target == "" {
		return nil, errors.New("the node has no WebSocket address for the page")
	}
	page, err := fs.Sub(files, "page")
	if err != nil {
		return nil, err
	}
	words, err := command(node)
	if err != nil {
		return nil, err
	}
	ticket, err := node.Ticket()
	if err != nil {
		return nil, err
	}
	parsed, err := smokesignal.ParseTicket(ticket)
	if err != nil {
		return nil, err
	}
	join, err := json.Marshal(map[string]string{
		"id": node.ID().String(), "network": parsed.Network, "command": words, "ticket": ticket,
	})
	return &site{
		files: http.FileServerFS(page),
		proxy: &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: target})
		}},
		join: join, command: words,
	}, err
}

// policy is the page's Content-Security-Policy. The page may load files only from this server,
// but may connect to any node.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; " +
	"connect-src 'self' ws: wss: https:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"

func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		s.proxy.ServeHTTP(w, r)
		return
	}
	h := w.Header()
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		http.Error(w, "only GET", http.StatusMethodNotAllowed)
	case r.URL.Path == "/join.json":
		h.Set("Content-Type", "application/json")
		w.Write(s.join)
	default:
		s.files.ServeHTTP(w, r)
	}
}
