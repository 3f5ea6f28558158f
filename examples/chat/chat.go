package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/go-smokesignal/smokesignal"
)

// The events of the chat. All who take part agree on their names and types.
var (
	chatted = smokesignal.Name[string]("chat")    // a line to everybody
	told    = smokesignal.Name[string]("tell")    // a line to one
	hello   = smokesignal.Name[greeting]("hello") // who I am, and maybe: who else is here?
	bye     = smokesignal.Name[string]("bye")     // I am leaving
)

// chat connects v with everybody else until its lines or ctx end.
func chat(ctx context.Context, o options, v view) error {
	node, err := smokesignal.New(o.node()...)
	if err != nil {
		return err
	}
	defer node.Close()
	s := newSession(node, o, v)

	chatted.On(node.Broadcast(), func(ctx context.Context, from smokesignal.ID, text string) {
		v.said(s.nameOf(ctx, from), clean(text, maxText))
	})
	told.On(node.Direct(), func(ctx context.Context, from smokesignal.ID, text string) {
		v.said(s.nameOf(ctx, from)+" → you", clean(text, maxText))
	})
	hello.On(node.Broadcast(), s.greeted)
	bye.On(node.Broadcast(), func(_ context.Context, from smokesignal.ID, _ string) { s.left(from) })

	node.OnConnect(s.connected)
	node.OnPeerAdded(s.peerAdded)
	node.OnPeerRemoved(s.peerRemoved)
	node.OnSeedError(func(ctx context.Context, e *smokesignal.SeedError) { s.trouble(ctx, e.Seed, e.Err) })
	defer node.OnDisconnect(s.disconnected)() // to the one who leaves that is no news

	if err := node.Start(ctx); err != nil {
		return err
	}
	s.introduce()
	for text := range s.lines(ctx) {
		if err = s.obey(ctx, text); err != nil {
			break
		}
	}
	v.close()
	if node.Connected() {
		err = errors.Join(err, s.leave())
	}
	return err
}

// sendTimeout bounds a line to one peer, who may have to be dialled, and how long
// the others may take to confirm what they got before we leave.
const sendTimeout = 5 * time.Second

func (s *session) broadcastName(ctx context.Context, ask bool) error {
	return hello.Emit(ctx, s.node.Broadcast(), greeting{Name: s.name, Ask: ask})
}

func (s *session) broadcastLine(ctx context.Context, text string) error {
	return chatted.Emit(ctx, s.node.Broadcast(), text)
}

func (s *session) sendLine(ctx context.Context, to smokesignal.ID, text string) error {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	return told.Emit(ctx, s.node.Peer(to), text)
}

// leave says goodbye and waits for the neighbours to confirm all that was sent.
// The ctx of the chat may have ended by now.
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
