package netns

import (
	"errors"
	"fmt"
)

// Halves is a network of two switches with a cable between them. It is not safe for
// concurrent use.
type Halves struct {
	switches *Namespace
	machines []*Machine
	perSide  [2]int
}

// A Machine is a namespace that is connected to one of the switches.
type Machine struct {
	*Namespace
	Side int
	IP   string
}

// The names of interfaces, by side: the bridges, and the ends of the cable between them.
var (
	bridges = [2]string{"switch0", "switch1"}
	trunk   = [2]string{"trunk0", "trunk1"}
)

// NewHalves makes the two switches and the cable. The caller has to call Close.
func NewHalves() (*Halves, error) {
	n, err := New()
	if err != nil {
		return nil, err
	}
	h := &Halves{switches: n}
	commands := [][]string{{"ip", "link", "add", trunk[0], "type", "veth", "peer", "name", trunk[1]}}
	for side := range 2 {
		commands = append(commands,
			[]string{"ip", "link", "add", bridges[side], "type", "bridge"},
			[]string{"ip", "link", "set", trunk[side], "master", bridges[side]},
			[]string{"ip", "link", "set", trunk[side], "up"},
			[]string{"ip", "link", "set", bridges[side], "up"})
	}
	commands = append(commands, []string{"nft", "add", "table", "bridge", "halves"}) // fails now if nft is missing, and not at Cut
	for _, command := range commands {
		if err := n.Run(command...); err != nil {
			return nil, errors.Join(err, h.Close())
		}
	}
	return h, nil
}

// Machine adds a machine to the switch of one side, 0 or 1. Its address is 10.88.SIDE.NUMBER.
// The machines of each side are numbered from 1.
func (h *Halves) Machine(side int) (*Machine, error) {
	n, err := New()
	if err != nil {
		return nil, err
	}
	h.perSide[side]++
	m := &Machine{Namespace: n, Side: side, IP: fmt.Sprintf("10.88.%d.%d", side, h.perSide[side])}
	h.machines = append(h.machines, m)
	port := fmt.Sprintf("port%d.%d", side, h.perSide[side])
	if err := Plug(h.switches, port, "", n, "eth0", m.IP+"/16"); err != nil {
		return nil, err
	}
	return m, h.switches.Run("ip", "link", "set", port, "master", bridges[side])
}

// Cut drops all IP packets between the machines of the two sides. The machines get no error.
func (h *Halves) Cut() error {
	return h.switches.RunWithInput(`
table bridge halves {
	chain forward {
		type filter hook forward priority 0
		oifname "`+trunk[0]+`" ether type { ip, ip6 } drop
		oifname "`+trunk[1]+`" ether type { ip, ip6 } drop
	}
}
`, "nft", "-f", "-")
}

// Heal ends a Cut.
func (h *Halves) Heal() error {
	return h.switches.Run("nft", "delete", "chain", "bridge", "halves", "forward")
}

// Close releases all namespaces. The processes on the machines should have ended.
func (h *Halves) Close() error {
	errs := []error{h.switches.Close()}
	for _, m := range h.machines {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}
