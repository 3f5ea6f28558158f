package smokesignal_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"sync"
	"time"

	"github.com/go-smokesignal/smokesignal"
)

var (
	// A worker that is free says so to everybody.
	free = smokesignal.Name[struct{}]("free")
	// Any node may ask any worker to do a job.
	square = smokesignal.Call[int, int]("square")
)

// startNode starts a node of the job queue.
func startNode(ctx context.Context, seeds ...string) (*smokesignal.Node, error) {
	node, err := smokesignal.New(smokesignal.Listen("127.0.0.1:0"), smokesignal.Network("jobs"), smokesignal.Seeds(seeds...))
	if err != nil {
		return nil, err
	}
	if err := node.Start(ctx); err != nil {
		node.Close()
		return nil, err
	}
	return node, nil
}

// startWorker starts a node that does jobs.
func startWorker(ctx context.Context, seed string) (*smokesignal.Node, error) {
	node, err := startNode(ctx, seed)
	if err != nil {
		return nil, err
	}
	square.Handle(node.Direct(), func(_ context.Context, _ smokesignal.ID, n int) (int, error) {
		if n < 0 {
			return 0, errors.New("negative")
		}
		return n * n, nil
	})
	err = node.Ready(ctx)
	if err == nil {
		err = free.Emit(ctx, node.Broadcast(), struct{}{})
	}
	if err != nil {
		node.Close()
		return nil, err
	}
	return node, nil
}

// A queue gives jobs to workers.
type queue struct {
	node    *smokesignal.Node
	workers chan smokesignal.ID // the free ones
}

func newQueue(node *smokesignal.Node) *queue {
	q := &queue{node, make(chan smokesignal.ID, 100)}
	free.On(node.Broadcast(), func(_ context.Context, from smokesignal.ID, _ struct{}) { q.workers <- from })
	return q
}

// do has a worker do a job. A worker that cannot be reached is left out from then on, and
// the job is given to the next: a square may be computed twice, so that is right even if
// the outcome is unknown. An error of the job itself is the caller's.
func (q *queue) do(ctx context.Context, n int) (int, error) {
	for {
		var worker smokesignal.ID
		select {
		case worker = <-q.workers:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
		try, cancel := context.WithTimeout(ctx, 5*time.Second)
		result, err := square.Do(try, q.node.Peer(worker), n)
		cancel()
		switch {
		case err == nil || errors.Is(err, smokesignal.ErrRemoteHandler):
			q.workers <- worker
			return result, err
		case errors.Is(err, smokesignal.ErrNotConnected), errors.Is(err, smokesignal.ErrUnknownOutcome), errors.Is(err, context.DeadlineExceeded):
			// The next one, please.
		default:
			return 0, err
		}
	}
}

// A job queue: workers announce themselves, jobs are calls, and a job whose worker dies is
// done by another.
func Example_jobQueue() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	node, err := startNode(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer node.Close()
	q := newQueue(node)
	var workers []*smokesignal.Node
	for range 3 {
		w, err := startWorker(ctx, node.Addrs()[0].String())
		if err != nil {
			log.Fatal(err)
		}
		defer w.Close()
		workers = append(workers, w)
	}

	results := make([]int, 10)
	var jobs sync.WaitGroup
	for i := range results {
		jobs.Go(func() {
			var err error
			if results[i], err = q.do(ctx, i); err != nil {
				log.Fatal(err)
			}
		})
	}
	workers[0].Close()
	jobs.Wait()
	fmt.Println(results)

	_, err = q.do(ctx, -1)
	if failed, ok := errors.AsType[*smokesignal.RemoteError](err); ok {
		fmt.Println("the job failed:", failed.Text)
	}
	// Output:
	// [0 1 4 9 16 25 36 49 64 81]
	// the job failed: negative
}
