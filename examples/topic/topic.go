package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/go-smokesignal/smokesignal"
)

// patience is how long a message waits until there is a peer to publish it to.
const patience = 10 * time.Second

// run is the whole program.
func run(ctx context.Context, args []string, in io.Reader, out, errs io.Writer) (err error) {
	o, err := parse(args, out)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return nil
	case err != nil:
		return err
	}
	// The node is in no network of its own: it takes no peers.
	node, err := smokesignal.New(smokesignal.Listen(o.listen...), smokesignal.PeerLimits(0, 0))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, node.Close()) }()
	topic, err := node.Topic(o.topic)
	if err != nil {
		return err
	}
	say := &lines{out: errs}
	printAll(topic, o, out)
	if o.who {
		topic.OnJoin(func(_ context.Context, p smokesignal.ID) { say.line("* %s joins", p) })
		topic.OnLeave(func(_ context.Context, p smokesignal.ID) { say.line("* %s leaves", p) })
	}
	if err := node.Start(ctx); err != nil {
		return err
	}
	if len(o.dial) == 0 {
		for _, addr := range node.Addrs() {
			say.line("* listening at %s", addr)
		}
	}
	if err := dial(ctx, node, o.dial, say); err != nil {
		return err
	}

	published := make(chan error, 1)
	go func() { published <- publishAll(ctx, topic, o, in) }() // a read cannot be interrupted
	select {
	case err := <-published:
		if err != nil {
			return err
		}
	case <-ctx.Done():
		return nil
	}
	if o.wait < 0 {
		<-ctx.Done()
		return nil
	}
	select {
	case <-time.After(o.wait): // for answers, and for what is still on its way
	case <-ctx.Done():
	}
	return nil
}

// printAll prints what others publish.
func printAll(topic *smokesignal.Topic, o options, out io.Writer) {
	var mu sync.Mutex // handlers run at once for several authors
	topic.On(func(_ context.Context, _ smokesignal.ID, data []byte) {
		mu.Lock()
		defer mu.Unlock()
		if !o.whole {
			data = append(data, '\n')
		}
		out.Write(data)
	})
}

// dial connects to all addresses at once. One that answers is enough.
func dial(ctx context.Context, node *smokesignal.Node, addrs []string, say *lines) error {
	var tasks sync.WaitGroup
	errs := make([]error, len(addrs))
	for i, addr := range addrs {
		tasks.Go(func() {
			var id smokesignal.ID
			if id, errs[i] = node.Dial(ctx, addr); errs[i] == nil {
				say.line("* connected to %s at %s", id, addr)
			}
		})
	}
	tasks.Wait()
	for _, err := range errs {
		if err == nil {
			return nil
		}
	}
	return errors.Join(errs...)
}

// publishAll publishes the input, line by line or as a whole.
func publishAll(ctx context.Context, topic *smokesignal.Topic, o options, in io.Reader) error {
	most := topic.MaxSize()
	if o.whole {
		data, err := io.ReadAll(io.LimitReader(in, int64(most)+1))
		if err != nil {
			return err
		}
		return publish(ctx, topic, data)
	}
	input := bufio.NewScanner(in)
	input.Buffer(nil, most+1)
	input.Split(cutLine)
	for input.Scan() {
		if err := publish(ctx, topic, input.Bytes()); err != nil {
			return err
		}
	}
	if errors.Is(input.Err(), bufio.ErrTooLong) {
		return fmt.Errorf("a line is longer than the %d bytes that fit into a message", most)
	}
	return input.Err()
}

// cutLine is bufio.ScanLines which leaves a carriage return where it is.
func cutLine(data []byte, atEOF bool) (advance int, line []byte, err error) {
	if i := bytes.IndexByte(data, '\n'); i >= 0 {
		return i + 1, data[:i], nil
	}
	if atEOF && len(data) > 0 {
		return len(data), data, nil
	}
	return 0, nil, nil
}

// publish waits until somebody is there, as a message to nobody is lost.
func publish(ctx context.Context, topic *smokesignal.Topic, data []byte) error {
	ready, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := topic.Ready(ready); err != nil {
		return err
	}
	return topic.Publish(ctx, data)
}

// lines writes lines from several goroutines.
type lines struct {
	mu  sync.Mutex
	out io.Writer
}

func (l *lines) line(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(l.out, format+"\n", args...)
}
