// Hello runs two nodes that exchange one event: see hello.go. With -demo it runs
// five nodes, kills one of them and shows how the others recover: see demo.go.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	five := flag.Bool("demo", false, "show how five nodes find each other, lose their seed, and recover")
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), "Usage: hello [-demo]\n\nTwo nodes in this process exchange one event.\n\n")
		flag.PrintDefaults()
	}
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var err error
	if *five {
		err = demo(ctx, os.Stdout)
	} else {
		err = run(ctx, "127.0.0.1:8495", os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "hello:", err)
		os.Exit(1)
	}
}
