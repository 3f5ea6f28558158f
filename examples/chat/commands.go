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
	{"/peers", "list the people here and how this chat reaches each of them"},
	{"/msg NAME TEXT", "send a line to one person only"},
	{"/netsplit", "show for each seed whether this chat can still reach it"},
	{"//TEXT", "send a line that begins with a slash"},
	{"/help", "list the commands"},
	{"/quit", "leave; so do ctrl-c, and ctrl-d on an empty line"},
	{"up, down", "bring back earlier lines; tab completes a name"},
}

// parseLine reports whether a typed text is a command. If it is not, say is the text to send to
// everybody: the typed text, without its first slash if it begins with two. A pasted text of
// several lines is never a command and is sent unchanged.
func parseLine(text string) (say string, command bool) {
	switch {
	case strings.Contains(text, "\n"), !strings.HasPrefix(text, "/"):
		return text, false
	case strings.HasPrefix(text, "//"):
		return text[1:], false
	}
	return "", true
}

// command carries out a command, such as /peers, that the user typed.
func (s *session) command(ctx context.Context, text string) error {
	word, rest, _ := strings.Cut(strings.TrimSpace(text), " ")
	switch word {
	case "/help":
		s.view.showTable(help)
	case "/peers":
		s.view.showTable(s.peers())
	case "/netsplit":
		s.view.showTable(s.seeds(time.Now()))
	case "/msg":
		name, line, _ := strings.Cut(strings.TrimSpace(rest), " ")
		return s.sendPrivate(ctx, name, strings.TrimSpace(line))
	default:
		return fmt.Errorf("unknown command %s; to send it as text, begin the line with //; /help lists the commands", fit(word, 20))
	}
	return nil
}

// sendPrivate sends a line to one person only, the one whose name is shown as name.
func (s *session) sendPrivate(ctx context.Context, name, line string) error {
	if name == "" || line == "" {
		return errors.New("give a name and a text: /msg NAME TEXT")
	}
	id, ok := s.roster.find(strings.TrimSuffix(name, ":"))
	if !ok {
		return fmt.Errorf("not sent: nobody here is called %s; /peers lists who is", fit(name, maxName))
	}
	for _, piece := range pieces(line) {
		if err := s.sendLine(ctx, id, piece); err != nil {
			return fmt.Errorf("not sent to %s: %w", name, err)
		}
		s.view.showSent("you → "+name, clean(piece, maxText))
	}
	return nil
}

// peers returns a table of everybody in the chat, for the command /peers.
func (s *session) peers() [][]string {
	all := s.roster.all()
	for p := range s.node.Peers().All() {
		if _, known := all[p.ID()]; !known {
			all[p.ID()] = shortID(p.ID())
		}
	}
	var rows [][]string
	for id, name := range all {
		how := "through other chats"
		if p := s.node.Peers().Get(id); p != nil {
			how = fmt.Sprintf("directly, at %v", p.AddrPort())
			if rtt := p.RTT(); rtt > 0 {
				how += fmt.Sprintf(", round trip %v", rtt.Round(10*time.Microsecond))
			}
		}
		rows = append(rows, []string{name, shortID(id), how})
	}
	slices.SortFunc(rows, func(a, b []string) int { return strings.Compare(a[0], b[0]) })
	return append([][]string{
		{"NAME", "ID", "REACHED"},
		{s.name, shortID(s.node.ID()), "you"},
	}, rows...)
}

// seeds returns a table with the state of each seed, for the command /netsplit.
func (s *session) seeds(now time.Time) [][]string {
	rows := [][]string{{"SEED", "STATE"}}
	for _, seed := range s.node.Seeds() {
		heard := "nothing received from it yet"
		if !seed.LastHeard.IsZero() {
			heard = fmt.Sprintf("last heard %v ago", now.Sub(seed.LastHeard).Round(time.Second))
		}
		state := heard
		switch {
		case seed.Self:
			state = "this chat itself"
		case seed.Linked:
			state = "connected directly"
		case seed.Netsplit:
			state = "netsplit: no longer reachable from here, " + heard
		case seed.Err != nil:
			state = fmt.Sprintf("%v; %s", seed.Err, heard)
		}
		if !seed.Linked && seed.Next.After(now) {
			state += fmt.Sprintf("; next try in %v", seed.Next.Sub(now).Round(time.Second))
		}
		rows = append(rows, []string{seedName(seed.Seed), state})
	}
	if len(rows) == 1 {
		return [][]string{{"This chat was started without -seed, so it cannot notice that the network was split in two."}}
	}
	return rows
}
