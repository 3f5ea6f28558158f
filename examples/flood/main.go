// Flood measures broadcasts: one node sends many events, and the others count them.
// It fails if an event is lost, arrives twice or arrives out of order.
//
//	go run ./examples/flood -n 5 -m 10000 -s 64     # five nodes in this process
//
//	go run ./examples/flood -listen 127.0.0.1:8495  # or receivers, each a process
//	go run ./examples/flood -seed 127.0.0.1:8495    # ...
//	go run ./examples/flood -seed 127.0.0.1:8495 -send -n 3
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"github.com/go-smokesignal/smokesignal"
)

const usage = `Usage: flood [flags]

Without -listen, -seed and -send, all nodes are in this process, on the loopback
interface. With one of these flags, this process is one node. With -send it sends
events to the others and prints their counts; without, it counts the events that
others send, until it is interrupted.

Flags:
`

const defaultNetwork = "flood"

type options struct {
	nodes        int
	count        uint64
	size         int
	send         bool
	listen, seed []string
	network      string
}

// parse reads the command line. It prints the help, if the user asks for it, to out.
func parse(args []string, out io.Writer) (o options, err error) {
	fs := flag.NewFlagSet("flood", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // main prints the error, once
	fs.IntVar(&o.nodes, "n", 5, "`number` of nodes, the sender included; with -send, the sender waits for that many")
	fs.Uint64Var(&o.count, "m", 10000, "`number` of events")
	fs.IntVar(&o.size, "s", 64, "`bytes` of an event")
	fs.BoolVar(&o.send, "send", false, "send events to nodes in other processes (-n is then 2 by default)")
	fs.Func("listen", "`address` to listen on, host:port or multiaddr; repeatable (default a free port)", add(&o.listen))
	fs.Func("seed", "`address` of another flood, host:port or multiaddr; repeatable", add(&o.seed))
	fs.StringVar(&o.network, "network", defaultNetwork, "`name` of the network")
	err = fs.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		fs.SetOutput(out)
		io.WriteString(out, usage)
		fs.PrintDefaults()
		return o, err
	}
	if o.send && !isSet(fs, "n") {
		o.nodes = 2
	}
	switch {
	case err != nil:
	case fs.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", fs.Arg(0))
	case o.nodes < 2:
		err = fmt.Errorf("-n %d: must be at least 2, a sender and a receiver", o.nodes)
	case o.count < 1 || o.count > maxEvents:
		err = fmt.Errorf("-m %d: must be between 1 and %d", o.count, maxEvents)
	case o.size < minSize || o.size > maxSize:
		err = fmt.Errorf("-s %d: must be between %d, the size of an event's number, and %d", o.size, minSize, maxSize)
	}
	if err != nil {
		err = fmt.Errorf("%w; flood -help lists the flags", err)
	}
	return o, err
}

// maxSize is the largest size of an event in bytes. With its name, the event must fit into
// the default MaxEventSize.
const maxSize = smokesignal.DefaultMaxEventSize - 1024

func add(list *[]string) func(string) error {
	return func(s string) error {
		*list = append(*list, s)
		return nil
	}
}

func isSet(fs *flag.FlagSet, name string) (found bool) {
	fs.Visit(func(f *flag.Flag) { found = found || f.Name == name })
	return found
}

// run is the whole program. It draws its progress on bar, which may be nil.
func run(ctx context.Context, args []string, out, bar io.Writer) error {
	o, err := parse(args, out)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return nil
	case err != nil:
		return err
	case o.send:
		return runSender(ctx, o, out, bar)
	case len(o.listen) > 0 || len(o.seed) > 0:
		return runReceiver(ctx, o, out, bar)
	}
	return runAll(ctx, o, out, bar)
}

func (o options) node() (*smokesignal.Node, error) {
	return smokesignal.New(smokesignal.Listen(o.listen...), smokesignal.Seeds(o.seed...), smokesignal.Network(o.network))
}

