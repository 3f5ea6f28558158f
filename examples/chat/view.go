package main

// view is what the chat is seen through: a screen in a terminal, plain lines
// everywhere else. Its methods may be called from several goroutines.
type view interface {
	// lines yields what is to be sent and is closed at the end of the input. In
	// a terminal one text may hold several lines, from a paste.
	lines() <-chan string
	// ended is closed when the input has ended, even if lines still holds some.
	ended() <-chan struct{}
	// typing is whether a person writes the lines, who may give commands and
	// would rather be told that nobody is there than wait. What comes from a
	// pipe is text and nothing else.
	typing() bool

	said(name, text string)              // by somebody else
	sent(name, text string)              // by this user
	status(format string, args ...any)   // one line about the chat itself
	command(label, line string)          // something to copy and run
	table(rows [][]string)               // the answer to a command
	here(summary string, names []string) // who is here; names can be completed

	// close gives the terminal back. What is shown later still appears.
	close()
}
