// Topic takes part in a pubsub topic of any libp2p application, from the shell. It publishes
// each line of its input, byte for byte, and prints the messages that others publish: a
// netcat for pubsub.
//
//	go run ./examples/topic -dial 192.168.2.7:4001 chat-room
//	date | go run ./examples/topic -dial /ip4/192.168.2.7/tcp/4001 chat-room
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

const usage = `Usage: topic [flags] NAME

Takes part in the pubsub topic NAME, floodsub or gossipsub. Each line of standard input
is published as one message, without its newline. Each message that others publish is
printed as one line. Everything else goes to standard error.

Flags:
`

type options struct {
	topic        string
	dial, listen []string
	whole, who   bool
	wait         time.Duration
}

// parse reads the command line. It prints the help, if the user asks for it, to out.
func parse(args []string, out io.Writer) (o options, err error) {
	fs := flag.NewFlagSet("topic", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // main prints the error, once
	fs.Func("dial", "`address` of a peer on the topic, host:port or multiaddr; repeatable", add(&o.dial))
	fs.Func("listen", "`address` to listen on, host:port or multiaddr; repeatable (default a free port)", add(&o.listen))
	fs.BoolVar(&o.whole, "whole", false, "publish the whole input as one message, and print messages without adding a newline")
	fs.BoolVar(&o.who, "who", false, "print the ids of peers that join or leave the topic")
	fs.DurationVar(&o.wait, "wait", time.Second, "how long to stay after the end of the input; negative: until interrupted")
	switch err = fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fs.SetOutput(out)
		io.WriteString(out, usage)
		fs.PrintDefaults()
		return o, err
	case err != nil:
	case fs.NArg() != 1:
		err = fmt.Errorf("give one topic name after the flags, not %d", fs.NArg())
	}
	if err != nil {
		return o, fmt.Errorf("%w; topic -help lists the flags", err)
	}
	o.topic = fs.Arg(0)
	return o, nil
}

func add(list *[]string) func(string) error {
	return func(s string) error {
		*list = append(*list, s)
		return nil
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "topic:", err)
		os.Exit(1)
	}
}
