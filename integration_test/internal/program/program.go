// Package program is the program of the processes that package cluster starts. It runs
// one node, reads commands from standard input and writes records to standard output.
// It ends when its input ends.
package program

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-smokesignal/smokesignal"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/checker"
	"github.com/go-smokesignal/smokesignal/integration_test/internal/cluster"
)

// closeAtMost is how long a process may take to close its node after its input has ended.
// After that the process exits anyway, so that it does not outlive a test that died.
const closeAtMost = 15 * time.Second

// Main runs a node with the given spec and returns the exit code of the process. err is
// the error of SpecFromEnv.
func Main(spec cluster.Spec, err error) int {
	if err == nil {
		err = run(spec)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// A node is the smokesignal node of this process, with the queues of the commands that make it
// emit events.
type node struct {
	*smokesignal.Node
	spec  cluster.Spec
	out   *output
	mu    sync.Mutex
	lanes map[string]chan cluster.Command // by channel and receiver, the queue of the commands that make the node emit there
}

func run(spec cluster.Spec) error {
	n := &node{spec: spec, out: newOutput(os.Stdout), lanes: map[string]chan cluster.Command{}}
	defer n.out.close()
	var err error
	if n.Node, err = smokesignal.New(Options(spec)...); err != nil {
		return err
	}
	defer n.Close()
	Observe(n.Node, spec.Name, n.out.add)
	observeEvents(n.Node, n.out.add)
	if err := n.Start(context.Background()); err != nil {
		return err
	}
	n.started()
	sub, err := n.Host().EventBus().Subscribe(new(event.EvtLocalAddressesUpdated))
	if err != nil {
		return err
	}
	defer sub.Close()
	go func() {
		for range sub.Out() {
			n.out.add(checker.Record{Kind: checker.AddrsChange, Addrs: texts(n.Addrs())})
		}
	}()
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		var cmd cluster.Command
		if err := json.Unmarshal(in.Bytes(), &cmd); err != nil {
			return err
		}
		switch cmd.Do {
		case cluster.Close:
			n.answer(cmd, n.Close(), checker.Record{})
			return nil
		case cluster.Emit, cluster.Direct:
			n.lane(cmd) <- cmd
		default:
			go n.execute(cmd)
		}
	}
	time.AfterFunc(closeAtMost, func() { os.Exit(3) })
	return in.Err()
}

// Options returns the options of the library for a Spec.
func Options(spec cluster.Spec) []smokesignal.Option {
	opts := []smokesignal.Option{smokesignal.Listen(spec.Listen...), smokesignal.Seeds(spec.Seeds...), smokesignal.Advertise(spec.Advertise...)}
	if spec.Limits != nil {
		opts = append(opts, smokesignal.PeerLimits(spec.Limits[0], spec.Limits[1]))
	}
	if spec.PingInterval > 0 {
		opts = append(opts, smokesignal.PingInterval(spec.PingInterval))
	}
	if spec.PingTimeout > 0 {
		opts = append(opts, smokesignal.PingTimeout(spec.PingTimeout))
	}
	if spec.Network != "" {
		opts = append(opts, smokesignal.Network(spec.Network))
	}
	if spec.Identity != "" {
		opts = append(opts, smokesignal.IdentityFile(spec.Identity))
	}
	if spec.KeepFor > 0 {
		opts = append(opts, smokesignal.KeepFor(spec.KeepFor))
	}
	if spec.HolePunching {
		opts = append(opts, smokesignal.HolePunching())
	}
	if len(spec.Relays) > 0 {
		opts = append(opts, smokesignal.Relays(spec.Relays...))
	}
	if spec.RelayService {
		opts = append(opts, smokesignal.RelayService())
	}
	if spec.PortMapping {
		opts = append(opts, smokesignal.PortMapping())
	}
	return opts
}

func (n *node) started() {
	r := checker.Record{Kind: checker.Started, Peer: n.ID().String(), Min: 3, Max: 5}
	session := n.Session()
	r.Session = hex.EncodeToString(session[:])
	if n.spec.Limits != nil {
		r.Min, r.Max = n.spec.Limits[0], n.spec.Limits[1]
	}
	r.Addrs = texts(n.Addrs())
	n.out.add(r)
}

func texts(addrs []ma.Multiaddr) (list []string) {
	for _, a := range addrs {
		list = append(list, a.String())
	}
	return list
}

func (n *node) answer(cmd cluster.Command, err error, r checker.Record) {
	r.Kind, r.Cmd, r.Err, r.Code = checker.Answer, cmd.No, errText(err), Code(err)
	n.out.add(r)
}

// execute carries out a command that does not emit. It may block.
func (n *node) execute(cmd cluster.Command) {
	ctx, cancel := context.WithTimeout(context.Background(), max(cmd.Within, 0))
	if cmd.Within == 0 {
		ctx, cancel = context.WithCancel(context.Background())
	}
	defer cancel()
	var r checker.Record
	var err error
	switch cmd.Do {
	case cluster.AddPeer:
		var p *smokesignal.Peer
		if p, err = n.Connect(ctx, cmd.To); err == nil {
			r.Peer = p.ID().String()
		}
	case cluster.ClosePeer:
		var id peer.ID
		if id, err = peer.Decode(cmd.To); err == nil {
			err = n.Peer(id).Disconnect()
		}
	case cluster.Peers:
		for p := range n.Peers().All() {
			r.Peers = append(r.Peers, p.ID().String())
		}
		n.out.add(checker.Record{Kind: checker.Snapshot, Peers: r.Peers})
	case cluster.Seeds:
		var text []byte
		text, err = json.Marshal(n.Seeds())
		r.Text = string(text)
	case cluster.Ready:
		err = n.Ready(ctx)
	case cluster.Flush:
		err = n.Flush(ctx)
	default:
		err = fmt.Errorf("unknown command %q", cmd.Do)
	}
	n.answer(cmd, err, r)
}

// lane returns the queue of emit commands for the channel and the receiver of cmd. A goroutine
// carries out the commands of the queue one after the other.
func (n *node) lane(cmd cluster.Command) chan<- cluster.Command {
	n.mu.Lock()
	defer n.mu.Unlock()
	key := string(cmd.Do) + cmd.To
	lane := n.lanes[key]
	if lane == nil {
		lane = make(chan cluster.Command, 1024)
		n.lanes[key] = lane
		go func() {
			for cmd := range lane {
				n.answer(cmd, n.emit(cmd), checker.Record{})
			}
		}()
	}
	return lane
}

// emit emits the events of one command and returns the first error. It continues after
// an error unless the node is closed.
func (n *node) emit(cmd cluster.Command) error {
	var to interface {
		Emit(context.Context, string, ...any) error
	} = n.Node.Broadcast()
	channel := checker.Broadcast
	if cmd.Do == cluster.Direct {
		id, err := peer.Decode(cmd.To)
		if err != nil {
			return err
		}
		to, channel = n.Peer(id), checker.Direct
	}
	var first error
	var tick <-chan time.Time
	if cmd.Every > 0 {
		t := time.NewTicker(cmd.Every)
		defer t.Stop()
		tick = t.C
	}
	for i := range uint64(cmd.Count) {
		if tick != nil {
			<-tick
		}
		r := checker.Record{Kind: checker.Sent, Peer: cmd.To, Channel: channel, Name: cmd.Name, Seq: cmd.Seq + i}
		if err := to.Emit(context.Background(), cmd.Name, n.spec.Name, r.Seq, padding(r.Seq, cmd.Size)); err != nil {
			r.Kind, r.Err, r.Code = checker.Failed, err.Error(), Code(err)
			if first == nil {
				first = err
			}
			if errors.Is(err, smokesignal.ErrClosed) {
				n.out.add(r)
				return first
			}
		}
		n.out.add(r)
	}
	return first
}
