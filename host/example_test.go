package host_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"strings"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-smokesignal/smokesignal/host"
)

func Example() {
	listener, err := host.New(host.Config{Listen: []string{"127.0.0.1:0"}})
	if err != nil {
		log.Fatal(err)
	}
	defer listener.Close()
	listener.Host().SetStreamHandler("/hello/1.0.0", func(s network.Stream) { // before anybody can call
		io.WriteString(s, "hello")
		s.Close()
	})
	if err := listener.Listen(); err != nil {
		log.Fatal(err)
	}

	dialer, err := host.New(host.Config{}) // needs no Listen to dial
	if err != nil {
		log.Fatal(err)
	}
	defer dialer.Close()
	info, err := peer.AddrInfoFromString(listener.Dialable()[0].String())
	if err != nil {
		log.Fatal(err)
	}
	ctx := context.Background()
	if err := dialer.Host().Connect(ctx, *info); err != nil {
		log.Fatal(err)
	}
	s, err := dialer.Host().NewStream(ctx, info.ID, "/hello/1.0.0")
	if err != nil {
		log.Fatal(err)
	}
	text, err := io.ReadAll(s)
	fmt.Println(string(text), err)
	// Output: hello <nil>
}

func ExampleOpenIdentity() {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "identity")

	first, err := host.OpenIdentity(path) // made with a new key
	if err != nil {
		log.Fatal(err)
	}
	_, err = host.OpenIdentity(path)
	fmt.Println(strings.TrimPrefix(err.Error(), "host: identity "+path))
	first.Close()

	again, err := host.OpenIdentity(path)
	if err != nil {
		log.Fatal(err)
	}
	defer again.Close()
	fmt.Println(again.Key.Equals(first.Key))
	// Output:
	// : in use by another node
	// true
}

func ExampleLocalIP() {
	ip, err := host.LocalIP("127.0.0.1/255.0.0.0")
	fmt.Println(ip, err)
	// Output: 127.0.0.1 <nil>
}
