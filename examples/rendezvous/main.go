// Rendezvous is a node that finds the others of its network without knowing any of
// them: they meet in a DHT, in which each advertises itself under the name of the
// network. Somebody has to know a way into the DHT; whoever is in it will do, also a
// node of another network.
//
//	go run . -network home                     prints the address at which it is in the DHT
//	go run . -network home -dht ADDRESS        in another terminal
//	go run . -network home -dht ADDRESS        and in a third one
//
// What is typed in one terminal is said in all. The example is a module of its own,
// since a DHT brings a hundred others along that no node needs.
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

// options is what the command line says.
type options struct {
	network, listen, way string
}

func parse(args []string, errors io.Writer) (o options, err error) {
	flags := flag.NewFlagSet("rendezvous", flag.ContinueOnError)
	flags.SetOutput(errors)
	flags.StringVar(&o.network, "network", "home", "the name of the network")
	flags.StringVar(&o.listen, "listen", "127.0.0.1:0", "the address to listen on")
	flags.StringVar(&o.way, "dht", "", "the address of anybody in the DHT, as another rendezvous prints it")
	return o, flags.Parse(args)
}
