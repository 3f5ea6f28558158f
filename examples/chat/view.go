package main

// view is the user interface of the chat: a screen in a terminal, plain lines everywhere
// else. Its methods may be called from several goroutines.
type view interface {
	// lines returns the channel of the user's texts. It is closed at the end of the input.
	// A text that was pasted into a terminal may have several lines.
	lines() <-chan string
	// ended returns a channel that is closed at the end of the input, even while lines
	// still has unread texts.
	ended() <-chan struct{}
	// typing reports whether a person types the lines. Typed lines may be commands, and
	// fail at once if nobody is connected; lines from a pipe are always text, and wait
	// for a connection.
	typing() bool

	showReceived(name, text string)             // shows a line that somebody else wrote
	showSent(name, text string)                 // shows a line that this user wrote
	showStatus(format string, args ...any)      // shows a message of the program itself
	showCommand(label, line string)             // shows a text to copy, such as a shell command
	showTable(rows [][]string)                  // shows the answer to a command
	showMembers(summary string, names []string) // shows summary, a line about the people in the chat; the tab key completes names

	// close restores the terminal. Texts that are shown later still appear.
	close()
}
