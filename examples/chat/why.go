package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"syscall"

	"github.com/go-smokesignal/smokesignal"
)

// whyNot returns what is wrong with a seed, given the error of an attempt to reach it, and
// what the user can do about it.
func whyNot(err error) string { return fmt.Sprintf("%v; %s", err, advice(err)) }

func advice(err error) string {
	if _, ok := errors.AsType[*smokesignal.WrongIDError](err); ok {
		return "ask again for the address or ticket, or leave out its /p2p/ part"
	}
	timeout, ok := errors.AsType[net.Error](err)
	switch {
	case errors.Is(err, smokesignal.ErrSelf):
		return "give the address of another chat"
	case errors.Is(err, smokesignal.ErrOtherNetwork):
		return "both need the same -network"
	case errors.Is(err, smokesignal.ErrUnresolvable):
		return "is the name spelled right?"
	case errors.Is(err, smokesignal.ErrNotSmokesignal):
		return "is it the right port?"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "is the other chat running, and on that port?"
	case ok && timeout.Timeout(), errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.EHOSTUNREACH):
		return "is that machine on, and does its firewall let the port through?"
	}
	return "still trying" // for example, when every member there has all the neighbors it may have
}

// reportSeedError shows the user what is wrong with a seed, unless the last message about
// this seed was the same.
func (s *session) reportSeedError(ctx context.Context, seed string, err error) {
	s.afterIntroduction(ctx)
	why := whyNot(err)
	s.mu.Lock()
	news := s.troubles[seed] != why
	s.troubles[seed] = why
	s.mu.Unlock()
	if news {
		s.view.showStatus("seed %s: %s", seedName(seed), why)
	}
}

// explainDelay tells the user why there is no connection yet. It leaves out the seeds about
// which reportSeedError has shown a message.
func (s *session) explainDelay() {
	if len(s.opts.seeds) == 0 {
		if !s.opts.isolated() {
			s.view.showStatus("nobody found on the local network yet, still looking; others can join with the command above")
		}
		return
	}
	for _, seed := range s.node.Seeds() {
		s.mu.Lock()
		_, told := s.troubles[seed.Seed]
		s.mu.Unlock()
		if !told {
			s.view.showStatus("seed %s: no answer yet; still trying. Is its machine on, and does a firewall let this port through?", seedName(seed.Seed))
		}
	}
}

// whyNot returns, for an error message, the reasons why there is no connection.
func (s *session) whyNot() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []string
	for seed, why := range s.troubles {
		all = append(all, "seed "+seedName(seed)+": "+why)
	}
	slices.Sort(all)
	switch {
	case len(all) > 0:
		return strings.Join(all, "; ")
	case len(s.opts.seeds) > 0:
		var names []string
		for _, seed := range s.opts.seeds {
			names = append(names, seedName(seed))
		}
		return "no answer from " + strings.Join(names, ", ")
	}
	return "nobody was found; give the address of another chat with -seed"
}
