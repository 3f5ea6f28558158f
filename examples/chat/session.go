package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"sync"
	"time"

	"github.com/go-smokesignal/smokesignal"
)

const (
	// patience is how long what was piped in waits, after its end, for somebody
	// it can be sent to.
	patience = 10 * time.Second
	// explainAfter is how long a chat may try to connect without a word about
	// what takes so long.
	explainAfter = 2500 * time.Millisecond
	// greetEvery is the least time between two greetings, so that many who ask
	// at once get one answer.
	greetEvery = 400 * time.Millisecond
	// overtaken is how long something heard waits for the news of the connection
	// over which it came.
	overtaken = time.Second
)

// session is one chat: who takes part, and what the user is told about it.
type session struct {
	node *smokesignal.Node
	opts options
	view view
	name string
	who  *roster
	tick *time.Ticker

	introduced chan struct{} // closed when the user has been told how to join us

	mu        sync.Mutex
	online    chan struct{} // closed while connected and the others were told our name
	greetedAt time.Time
	owed      bool // a greeting, as soon as greetEvery is over
	owedAsk   bool
	waiting   time.Time         // since when it tries to connect; zero if that was explained
	troubles  map[string]string // by seed, what was last said about it
}

func newSession(node *smokesignal.Node, o options, v view) *session {
	name := cleanName(o.name)
	if name == "" {
		name = shortID(node.ID())
	}
	return &session{
		node: node, opts: o, view: v, name: name, who: newRoster(name),
		tick:       time.NewTicker(greetEvery / 2),
		introduced: make(chan struct{}),
		online:     make(chan struct{}),
		waiting:    time.Now(),
		troubles:   make(map[string]string),
	}
}

// afterIntroduction holds back the callbacks, which may come before Start returns.
func (s *session) afterIntroduction(ctx context.Context) {
	select {
	case <-s.introduced:
	case <-ctx.Done():
	}
}

// connected is called when the first peer has been added.
func (s *session) connected(ctx context.Context) {
	s.afterIntroduction(ctx)
	s.mu.Lock()
	clear(s.troubles)
	s.waiting = time.Time{}
	s.greetedAt = time.Time{}
	online := s.online
	s.mu.Unlock()

	s.view.status("connected. Happy chatting!")
	s.greet(ctx, true)
	close(online)
	s.showWho()
}

// disconnected is called when the last peer is gone.
func (s *session) disconnected(context.Context) {
	s.mu.Lock()
	s.online = make(chan struct{})
	s.waiting = time.Now()
	s.mu.Unlock()

	s.view.status("disconnected. Sorry.")
	s.who.clear()
	s.showWho()
}

// peerAdded asks for the names behind a new neighbour. It may be one newcomer,
// or the first link to a part of the network that was cut off.
func (s *session) peerAdded(ctx context.Context, p *smokesignal.Peer) {
	if _, known := s.who.all()[p.ID()]; !known && s.node.Peers().Len() > 1 {
		s.greet(ctx, true)
	}
}

// peerRemoved holds a roll call: the neighbour may have been killed, or only
// linked itself elsewhere.
func (s *session) peerRemoved(ctx context.Context, p *smokesignal.Peer) {
	if _, known := s.who.all()[p.ID()]; known {
		s.greet(ctx, true)
	}
}

// settled waits a moment for connected to be called, if something heard has
// overtaken it: first one is connected, then others are there.
func (s *session) settled(ctx context.Context) {
	s.mu.Lock()
	online := s.online
	s.mu.Unlock()
	select {
	case <-online:
	case <-ctx.Done():
	case <-time.After(overtaken):
	}
}

func (s *session) greeted(ctx context.Context, from smokesignal.ID, g greeting) {
	s.settled(ctx)
	now := time.Now() // once: who asks has been heard in that roll call
	if name, news := s.who.heard(from, g.Name, now); news {
		s.view.status("%s joined", name)
		s.showWho()
	}
	if g.Ask {
		s.who.call(now)
		s.greet(ctx, false)
	}
}

func (s *session) left(id smokesignal.ID) {
	if name, known := s.who.left(id); known {
		s.view.status("%s left", name)
		s.showWho()
	}
}

