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

// patience is how long chat waits for a connection after the end of piped input,
// before it gives up.
var patience = 10 * time.Second

const (
	// explainAfter is how long chat tries to connect before it tells the user what may
	// be wrong.
	explainAfter = 2500 * time.Millisecond
	// greetEvery is the shortest time between two greetings of this chat, so that one
	// greeting answers many people who ask at the same time.
	greetEvery = 400 * time.Millisecond
	// connectWait is how long the handler of a received event waits for the OnConnect callback
	// to finish. That callback may be called after the first events of a new neighbor have
	// arrived.
	connectWait = time.Second
)

// session is the running chat: its node, the people who are here, and the state of what
// the user has been told.
type session struct {
	node   *smokesignal.Node
	opts   options
	view   view
	name   string
	roster *roster
	tick   *time.Ticker

	introduced chan struct{} // closed when the user has been shown how others can join

	mu              sync.Mutex
	online          chan struct{}     // closed while this chat is connected, from the moment when its first greeting was sent
	greetedAt       time.Time         // when the last greeting was sent
	greetingDue     bool              // a greeting is to be sent as soon as greetEvery has passed since the last one
	rollCallDue     bool              // the greeting that is due is to ask all others for theirs (a roll call)
	connectingSince time.Time         // when the attempts to connect began; zero while connected, and once the user was told why they take so long
	troubles        map[string]string // by seed, the last message about the seed that the user was shown
}

func newSession(node *smokesignal.Node, o options, v view) *session {
	name := cleanName(o.name)
	if name == "" {
		name = shortID(node.ID())
	}
	return &session{
		node: node, opts: o, view: v, name: name, roster: newRoster(name),
		tick:            time.NewTicker(greetEvery / 2),
		introduced:      make(chan struct{}),
		online:          make(chan struct{}),
		connectingSince: time.Now(),
		troubles:        make(map[string]string),
	}
}

// afterIntroduction blocks until the user has been shown how others can join. Callbacks
// call it first, because the node may run them before Start returns.
func (s *session) afterIntroduction(ctx context.Context) {
	select {
	case <-s.introduced:
	case <-ctx.Done():
	}
}

// connected is the node's OnConnect callback: the node has its first neighbor.
func (s *session) connected(ctx context.Context) {
	s.afterIntroduction(ctx)
	s.mu.Lock()
	clear(s.troubles)
	s.connectingSince = time.Time{}
	s.greetedAt = time.Time{}
	online := s.online
	s.mu.Unlock()

	s.view.showStatus("connected. Happy chatting!")
	s.greet(ctx, true)
	close(online)
	s.showWho()
}

// disconnected is the node's OnDisconnect callback: the node has lost its last neighbor.
func (s *session) disconnected(context.Context) {
	s.mu.Lock()
	s.online = make(chan struct{})
	s.connectingSince = time.Now()
	s.mu.Unlock()

	s.view.showStatus("disconnected. Sorry.")
	s.roster.clear()
	s.showWho()
}

// peerAdded asks everybody for names when a neighbor that is not in the roster was added,
// unless it is the first neighbor. The new neighbor may have just joined, or may link this chat
// to a part of the network that was cut off, with people in it who are not in the roster.
func (s *session) peerAdded(ctx context.Context, p *smokesignal.Peer) {
	if _, known := s.roster.all()[p.ID()]; !known && s.node.Peers().Len() > 1 {
		s.greet(ctx, true)
	}
}

// peerRemoved asks everybody for a greeting (a roll call), to find out whether the lost
// neighbor is gone or still in the chat with other neighbors.
func (s *session) peerRemoved(ctx context.Context, p *smokesignal.Peer) {
	if _, known := s.roster.all()[p.ID()]; known {
		s.greet(ctx, true)
	}
}

// waitConnected waits at most connectWait for the connected callback to finish. Handlers of
// events call it, so that the user reads "connected" before "alice joined".
func (s *session) waitConnected(ctx context.Context) {
	s.mu.Lock()
	online := s.online
	s.mu.Unlock()
	select {
	case <-online:
	case <-ctx.Done():
	case <-time.After(connectWait):
	}
}

func (s *session) handleGreeting(ctx context.Context, from smokesignal.ID, g greeting) {
	s.waitConnected(ctx)
	now := time.Now() // the same time for both calls below: if the greeting asks everybody for theirs, its sender counts as having answered
	if name, news := s.roster.noteAlive(from, g.Name, now); news {
		s.view.showStatus("%s joined", name)
		s.showWho()
	}
	if g.Ask {
		s.roster.startRollCall(now)
		s.greet(ctx, false)
	}
}

