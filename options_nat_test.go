package smokesignal_test

import (
	"strings"
	"testing"

	"github.com/go-smokesignal/smokesignal"
)

// TestBadNATOptions: an error in the options for NATs is a sentence at New
// that names the option.
func TestBadNATOptions(t *testing.T) {
	const id = "/p2p/12D3KooWGzxzKZYveHXtpG6AsrUJBcWxHBFS2HsEoGTxrMLvKXtf"
	const behind = "/ip4/192.0.2.1/udp/8495/quic-v1/p2p/12D3KooWJ4ct7gS3fLiVcQ7pgTTYG1kCHUEfLdmHXeWSBpwJHVJz/p2p-circuit" + id
	for _, c := range []struct {
		want string
		opts []smokesignal.Option
	}{
		{`Relays "192.0.2.1:8495": want a multiaddr with the relay's id`, []smokesignal.Option{smokesignal.Relays("192.0.2.1:8495")}},
		{`Relays "/ip4/192.0.2.1/tcp/8495": want a multiaddr with the relay's id`, []smokesignal.Option{smokesignal.Relays("/ip4/192.0.2.1/tcp/8495")}},
		{`Relays "` + behind + `": it is an address behind a relay`, []smokesignal.Option{smokesignal.Relays(behind)}},
		{`Seeds: seed "` + behind + `": it is behind a relay, which needs HolePunching or Relays`, []smokesignal.Option{smokesignal.Seeds(behind)}},
		{`Seeds: seed "` + behind + `": it is behind a relay`, []smokesignal.Option{smokesignal.Seeds(behind), smokesignal.PortMapping()}},
		{"", []smokesignal.Option{smokesignal.Seeds(behind), smokesignal.HolePunching()}},
		{"", []smokesignal.Option{smokesignal.Seeds(behind), smokesignal.RelayService()}},
		{"", []smokesignal.Option{smokesignal.Relays("/dns4/relay.example.org/udp/8495/quic-v1" + id)}},
		{"", []smokesignal.Option{smokesignal.Relays()}},
	} {
		node, err := smokesignal.New(c.opts...)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("refused: %v", err)
		case c.want == "":
			node.Close() // it was not started, so nothing was dialed
		case err == nil || !strings.Contains(err.Error(), c.want):
			t.Errorf("%v, want %q", err, c.want)
		}
	}
}
