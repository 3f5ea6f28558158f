package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/go-smokesignal/smokesignal"
)

// The events of the chat. Every chat program uses the same names and types for them.
var (
	publicLine  = smokesignal.Name[string]("chat")    // a line to everybody
	privateLine = smokesignal.Name[string]("tell")    // a line to one person
	hello       = smokesignal.Name[greeting]("hello") // the sender's name, possibly with a request that all others send theirs
	bye         = smokesignal.Name[string]("bye")     // the sender is leaving
)

// chat runs the program: it joins the network, sends the lines that the user writes in v,
// and shows in v the lines of the other members. It returns when the user's input or ctx ends.
func chat(ctx context.Context, o options, v view) error {
	node, err := smokesignal.New(o.node()...)
	if err != nil {
		return err
	}
	defer node.Close()
	s := newSession(node, o, v)

	publicLine.On(node.Broadcast(), func(ctx context.Context, from smokesignal.ID, text string) {
		v.showReceived(s.nameOf(ctx, from), clean(text, maxText))
	})
	privateLine.On(node.Direct(), func(ctx context.Context, from smokesignal.ID, text string) {
		v.showReceived(s.nameOf(ctx, from)+" → you", clean(text, maxText))
	})
	hello.On(node.Broadcast(), s.handleGreeting)
	bye.On(node.Broadcast(), func(_ context.Context, from smokesignal.ID, _ string) { s.handleBye(from) })

	node.OnConnect(s.connected)
	node.OnPeerAdded(s.peerAdded)
	node.OnPeerRemoved(s.peerRemoved)
	node.OnSeedError(func(ctx context.Context, e *smokesignal.SeedError) { s.reportSeedError(ctx, e.Seed, e.Err) })
	defer node.OnDisconnect(s.disconnected)() // unregistered before Close, so that a user who quits does not read "disconnected"

	if err := node.Start(ctx); err != nil {
		return err
	}
	s.introduce()
	for text := range s.lines(ctx) {
		if err = s.handleInput(ctx, text); err != nil {
			break
		}
	}
	v.close()
	if node.Connected() {
		err = errors.Join(err, s.leave())
	}
	return err
}

// sendTimeout limits how long sending one private line may take, which may include dialing
// the peer, and how long a leaving chat waits for its neighbors to confirm its last lines.
const sendTimeout = 5 * time.Second

func (s *session) broadcastName(ctx context.Context, ask bool) error {
	return hello.Emit(ctx, s.node.Broadcast(), greeting{Name: s.name, Ask: ask})
}

func (s *session) broadcastLine(ctx context.Context, text string) error {
	return publicLine.Emit(ctx, s.node.Broadcast(), text)
}

func (s *session) sendLine(ctx context.Context, to smokesignal.ID, text string) error {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	return privateLine.Emit(ctx, s.node.Peer(to), text)
}

// leave broadcasts a goodbye and waits until the neighbors have confirmed everything that
// this chat sent. It uses a context of its own, because the chat's ctx may have ended already.
func (s *session) leave() error {
	ctx, cancel := context.WithTimeout(context.Background(), sendTimeout)
	defer cancel()
	err := bye.Emit(ctx, s.node.Broadcast(), s.name)
	if err == nil {
		err = s.node.Flush(ctx)
	}
	if err != nil && !s.view.typing() {
		return fmt.Errorf("the last lines may not have reached everybody: %w", err)
	}
	return nil
}
