package smokesignal_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"strings"
	"time"

	"github.com/go-smokesignal/smokesignal"
)

// Two nodes and one typed event.
func Example() {
	ctx := context.Background()
	greeting := smokesignal.Name[string]("greeting")
	arrived := make(chan string)

	a, _ := smokesignal.New(smokesignal.Listen("127.0.0.1:0"))
	greeting.On(a.Broadcast(), func(_ context.Context, from smokesignal.ID, text string) { arrived <- text })
	a.Start(ctx)
	defer a.Close()

	b, _ := smokesignal.New(smokesignal.Listen("127.0.0.1:0"), smokesignal.Seeds(a.Addrs()[0].String()))
	b.OnConnect(func(ctx context.Context) { greeting.Emit(ctx, b.Broadcast(), "hello") })
	b.Start(ctx)
	defer b.Close()

	fmt.Println(<-arrived)
	// Output: hello
}

// A ticket is one string to hand on: whoever has it knows where the node is, who it
// is, and which network it is in.
func ExampleNode_Ticket() {
	ctx := context.Background()

	a, _ := smokesignal.New(smokesignal.Listen("127.0.0.1:0"), smokesignal.Network("kitchen"))
	a.Start(ctx)
	defer a.Close()
	ticket, err := a.Ticket() // smoke1biqgvoh45uyf7u4dtbieq763qsqqu2qvec4fiulynqxfysfdaoepe3a2...
	if err != nil {
		log.Fatal(err)
	}

	b, err := smokesignal.New(smokesignal.Listen("127.0.0.1:0"), smokesignal.Seeds(ticket)) // joins the kitchen
	if err != nil {
		log.Fatal(err)
	}
	b.Start(ctx)
	defer b.Close()

	fmt.Println(b.Ready(ctx))
	_, err = smokesignal.New(smokesignal.Seeds(ticket), smokesignal.Network("garden"))
	fmt.Println(strings.Contains(err.Error(), `is for the network "kitchen", Network is "garden"`))
	// Output:
	// <nil>
	// true
}

// A node that sends its arguments as CBOR. Each argument says how it was encoded, so the
// other node needs no option.
func ExampleCBOR() {
	ctx := context.Background()
	type reading struct {
		Sensor string
		Raw    []byte // bytes in CBOR, base64 in JSON
	}
	readings := smokesignal.Name[reading]("reading")
	arrived := make(chan reading)

	a, _ := smokesignal.New(smokesignal.Listen("127.0.0.1:0"))
	readings.On(a.Broadcast(), func(_ context.Context, _ smokesignal.ID, r reading) { arrived <- r })
	a.Start(ctx)
	defer a.Close()

	b, _ := smokesignal.New(smokesignal.CBOR(), smokesignal.Listen("127.0.0.1:0"), smokesignal.Seeds(a.Addrs()[0].String()))
	b.OnConnect(func(ctx context.Context) {
		readings.Emit(ctx, b.Broadcast(), reading{"kitchen", []byte{21, 5}})
	})
	b.Start(ctx)
	defer b.Close()

	fmt.Println(<-arrived)
	// Output: {kitchen [21 5]}
}

// A call is answered by one other node, with types for the question and the answer.
func ExampleCall() {
	ctx := context.Background()
	divide := smokesignal.Call[[2]int, int]("divide")

	a, _ := smokesignal.New(smokesignal.Listen("127.0.0.1:0"))
	divide.Handle(a.Direct(), func(_ context.Context, from smokesignal.ID, n [2]int) (int, error) {
		if n[1] == 0 {
			return 0, errors.New("division by zero")
		}
		return n[0] / n[1], nil
	})
	a.Start(ctx)
	defer a.Close()

	b, _ := smokesignal.New(smokesignal.Listen("127.0.0.1:0"), smokesignal.Seeds(a.Addrs()[0].String()))
	b.Start(ctx)
	defer b.Close()
	b.Ready(ctx)

	fmt.Println(divide.Do(ctx, b.Peer(a.ID()), [2]int{42, 6}))
	_, err := divide.Do(ctx, b.Peer(a.ID()), [2]int{42, 0})
	if remote, ok := errors.AsType[*smokesignal.RemoteError](err); ok {
		fmt.Println(remote.Text)
	}
	// Output:
	// 7 <nil>
	// division by zero
}

// The life of a node, in the order of the original's synopsis.
func Example_synopsis() {
	addr, err := smokesignal.LocalIP("127.0.0.1/255.0.0.0") // returns the IP address in your subnet
	if err != nil {
		log.Fatal(err)
	}
	node, err := smokesignal.New(
		smokesignal.Listen(addr.String()+":0"),  // or ":8495"
		smokesignal.Seeds("192.0.2.100:13"),     // the address of a seed, a known node
		smokesignal.PeerLimits(3, 5),            // how many peers at least and at most
		smokesignal.PingInterval(5*time.Second), // how closely seeds are watched
	)
	if err != nil {
		log.Fatal(err)
	}

	// listen on network events...

	chat := smokesignal.Name[string]("chat")

	node.OnConnect(func(ctx context.Context) {
		// Hey, now have at least one peer!

		// ...and broadcast stuff
		chat.Emit(ctx, node.Broadcast(), "HEYO! I'm here")
	})

	node.OnDisconnect(func(ctx context.Context) {
		// Bah, all peers gone.
	})

	chat.On(node.Broadcast(), func(ctx context.Context, from smokesignal.ID, msg string) {
		// oho, a chat message!
	})

	// Start the darn thing
	if err := node.Start(context.Background()); err != nil {
		log.Fatal(err)
	}

	// mah, i'd rather stop it
	if err := node.Close(); err != nil {
		log.Fatal(err)
	}
	fmt.Println("connected:", node.Connected())
	// Output: connected: false
}
