// Chat talks to everybody in a smokesignal network: in a terminal with a small
// screen, otherwise in plain lines that can be piped.
//
//	go run ./examples/chat                        # find others on the local network
//	go run ./examples/chat -seed 192.168.2.100:8495
//	echo "dinner is ready" | go run ./examples/chat -seed 192.168.2.100:8495
//
// It begins with the command another person types to join it, and a ticket to paste.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"os/user"
	"slices"
	"strings"
	"syscall"

	"github.com/go-smokesignal/smokesignal"
)

const usage = `Usage: chat [flags]

Flags:
`

const usageEnd = `
In a terminal /help lists the commands. With a pipe at either end the lines are
plain: "name: text", and those about the chat itself begin with "* ". What comes
from a pipe is text, never a command; it is sent once somebody is connected, and
at its end chat leaves. If nobody is connected by then it waits ten seconds and
fails.
`

type options struct {
	listen, seeds           []string
	name, network, identity string
}

// parse reads the command line; help goes to out.
func parse(args []string, out io.Writer) (o options, err error) {
	fs := flag.NewFlagSet("chat", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // main prints the error, once
	fs.Func("listen", "`address` to listen on, host:port or multiaddr; repeatable (default a free port, reachable from everywhere)", add(&o.listen))
	fs.Func("seed", "`address` of somebody in the chat, host:port or multiaddr, or a ticket; repeatable (default whoever is on the local network)", add(&o.seeds))
	fs.StringVar(&o.name, "name", userName(), "`name` shown to the others")
	fs.StringVar(&o.network, "network", "", "`name` of the network; only chats with the same one see each other (default that of the ticket, or chat)")
	fs.StringVar(&o.identity, "identity", "", "`file` that keeps this chat's identity; made if missing (default a new identity every time)")
	err = fs.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		fs.SetOutput(out)
		io.WriteString(out, usage)
		fs.PrintDefaults()
		io.WriteString(out, usageEnd)
		return o, err
	}
	if err == nil && fs.NArg() > 0 {
		err = fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	if err != nil {
		return o, fmt.Errorf("%w; chat -help lists the flags", err)
	}
	return o, nil
}

func add(list *[]string) func(string) error {
	return func(s string) error {
		*list = append(*list, s)
		return nil
	}
}

// userName is what the user is called on this machine, without a domain.
func userName() string {
	u, err := user.Current()
	if err != nil {
		return ""
	}
	return u.Username[strings.LastIndexByte(u.Username, '\\')+1:]
}

// alone is whether nobody can be found: there is no seed, and the local network
// cannot reach this chat.
func (o options) alone() bool {
	if len(o.seeds) > 0 || len(o.listen) == 0 {
		return false
	}
	for _, a := range o.listen {
		if !loopback(a) {
			return false
		}
	}
	return true
}

// defaultNetwork is the network of the chats that are not told another one, in a terminal
// and in a browser.
const defaultNetwork = "chat"

func isTicket(seed string) bool {
	_, err := smokesignal.ParseTicket(seed)
	return err == nil
}

func (o options) node() []smokesignal.Option {
	opts := []smokesignal.Option{smokesignal.Listen(o.listen...), smokesignal.Seeds(o.seeds...)}
	switch {
	case o.network != "":
		opts = append(opts, smokesignal.Network(o.network))
	case !slices.ContainsFunc(o.seeds, isTicket): // a ticket names its network
		opts = append(opts, smokesignal.Network(defaultNetwork))
	}
	if o.identity != "" {
		opts = append(opts, smokesignal.IdentityFile(o.identity))
	}
	if len(o.seeds) == 0 && !o.alone() {
		opts = append(opts, smokesignal.LAN())
	}
	return opts
}

// run is the whole program: it returns when ctx or the input ends.
func run(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	o, err := parse(args, out)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	ctx, quit := context.WithCancel(ctx)
	defer quit()
	v, err := open(ctx, in, out, quit)
	if err != nil {
		return err
	}
	defer v.close()
	return chat(ctx, o, v)
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	if err := run(ctx, os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "chat:", err)
		os.Exit(1)
	}
}
