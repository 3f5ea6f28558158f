package events_test

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

	"github.com/go-smokesignal/smokesignal/events"
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

// Two hosts, an event with a type and its answer with two arguments.
func Example() {
	ctx := context.Background()
	hostA, hostB := connected()
	defer hostA.Close()
	defer hostB.Close()

	greet := events.Name[string]("greet") // both ends agree on name and type

	there := events.NewDirect(hostB, events.DirectConfig{})
	greet.On(there, func(ctx context.Context, from peer.ID, who string) {
		there.Emit(ctx, from, "thanks", who, 42) // any number of arguments
	})
	there.Start()
	defer there.Close(ctx)

	done := make(chan struct{})
	here := events.NewDirect(hostA, events.DirectConfig{})
	here.On("thanks", func(ctx context.Context, ev *events.Event) {
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
func ExampleCall() {
	ctx := context.Background()
	hostA, hostB := connected()
	defer hostA.Close()
	defer hostB.Close()
	here, there := events.NewDirect(hostA, events.DirectConfig{}), events.NewDirect(hostB, events.DirectConfig{})
	here.Start()
	defer here.Close(ctx)
	there.Start()
	defer there.Close(ctx)

	celsius := events.Call[string, float64]("celsius")
	celsius.Handle(there, func(_ context.Context, _ peer.ID, room string) (float64, error) {
		if room != "kitchen" {
			return 0, fmt.Errorf("no thermometer in the %s", room)
		}
		return 21.5, nil
	})

	fmt.Println(celsius.Do(ctx, here.To(hostB.ID()), "kitchen"))
	_, err := celsius.Do(ctx, here.To(hostB.ID()), "attic")
	var remote *events.RemoteError
	fmt.Println(errors.As(err, &remote), remote.Text)
	_, err = here.Call(ctx, hostB.ID(), "fahrenheit")
	fmt.Println(errors.Is(err, events.ErrNoHandler))
	// Output:
	// 21.5 <nil>
	// true no thermometer in the attic
	// true
}

type reading struct {
	Sensor  string
	Celsius float64
}

// A subscription as a loop. What is not a reading comes as an error in its
// place, and the loop goes on.
func ExampleName_All() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	hostA, hostB := connected()
	defer hostA.Close()
	defer hostB.Close()
	here, there := events.NewDirect(hostA, events.DirectConfig{}), events.NewDirect(hostB, events.DirectConfig{})
	here.Start()
	defer here.Close(ctx)
	there.Start()
	defer there.Close(ctx)

	temperature := events.Name[reading]("temperature")
	readings := temperature.All(ctx, here) // subscribed from now on
	go func() {
		there.Emit(ctx, hostA.ID(), "temperature", reading{"kitchen", 21.5})
		there.Emit(ctx, hostA.ID(), "temperature", "warm")
		there.Emit(ctx, hostA.ID(), "temperature", reading{"attic", 30})
	}()
	for msg, err := range readings {
		if err != nil {
			fmt.Println("not a reading")
			continue
		}
		fmt.Println(msg.Value.Sensor, msg.Value.Celsius)
		if msg.Value.Sensor == "attic" {
			break
		}
	}
	// Output:
	// kitchen 21.5
	// not a reading
	// attic 30
}

// An event whose argument is a protobuf message. It goes as protobuf, whatever
// the codec of the node.
func ExampleName_protobuf() {
	ctx := context.Background()
	hostA, hostB := connected()
	defer hostA.Close()
	defer hostB.Close()
	here, there := events.NewDirect(hostA, events.DirectConfig{}), events.NewDirect(hostB, events.DirectConfig{})

	greet := events.Name[*wrapperspb.StringValue]("greet")
	done := make(chan struct{})
	greet.On(there, func(_ context.Context, _ peer.ID, who *wrapperspb.StringValue) {
		fmt.Println(who.GetValue())
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
	// Output: Ada
}

// A stream view: what is written here as bytes is read there, an event a time.
func ExampleDirect_Stream() {
	ctx := context.Background()
	hostA, hostB := connected()
	defer hostA.Close()
	defer hostB.Close()
	here, there := events.NewDirect(hostA, events.DirectConfig{}), events.NewDirect(hostB, events.DirectConfig{})
	here.Start()
	defer here.Close(ctx)
	there.Start()
	defer there.Close(ctx)

	to, from := here.Stream(hostB.ID()), there.Stream(hostA.ID())
	defer to.Close()
	defer from.Close()
	fmt.Fprintln(to, "one line")
	fmt.Fprintln(to, "another")
	io.CopyN(os.Stdout, from, int64(len("one line\nanother\n")))
	// Output:
	// one line
	// another
}
