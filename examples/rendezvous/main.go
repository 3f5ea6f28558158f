// Rendezvous runs a node that finds the other members of its network without knowing any of
// them. The members meet in a DHT, in which each advertises itself under the name of the
// network. To join the DHT, a node needs the address of any node in it, which may belong to
// another network.
//
//	go run . -network home                     prints its address in the DHT
//	go run . -network home -dht ADDRESS        in another terminal
//	go run . -network home -dht ADDRESS        and in a third one
//
// A line that is typed in one terminal appears in all. The example is a Go module of its own,
// because a DHT needs about a hundred modules that a node does not need.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "rendezvous:", err)
		os.Exit(1)
	}
}

// options holds the flags of the command line.
type options struct {
	network, listen, bootstrap string
}

func parse(args []string, errors io.Writer) (o options, err error) {
	flags := flag.NewFlagSet("rendezvous", flag.ContinueOnError)
	flags.SetOutput(errors)
	flags.StringVar(&o.network, "network", "home", "the name of the network")
	flags.StringVar(&o.listen, "listen", "127.0.0.1:0", "the address to listen on")
	flags.StringVar(&o.bootstrap, "dht", "", "the address of any node in the DHT, as another rendezvous prints it")
	return o, flags.Parse(args)
}