// nameOf returns the name of somebody who just spoke, and asks for it if it is
// not known.
func (s *session) nameOf(ctx context.Context, id smokesignal.ID) string {
	s.settled(ctx)
	name, news := s.who.heard(id, "", time.Now())
	if news {
		s.greet(ctx, true)
		s.showWho()
	}
	return name
}

// greet tells our name to everybody, now or when greetEvery is over.
func (s *session) greet(ctx context.Context, ask bool) {
	now := time.Now()
	s.mu.Lock()
	if now.Sub(s.greetedAt) < greetEvery {
		s.owed, s.owedAsk = true, s.owedAsk || ask
		s.mu.Unlock()
		return
	}
	ask = ask || s.owedAsk
	s.greetedAt, s.owed, s.owedAsk = now, false, false
	s.mu.Unlock()

	if ask {
		s.who.call(now)
	}
	// A greeting that fails, because everybody just left, is owed to nobody.
	_ = s.broadcastName(ctx, ask)
}

// housekeep does what is due: it strikes those who missed a roll call, greets,
// and explains why it takes so long to connect.
func (s *session) housekeep(ctx context.Context) {
	now := time.Now()
	if gone := s.who.settle(now); len(gone) > 0 {
		for _, name := range gone {
			s.view.status("%s left", name)
		}
		s.showWho()
	}
	s.mu.Lock()
	greet := s.owed && now.Sub(s.greetedAt) >= greetEvery
	explain := !s.waiting.IsZero() && now.Sub(s.waiting) >= explainAfter
	if explain {
		s.waiting = time.Time{}
	}
	s.mu.Unlock()
	if greet {
		s.greet(ctx, false)
	}
	if explain {
		s.explain()
	}
}

// lines yields what the user wrote until that or ctx ends, or /quit.
func (s *session) lines(ctx context.Context) iter.Seq[string] {
	return func(yield func(string) bool) {
		defer s.tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-s.tick.C:
				s.housekeep(ctx)
			case text, ok := <-s.view.lines():
				if !ok || s.view.typing() && strings.TrimSpace(text) == "/quit" || !yield(text) {
					return
				}
			}
		}
	}
}

// obey sends a text to everybody, or carries out the command it is. An error
// ends the chat; a person is told and may go on.
func (s *session) obey(ctx context.Context, text string) error {
	err := s.await(ctx)
	say, command := text, false
	if s.view.typing() { // a line from a pipe is always said as it is
		say, command = parseLine(text)
	}
	switch {
	case err != nil:
	case command:
		err = s.command(ctx, text)
	default:
		err = s.send(ctx, say)
	}
	switch {
	case ctx.Err() != nil:
		return nil
	case err != nil && s.view.typing():
		s.view.status("%v", err)
		return nil
	}
	return err
}

// send broadcasts a text line by line, in pieces if a line is long.
func (s *session) send(ctx context.Context, text string) error {
	if s.view.typing() && !s.node.Connected() {
		return errors.New("not sent: nobody is here (the up key brings the line back)")
	}
	for row := range strings.SplitSeq(text, "\n") {
		if strings.TrimSpace(row) == "" {
			continue
		}
		for _, piece := range pieces(row) {
			if err := s.broadcastLine(ctx, piece); err != nil {
				return fmt.Errorf("not sent: %q: %w", fit(piece, 40), err)
			}
			s.view.sent(s.name, clean(piece, maxText))
		}
	}
	return nil
}

// await waits until what was piped in can be sent. It gives up patience after
// the end of the input, or when ctx ends.
func (s *session) await(ctx context.Context) error {
	if s.view.typing() {
		return nil
	}
	ended := s.view.ended()
	var enough <-chan time.Time
	for {
		s.mu.Lock()
		online := s.online
		s.mu.Unlock()
		select {
		case <-online:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-s.tick.C:
			s.housekeep(ctx)
		case <-ended:
			ended, enough = nil, time.After(patience)
		case <-enough:
			return fmt.Errorf("lines not sent: %d; nobody connected within %v: %s",
				1+len(s.view.lines()), patience, s.whyNot())
		}
	}
}

func (s *session) showWho() {
	names := s.who.names()
	summary := "connecting"
	if s.node.Connected() {
		summary = fmt.Sprintf("%d here: %s (you)", 1+len(names), s.name)
		if len(names) > 0 {
			summary += ", " + strings.Join(names, ", ")
		}
	}
	s.view.here(summary, names)
}
