package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/go-smokesignal/smokesignal"
)

var hello = smokesignal.Name[string]("hello") // sender and receiver use the same name and type

// run starts two nodes, Alice and Bob. Alice listens on the address at. Bob connects to this
// address and says hello to everybody.
func run(ctx context.Context, at string, out io.Writer) error {
	alice, err1 := smokesignal.New(smokesignal.Listen(at))
	bob, err2 := smokesignal.New(smokesignal.Listen("127.0.0.1:0"), smokesignal.Seeds(at))
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	defer alice.Close() // waits until her handler has returned
	defer bob.Close()   // waits until his neighbors have his events
	hello.On(alice.Broadcast(), func(_ context.Context, _ smokesignal.ID, text string) { fmt.Fprintln(out, text) })
	if err := errors.Join(alice.Start(ctx), bob.Start(ctx), bob.Ready(ctx)); err != nil {
		return err
	}
	return hello.Emit(ctx, bob.Broadcast(), "Hello, Alice!")
}
