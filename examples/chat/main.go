// Chat lets people talk in a smokesignal network. In a terminal it shows a small screen;
// otherwise it reads and writes plain lines, so it can be used in a pipe.
//
//	go run ./examples/chat                        # find others on the local network
//	go run ./examples/chat -seed 192.168.2.100:8495
//	echo "dinner is ready" | go run ./examples/chat -seed 192.168.2.100:8495
//
// At its start it shows the command with which another person can join.
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
In a terminal, /help lists the commands. If the input or the output is a pipe,
chat shows plain lines: "name: text" for what people write, and "* text" for
messages of the program itself. Text from a pipe is never a command. It is sent
as soon as somebody is connected, and chat leaves when the input ends. If nobody
is connected then, chat waits ten seconds and fails.
`

type options struct {
	listen, seeds           []string
	name, network, identity string
}

// parse reads the command line. It prints the help, if the user asks for it, to out.
func parse(args []string, out io.Writer) (o options, err error) {
	fs := flag.NewFlagSet("chat", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // main prints the error, once
	fs.Func("listen", "`address` to listen on, host:port or multiaddr; repeatable (default a free port, reachable from everywhere)", add(&o.listen))
	fs.Func("seed", "`address` of somebody in the chat, host:port or multiaddr, or a ticket; repeatable (default chats on the local network)", add(&o.seeds))
	fs.StringVar(&o.name, "name", userName(), "`name` shown to the others")
	fs.StringVar(&o.network, "network", "", "`name` of the network; only chats in the same network see each other (default the network of the ticket, or chat)")
	fs.StringVar(&o.identity, "identity", "", "`file` that keeps this chat's identity; created if missing (default a new identity every time)")
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

// userName returns the name of the user on this machine, without a Windows domain.
func userName() string {
	u, err := user.Current()
	if err != nil {
		return ""
	}
	return u.Username[strings.LastIndexByte(u.Username, '\\')+1:]
}

// isolated reports whether this chat has no means to find others: no seed was given, and it
// listens only on loopback addresses, which the local network cannot reach.
func (o options) isolated() bool {
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

// defaultNetwork is the network name of a chat without -network, in this program and in
// examples/web.
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
	if len(o.seeds) == 0 && !o.isolated() {
		opts = append(opts, smokesignal.LAN())
	}
	return opts
}

// run is the whole program. It returns when ctx or the input ends.
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
	v, err := newView(ctx, in, out, quit)
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
