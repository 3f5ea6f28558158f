// Peer is the node in Go that js/test/package.js connects to. It prints its WebSocket
// address, and answers events and calls until its standard input ends.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"

	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal"
)

func main() {
	if err := run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) error {
	node, err := smokesignal.New(smokesignal.Listen("/ip4/127.0.0.1/tcp/0/ws"), smokesignal.Network("package"))
	if err != nil {
		return err
	}
	defer node.Close()

	// Events come back the way they came, calls are answered by calling the caller.
	node.Broadcast().On("ping", func(ctx context.Context, ev *smokesignal.Event) {
		node.Broadcast().Emit(ctx, "pong", text(ev))
	})
	node.Direct().On("ping", func(ctx context.Context, ev *smokesignal.Event) {
		node.Peer(ev.From).Emit(ctx, "pong", text(ev))
	})
	node.Direct().Handle("ask back", func(ctx context.Context, ev *smokesignal.Event) ([]any, error) {
		answer, err := node.Peer(ev.From).Call(ctx, "question", text(ev))
		if err != nil {
			return nil, err
		}
		return []any{text(answer)}, nil
	})

	if err := node.Start(ctx); err != nil {
		return err
	}
	for _, a := range node.Addrs() {
		if _, err := a.ValueForProtocol(ma.P_WS); err == nil {
			fmt.Println(a)
		}
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

func text(ev *smokesignal.Event) (s string) {
	if err := ev.Decode(&s); err != nil {
		log.Print(err)
	}
	return s
}
