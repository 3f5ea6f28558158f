// Web serves a chat page. The page is a peer of its own and takes part in the same chat as the
// terminals of examples/chat. It joins through the node of this program. This node only relays
// messages, as every node does, and writes nothing in the chat itself.
//
//	go run ./examples/web                            # http://127.0.0.1:8080, with everybody on the local network
//	go run ./examples/web -http 192.168.2.100:8080   # for phones on that network
//	go run ./examples/web -seed 192.168.2.7:8495     # in the chat of that program
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/go-smokesignal/smokesignal"
)

type options struct {
	http              string
	listen, seeds     []string
	network, identity string
}

// parse reads the command line. It prints the help, if the user asks for it, to out.
func parse(args []string, out io.Writer) (o options, err error) {
	fs := flag.NewFlagSet("web", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // main prints the error, once
	fs.StringVar(&o.http, "http", "127.0.0.1:8080", "host:port or :port at which the page is served; browsers need no other port")
	fs.Func("listen", "`address` to listen on for other nodes, host:port or multiaddr; repeatable (default a free port, reachable from everywhere)", add(&o.listen))
	fs.Func("seed", "`address` of somebody in the chat, host:port or multiaddr, or a ticket; repeatable (default chats on the local network)", add(&o.seeds))
	fs.StringVar(&o.network, "network", "", "`name` of the network; only chats in the same network see each other (default the network of the ticket, or chat)")
	fs.StringVar(&o.identity, "identity", "", "`file` that keeps the node's identity; created if missing (default a new identity every time)")
	err = fs.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		fs.SetOutput(out)
		io.WriteString(out, "Usage: web [flags]\n\nFlags:\n")
		fs.PrintDefaults()
		return o, err
	}
	if err == nil && fs.NArg() > 0 {
		err = fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	if err != nil {
		return o, fmt.Errorf("%w; web -help lists the flags", err)
	}
	return o, nil
}

func add(list *[]string) func(string) error {
	return func(s string) error {
		*list = append(*list, s)
		return nil
	}
}

// defaultNetwork is the network name of a chat without -network, in this program and in
// examples/chat.
const defaultNetwork = "chat"

func isTicket(seed string) bool {
	_, err := smokesignal.ParseTicket(seed)
	return err == nil
}

func (o options) node() []smokesignal.Option {
	opts := []smokesignal.Option{
		smokesignal.Listen(listens(o.listen)...), smokesignal.Seeds(o.seeds...),
	}
	switch {
	case o.network != "":
		opts = append(opts, smokesignal.Network(o.network))
	case !slices.ContainsFunc(o.seeds, isTicket): // a ticket names its network
		opts = append(opts, smokesignal.Network(defaultNetwork))
	}
	if o.identity != "" {
		opts = append(opts, smokesignal.IdentityFile(o.identity))
	}
	if len(o.seeds) == 0 && !allLoopback(o.listen) {
		opts = append(opts, smokesignal.LAN())
	}
	return opts
}

// run is the whole program. It returns when ctx ends.
func run(ctx context.Context, args []string, out io.Writer) error {
	o, err := parse(args, out)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	at, err := net.Listen("tcp", o.http)
	if err != nil {
		return fmt.Errorf("-http: %w; give another address", err)
	}
	defer at.Close()

	node, err := smokesignal.New(o.node()...)
	if err != nil {
		return err
	}
	defer node.Close()
	node.OnConnect(func(context.Context) { fmt.Fprintln(out, "* connected to other nodes") })
	node.OnDisconnect(func(context.Context) { fmt.Fprintln(out, "* no other node is connected") })
	node.OnSeedError(func(_ context.Context, e *smokesignal.SeedError) { fmt.Fprintf(out, "* %v\n", e) })
	if err := node.Start(ctx); err != nil {
		return err
	}
	s, err := newSite(node)
	if err != nil {
		return err
	}

	for _, url := range urls(at.Addr().(*net.TCPAddr)) {
		fmt.Fprintln(out, "* the page:", url)
	}
	if allLoopback([]string{o.http}) {
		fmt.Fprintf(out, "* only this machine can open it; for a phone, start it with -http %s\n", phoneAddress(at.Addr().(*net.TCPAddr).Port))
	}
	fmt.Fprintln(out, "* in a terminal:", s.command)

	server := &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second}
	defer context.AfterFunc(ctx, func() { server.Close() })()
	if err := server.Serve(at); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("-http: %w", err)
	}
	return nil
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "web:", strings.TrimSpace(err.Error()))
		os.Exit(1)
	}
}
