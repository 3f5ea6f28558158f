package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"log"
	"os"

	"github.com/go-smokesignal/smokesignal"
)

func main() {
	listen := flag.String("listen", ":0", "`address` to listen on, host:port or multiaddr; 127.0.0.1:0 can be reached from this machine only")
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), "Usage: map [-listen ADDRESS] [SEED...]\n\nSEED is an address or ticket of another map; without one it looks on the local network.\n\n")
		flag.PrintDefaults()
	}
	flag.Parse()
	opts := []smokesignal.Option{smokesignal.Listen(*listen), smokesignal.LAN(), smokesignal.Seeds(flag.Args()...)}
	log.Fatal(run(context.Background(), bufio.NewScanner(os.Stdin), log.New(os.Stdout, "", 0), opts...))
}