// runAll runs o.nodes nodes in this process, which join through the first one; the last one
// is the sender.
func runAll(ctx context.Context, o options, out, bar io.Writer) error {
	o.listen = []string{"127.0.0.1:0"}
	names := make(map[smokesignal.ID]string)
	var nodes []*smokesignal.Node
	defer func() {
		var closing sync.WaitGroup
		for _, n := range nodes {
			closing.Go(func() { n.Close() })
		}
		closing.Wait()
	}()
	var s *sender
	receivers := make([]*receiver, o.nodes-1)
	for i := range o.nodes {
		node, err := o.node()
		if err != nil {
			return err
		}
		nodes = append(nodes, node)
		names[node.ID()] = fmt.Sprintf("node %d", i+1)
		if i < o.nodes-1 {
			receivers[i] = newReceiver(node, func(smokesignal.ID, announce, report) {})
		} else {
			s = newSender(node, o.count, o.size)
		}
		if err := node.Start(ctx); err != nil {
			return err
		}
		if i == 0 {
			o.seed = []string{node.Addrs()[0].String()}
			names[node.ID()] = "node 1, the seed"
		}
	}
	stop := showProgress(bar, "slowest receiver", func() (n, of uint64) {
		n = o.count
		for _, r := range receivers {
			got, _ := r.progress()
			n = min(n, got)
		}
		return n, o.count
	})
	result, err := s.flood(ctx, len(receivers))
	stop()
	if err != nil {
		return err
	}
	return result.print(out, func(id smokesignal.ID) string { return names[id] })
}

// runSender sends events to receivers in other processes.
func runSender(ctx context.Context, o options, out, bar io.Writer) error {
	node, err := o.node()
	if err != nil {
		return err
	}
	defer node.Close()
	s := newSender(node, o.count, o.size)
	if err := node.Start(ctx); err != nil {
		return err
	}
	fmt.Fprintf(out, "to take part: %s\n", invitation(node, o.network))
	stop := showProgress(bar, "sent", s.progress)
	result, err := s.flood(ctx, o.nodes-1)
	stop()
	if err != nil {
		return err
	}
	return result.print(out, shortID)
}

// runReceiver counts events until ctx ends. It fails if an event was lost, arrived twice or
// arrived out of order.
func runReceiver(ctx context.Context, o options, out, bar io.Writer) error {
	node, err := o.node()
	if err != nil {
		return err
	}
	defer node.Close()
	var mu sync.Mutex
	runs := make(map[runID]func(*faults)) // for each run (one measurement), a function that adds the faults of its last report
	say := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(out, clearLine(bar)+format+"\n", args...)
	}
	r := newReceiver(node, func(from smokesignal.ID, a announce, r report) {
		say("from %s: %s", shortID(from), r.summary(a))
		mu.Lock()
		defer mu.Unlock()
		runs[a.Run] = func(f *faults) { f.add(a, r) }
	})
	defer node.OnDisconnect(func(context.Context) { say("disconnected") })()
	node.OnConnect(func(context.Context) { say("connected") })
	node.OnSeedError(func(_ context.Context, e *smokesignal.SeedError) { say("%v", e) })
	if err := node.Start(ctx); err != nil {
		return err
	}
	say("to take part: %s", invitation(node, o.network))
	stop := showProgress(bar, "received", r.progress)
	<-ctx.Done()
	stop()

	mu.Lock()
	defer mu.Unlock()
	var f faults
	for _, add := range runs {
		add(&f)
	}
	return f.err()
}

// invitation returns the shell command with which another process takes part.
func invitation(node *smokesignal.Node, network string) string {
	command := "go run ./examples/flood"
	if addrs := node.Addrs(); len(addrs) > 0 {
		command += " -seed " + addrs[0].String()
	}
	if network != defaultNetwork {
		command += " -network " + quoted(network)
	}
	return command
}

// quoted puts w in quotes, so that a shell reads it as one word.
func quoted(w string) string { return "'" + strings.ReplaceAll(w, "'", `'\''`) + "'" }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	if err := run(ctx, os.Args[1:], os.Stdout, terminal(os.Stderr)); err != nil {
		fmt.Fprintln(os.Stderr, "flood:", err)
		os.Exit(1)
	}
}
