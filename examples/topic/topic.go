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

// patience is how long a message waits for a peer on the topic.
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
	// The example uses only the pubsub topic, so its node joins no smokesignal network:
	// with these limits it accepts no neighbors.
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
	go func() { published <- publishAll(ctx, topic, o, in) }() // in a goroutine, since a read of in cannot be interrupted
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
	case <-time.After(o.wait): // time for answers, and for the last messages to be sent
	case <-ctx.Done():
	}
	return nil
}

// printAll prints the messages that others publish.
func printAll(topic *smokesignal.Topic, o options, out io.Writer) {
	var mu sync.Mutex // handlers for messages of different authors run at the same time
	topic.On(func(_ context.Context, _ smokesignal.ID, data []byte) {
		mu.Lock()
		defer mu.Unlock()
		if !o.whole {
			data = append(data, '\n')
		}
		out.Write(data)
	})
}

// dial dials all addresses at the same time. It succeeds if one of them answers.
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

// publishAll publishes each line of the input as one message, or with -whole the whole input
// as one message.
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

// cutLine splits input into lines like bufio.ScanLines, but keeps a carriage return at the
// end of a line, because lines are published byte for byte.
func cutLine(data []byte, atEOF bool) (advance int, line []byte, err error) {
	if i := bytes.IndexByte(data, '\n'); i >= 0 {
		return i + 1, data[:i], nil
	}
	if atEOF && len(data) > 0 {
		return len(data), data, nil
	}
	return 0, nil, nil
}

// publish waits for a peer on the topic and then publishes data. Without a peer the message
// would be lost.
func publish(ctx context.Context, topic *smokesignal.Topic, data []byte) error {
	ready, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := topic.Ready(ready); err != nil {
		return err
	}
	return topic.Publish(ctx, data)
}

// lines writes lines to out. Several goroutines may use it.
type lines struct {
	mu  sync.Mutex
	out io.Writer
}

func (l *lines) line(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(l.out, format+"\n", args...)
}
