// Counts measures the size and the readability of the module. It counts exported
// identifiers, repeated type names, vague method names, fields of Node, and phrases
// that the style of this project avoids.
//
//	go run ./internal/counts              print the counts of the module in this folder
//	go run ./internal/counts -v           also print the place of each one
//	go run ./internal/counts -check FILE  fail if a count is above its limit in FILE
//
// A limit is a line "name number". A commit may raise a limit if a comment on the line
// gives the reason.
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

func main() {
	if err := run(os.Stdout, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "counts:", err)
		os.Exit(1)
	}
}

func run(out io.Writer, args []string) error {
	flags := flag.NewFlagSet("counts", flag.ContinueOnError)
	verbose := flags.Bool("v", false, "also print the place of each one")
	limits := flags.String("check", "", "the `file` with the limits")
	dir := flags.String("dir", ".", "the top `folder` of the module")
	if err := flags.Parse(args); err != nil {
		return err
	}
	m, err := load(*dir)
	if err != nil {
		return err
	}
	all := m.count()
	if err := m.phrases(*dir, all); err != nil {
		return err
	}
	all.print(out, *verbose)
	if *limits == "" {
		return nil
	}
	f, err := os.Open(*limits)
	if err != nil {
		return err
	}
	defer f.Close()
	return all.check(f)
}

// counts holds the places of the items counted, by the name of the count. names keeps
// the order in which the counts are printed.
type counts struct {
	names  []string
	places map[string][]string
}

// declare makes name appear in the output even if its count is zero.
func (c *counts) declare(name string) {
	if c.places == nil {
		c.places = map[string][]string{}
	}
	if _, ok := c.places[name]; !ok {
		c.names = append(c.names, name)
		c.places[name] = nil
	}
}

func (c *counts) add(name, place string) {
	c.declare(name)
	c.places[name] = append(c.places[name], place)
}

func (c *counts) print(out io.Writer, verbose bool) {
	for _, name := range c.names {
		fmt.Fprintf(out, "%-32s %d\n", name, len(c.places[name]))
		if !verbose {
			continue
		}
		for _, p := range c.places[name] {
			fmt.Fprintf(out, "\t%s\n", p)
		}
	}
}

// check compares the counts with limits, which has one "name number" per line. The
// error lists every count that is above its limit or has no limit.
func (c *counts) check(limits io.Reader) error {
	max := map[string]int{}
	lines := bufio.NewScanner(limits)
	for lines.Scan() {
		text, _, _ := strings.Cut(lines.Text(), "#")
		fields := strings.Fields(text)
		if len(fields) == 0 {
			continue
		}
		if len(fields) != 2 {
			return fmt.Errorf("limits: %q is not a name and a number", lines.Text())
		}
		n, err := strconv.Atoi(fields[1])
		if err != nil {
			return fmt.Errorf("limits: %q: %w", lines.Text(), err)
		}
		max[fields[0]] = n
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("limits: %w", err)
	}
	var errs []error
	for _, name := range c.names {
		limit, ok := max[name]
		switch n := len(c.places[name]); {
		case !ok:
			errs = append(errs, fmt.Errorf("%s has no limit; it is %d", name, n))
		case n > limit:
			errs = append(errs, fmt.Errorf("%s is %d, above its limit of %d: lower it, or raise the limit and give the reason there", name, n, limit))
		}
	}
	return errors.Join(errs...)
}
