package direct_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"

	"github.com/libp2p/go-libp2p"
	corehost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/go-smokesignal/smokesignal/internal/direct"
	"github.com/go-smokesignal/smokesignal/internal/event"
)

// connected returns two hosts with a connection.
func connected() (a, b corehost.Host) {
	var hosts [2]corehost.Host
	for i := range hosts {
		h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableRelay())
		if err != nil {
			log.Fatal(err)
		}
		hosts[i] = h
	}
	if err := hosts[0].Connect(context.Background(), peer.AddrInfo{ID: hosts[1].ID(), Addrs: hosts[1].Addrs()}); err != nil {
		log.Fatal(err)
	}
	return hosts[0], hosts[1]
}

// Two hosts, an event and its answer with two arguments.
func Example() {
	ctx := context.Background()
	hostA, hostB := connected()
	defer hostA.Close()
	defer hostB.Close()

	there := direct.New(hostB, direct.Config{})
	there.On("greet", func(ctx context.Context, ev *event.Event) {
		var who string
		if err := ev.Decode(&who); err != nil {
			return // another program's greeting
		}
		there.Emit(ctx, ev.From, "thanks", who, 42) // any number of arguments
	})
	there.Start()
	defer there.Close(ctx)

	done := make(chan struct{})
	here := direct.New(hostA, direct.Config{})
	here.On("thanks", func(ctx context.Context, ev *event.Event) {
		var who string
		var n int
		err := ev.Decode(&who, &n)
		fmt.Println(who, n, err)
		close(done)
	})
	here.Start()
	defer here.Close(ctx)

	if err := here.Emit(ctx, hostB.ID(), "greet", "Ada"); err != nil {
		log.Fatal(err)
	}
	<-done
	// Output: Ada 42 <nil>
}

// A call: asked here, answered there. Without the error the other handler has
// finished.
func ExampleDirect_Call() {
	ctx := context.Background()
	hostA, hostB := connected()
	defer hostA.Close()
	defer hostB.Close()
	here, there := direct.New(hostA, direct.Config{}), direct.New(hostB, direct.Config{})
	here.Start()
	defer here.Close(ctx)
	there.Start()
	defer there.Close(ctx)

	there.Handle("celsius", func(_ context.Context, ev *event.Event) ([]any, error) {
		var room string
		if err := ev.Decode(&room); err != nil {
			return nil, err
		}
		if room != "kitchen" {
			return nil, fmt.Errorf("no thermometer in the %s", room)
		}
		return []any{21.5}, nil
	})

	var degrees float64
	answer, err := here.Call(ctx, hostB.ID(), "celsius", "kitchen")
	if err == nil {
		err = answer.Decode(&degrees)
	}
	fmt.Println(degrees, err)
	_, err = here.Call(ctx, hostB.ID(), "celsius", "attic")
	var remote *direct.RemoteError
	fmt.Println(errors.As(err, &remote), remote.Text)
	_, err = here.Call(ctx, hostB.ID(), "fahrenheit")
	fmt.Println(errors.Is(err, direct.ErrNoHandler))
	// Output:
	// 21.5 <nil>
	// true no thermometer in the attic
	// true
}

// An event whose argument is a protobuf message. It goes as protobuf, whatever
// the codec of the node.
func Example_protobuf() {
	ctx := context.Background()
	hostA, hostB := connected()
	defer hostA.Close()
	defer hostB.Close()
	here, there := direct.New(hostA, direct.Config{}), direct.New(hostB, direct.Config{})

	done := make(chan struct{})
	there.On("greet", func(_ context.Context, ev *event.Event) {
		var who wrapperspb.StringValue
		err := ev.Decode(&who)
		fmt.Println(who.GetValue(), err)
		close(done)
	})
	here.Start()
	defer here.Close(ctx)
	there.Start()
	defer there.Close(ctx)

	if err := here.Emit(ctx, hostB.ID(), "greet", wrapperspb.String("Ada")); err != nil {
		log.Fatal(err)
	}
	<-done
	// Output: Ada <nil>
}

// A stream view: what is written here as bytes is read there, an event a time.
func ExampleDirect_Pipe() {
	ctx := context.Background()
	hostA, hostB := connected()
	defer hostA.Close()
	defer hostB.Close()
	here, there := direct.New(hostA, direct.Config{}), direct.New(hostB, direct.Config{})
	here.Start()
	defer here.Close(ctx)
	there.Start()
	defer there.Close(ctx)

	to, from := here.Pipe(hostB.ID()), there.Pipe(hostA.ID())
	defer to.Close()
	defer from.Close()
	fmt.Fprintln(to, "one line")
	fmt.Fprintln(to, "another")
	io.CopyN(os.Stdout, from, int64(len("one line\nanother\n")))
	// Output:
	// one line
	// another
}