func (s *session) handleBye(id smokesignal.ID) {
	if name, known := s.roster.remove(id); known {
		s.view.showStatus("%s left", name)
		s.showWho()
	}
}

// nameOf returns the name of the sender of a line that just arrived. If the sender is new,
// it also asks everybody for names.
func (s *session) nameOf(ctx context.Context, id smokesignal.ID) string {
	s.waitConnected(ctx)
	name, news := s.roster.noteAlive(id, "", time.Now())
	if news {
		s.greet(ctx, true)
		s.showWho()
	}
	return name
}

// greet broadcasts a greeting with this chat's name now, or as soon as greetEvery has passed
// since the last greeting. If ask is true, the greeting asks all others for theirs (a roll
// call).
func (s *session) greet(ctx context.Context, ask bool) {
	now := time.Now()
	s.mu.Lock()
	if now.Sub(s.greetedAt) < greetEvery {
		s.greetingDue, s.rollCallDue = true, s.rollCallDue || ask
		s.mu.Unlock()
		return
	}
	ask = ask || s.rollCallDue
	s.greetedAt, s.greetingDue, s.rollCallDue = now, false, false
	s.mu.Unlock()

	if ask {
		s.roster.startRollCall(now)
	}
	// The error is ignored: it means that everybody just left.
	_ = s.broadcastName(ctx, ask)
}

// runDue does what is due now: it removes the people who did not answer when everybody was
// asked for a greeting, sends a delayed greeting, and tells the user why connecting takes so
// long.
func (s *session) runDue(ctx context.Context) {
	now := time.Now()
	if gone := s.roster.removeSilent(now); len(gone) > 0 {
		for _, name := range gone {
			s.view.showStatus("%s left", name)
		}
		s.showWho()
	}
	s.mu.Lock()
	greet := s.greetingDue && now.Sub(s.greetedAt) >= greetEvery
	explain := !s.connectingSince.IsZero() && now.Sub(s.connectingSince) >= explainAfter
	if explain {
		s.connectingSince = time.Time{}
	}
	s.mu.Unlock()
	if greet {
		s.greet(ctx, false)
	}
	if explain {
		s.explainDelay()
	}
}

// lines yields the lines that the user wrote. It ends at /quit, at the end of the input, or
// when ctx ends.
func (s *session) lines(ctx context.Context) iter.Seq[string] {
	return func(yield func(string) bool) {
		defer s.tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-s.tick.C:
				s.runDue(ctx)
			case text, ok := <-s.view.lines():
				if !ok || s.view.typing() && strings.TrimSpace(text) == "/quit" || !yield(text) {
					return
				}
			}
		}
	}
}

// handleInput sends a text to everybody or, if it is a command, carries it out. In a
// terminal, errors are shown to the user; otherwise they are returned and end the chat.
func (s *session) handleInput(ctx context.Context, text string) error {
	err := s.waitOnline(ctx)
	say, command := text, false
	if s.view.typing() { // a line from a pipe is never a command
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
		s.view.showStatus("%v", err)
		return nil
	}
	return err
}

// send broadcasts each line of a text. It splits lines of more than maxText characters.
func (s *session) send(ctx context.Context, text string) error {
	if s.view.typing() && !s.node.Connected() {
		return errors.New("not sent: nobody is here yet (the up key brings the line back)")
	}
	for row := range strings.SplitSeq(text, "\n") {
		if strings.TrimSpace(row) == "" {
			continue
		}
		for _, piece := range pieces(row) {
			if err := s.broadcastLine(ctx, piece); err != nil {
				return fmt.Errorf("not sent: %q: %w", fit(piece, 40), err)
			}
			s.view.showSent(s.name, clean(piece, maxText))
		}
	}
	return nil
}

// waitOnline waits until a line from a pipe can be sent to somebody. It returns an error when
// ctx ends, or if nobody is connected before the time patience has passed since the end of the
// input. It does not wait for a line that a person typed.
func (s *session) waitOnline(ctx context.Context) error {
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
			s.runDue(ctx)
		case <-ended:
			ended, enough = nil, time.After(patience)
		case <-enough:
			return fmt.Errorf("%d lines not sent, since nobody connected within %v: %s",
				1+len(s.view.lines()), patience, s.whyNot())
		}
	}
}

// showWho shows the names of the people in the chat.
func (s *session) showWho() {
	names := s.roster.names()
	summary := "connecting"
	switch {
	case len(names) > 0:
		summary = fmt.Sprintf("%d here: %s (you), %s", 1+len(names), s.name, strings.Join(names, ", "))
	case s.node.Connected():
		// Somebody else is connected, so the text "1 here" would be wrong.
		summary = fmt.Sprintf("connected as %s, waiting for the others' names", s.name)
	}
	s.view.showMembers(summary, names)
}
