package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

var help = [][]string{
	{"/peers", "who is here, and how they are reached"},
	{"/msg NAME TEXT", "a line to one person alone"},
	{"/netsplit", "what is known about the seeds"},
	{"//TEXT", "a line that begins with a slash"},
	{"/help", "this"},
	{"/quit", "leave; so do ctrl-c, and ctrl-d on an empty line"},
	{"up, down", "lines written before; tab completes a name"},
}

// parseLine reports whether a typed text is a command, and returns what to say if it is not.
// With two slashes at its beginning, a line says what follows the first one. A pasted text of
// several lines is never a command, and is said as it is.
func parseLine(text string) (say string, command bool) {
	switch {
	case strings.Contains(text, "\n"), !strings.HasPrefix(text, "/"):
		return text, false
	case strings.HasPrefix(text, "//"):
		return text[1:], false
	}
	return "", true
}

// command carries out what a person typed after a slash.
func (s *session) command(ctx context.Context, text string) error {
	word, rest, _ := strings.Cut(strings.TrimSpace(text), " ")
	switch word {
	case "/help":
		s.view.table(help)
	case "/peers":
		s.view.table(s.peers())
	case "/netsplit":
		s.view.table(s.seeds(time.Now()))
	case "/msg":
		name, line, _ := strings.Cut(strings.TrimSpace(rest), " ")
		return s.whisper(ctx, name, strings.TrimSpace(line))
	default:
		return fmt.Errorf("unknown command %s; to say it, begin the line with //; /help lists the commands", fit(word, 20))
	}
	return nil
}

// whisper sends a line to one peer alone.
func (s *session) whisper(ctx context.Context, name, line string) error {
	if name == "" || line == "" {
		return errors.New("say to whom and what: /msg NAME TEXT")
	}
	id, ok := s.who.find(strings.TrimSuffix(name, ":"))
	if !ok {
		return fmt.Errorf("not sent: nobody here is called %s; /peers lists who is", fit(name, maxName))
	}
	for _, piece := range pieces(line) {
		if err := s.sendLine(ctx, id, piece); err != nil {
			return fmt.Errorf("not sent to %s: %w", name, err)
		}
		s.view.sent("you → "+name, clean(piece, maxText))
	}
	return nil
}

// peers lists everybody who is here.
func (s *session) peers() [][]string {
	all := s.who.all()
	for p := range s.node.Peers().All() {
		if _, known := all[p.ID()]; !known {
			all[p.ID()] = shortID(p.ID())
		}
	}
	var rows [][]string
	for id, name := range all {
		how := "through others"
		if p := s.node.Peers().Get(id); p != nil {
			how = fmt.Sprintf("linked, at %v", p.AddrPort())
			if rtt := p.RTT(); rtt > 0 {
				how += fmt.Sprintf(", %v away", rtt.Round(10*time.Microsecond))
			}
		}
		rows = append(rows, []string{name, shortID(id), how})
	}
	slices.SortFunc(rows, func(a, b []string) int { return strings.Compare(a[0], b[0]) })
	return append([][]string{
		{"NAME", "ID", "HOW"},
		{s.name, shortID(s.node.ID()), "you"},
	}, rows...)
}

// seeds tells how the seeds are doing.
func (s *session) seeds(now time.Time) [][]string {
	rows := [][]string{{"SEED", "STATE"}}
	for _, seed := range s.node.Seeds() {
		heard := "not heard of yet"
		if !seed.LastHeard.IsZero() {
			heard = fmt.Sprintf("heard of %v ago", now.Sub(seed.LastHeard).Round(time.Second))
		}
		state := heard
		switch {
		case seed.Self:
			state = "that is this chat itself"
		case seed.Linked:
			state = "linked"
		case seed.Netsplit:
			state = "netsplit: " + heard
		case seed.Err != nil:
			state = fmt.Sprintf("%v; %s", seed.Err, heard)
		}
		if !seed.Linked && seed.Next.After(now) {
			state += fmt.Sprintf("; next try in %v", seed.Next.Sub(now).Round(time.Second))
		}
		rows = append(rows, []string{seedName(seed.Seed), state})
	}
	if len(rows) == 1 {
		return [][]string{{"no seeds were given, so nobody watches for a netsplit"}}
	}
	return rows
}
