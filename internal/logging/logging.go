// Package logging gives every room its logger:
//
//	log := logging.Room("host", nil) // go-log's "smokesignal/host"
//	log.Debug("listening", "addrs", addrs)
//
// A library does not write to its user's terminal uninvited. So as long as
// nobody has configured go-log, the loggers of smokesignal, and those of
// libp2p once [Dependencies] was called, are set to a level above error. They
// are ordinary go-log loggers: GOLOG_LOG_LEVEL, golog.SetLogLevel,
// golog.SetLogLevelRegex and golog.SetupLogging work on them by name, and what
// the application says, before or after, is what holds.
package logging

import (
	"context"
	"log/slog"
	"os"
	"sync"

	golog "github.com/ipfs/go-log/v2"
	"github.com/libp2p/go-libp2p/gologshim"
)

const (
	root = "smokesignal"
	// quietLevel is above all that slog can express.
	quietLevel = "fatal"
	// sentinel is a level in go-log's table that belongs to no logger. Nobody
	// sets it by name, so when it moves, somebody has set all levels at once.
	sentinel = root + "/quiet"
	// quicWarning turns off what quic-go says on stderr about the size of UDP
	// buffers. The host room logs the same at debug.
	quicWarning = "QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING"
)

var rooms = []string{"", "node", "host", "events", "discovery", "health"}

// Only our own names are touched here, so importing smokesignal changes
// nothing for anybody else. It happens this early so that whatever the
// application does to go-log comes later.
func init() {
	if !configured() {
		must(golog.SetLogLevel(sentinel, quietLevel))
	}
	for _, name := range rooms {
		register(fullName(name))
	}
}

// Room returns the logger of a room: "host" logs as "smokesignal/host", the
// empty name as "smokesignal". It logs to h, with the name as attribute
// "logger"; if h is nil, to go-log, which prints nothing until GOLOG_LOG_LEVEL
// or the application asks for it.
func Room(name string, h slog.Handler) *slog.Logger {
	return logger(fullName(name), h)
}

// Dependency is [Room] for a library which logs under a name of its own and
// takes a logger as option, as go-libp2p-pubsub does ("pubsub").
func Dependency(name string, h slog.Handler) *slog.Logger {
	return logger(name, h)
}

func logger(name string, h slog.Handler) *slog.Logger {
	if h == nil {
		register(name)
		h = quietHandler{golog.SlogHandler()}
	}
	return slog.New(h.WithAttrs(loggerAttr(name)))
}

// Loud returns the logger for errors that nobody would look for in a quiet log,
// such as a panic in a handler of the program: log itself or, if log goes to
// go-log and nobody has configured go-log, [slog.Default], which writes to stderr
// unless the application has changed it.
func Loud(log *slog.Logger) *slog.Logger {
	h, ok := log.Handler().(quietHandler)
	if !ok || level(sentinel) <= slog.LevelError || h.Enabled(context.Background(), slog.LevelError) {
		return log
	}
	return slog.Default().With("logger", root)
}

// quietHandler is go-log's handler in the loggers to which the application has
// not given one of its own.
type quietHandler struct{ slog.Handler }

func (h quietHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return quietHandler{h.Handler.WithAttrs(attrs)}
}

func (h quietHandler) WithGroup(name string) slog.Handler {
	return quietHandler{h.Handler.WithGroup(name)}
}

// Dependencies makes go-libp2p log through go-log and as quietly as we do,
// and quic-go keep its warning about UDP buffers to itself. Whoever makes a
// libp2p host calls it first; calls after the first do nothing.
//
// This is process-wide state which smokesignal shares with the application,
// so it yields: a handler which the application gave to
// gologshim.SetDefaultHandler stays, as does a value of
// QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING, and libp2p's loggers are silenced
// only while they and go-log as a whole are at go-log's defaults. A libp2p
// logger that has logged before keeps what it had then.
//
// One thing cannot be told from the default: level error, asked for by the
// name of a single libp2p logger before that logger's first line. "warn" can.
func Dependencies() { dependencies() }

var dependencies = sync.OnceFunc(func() {
	if shimIsFallback() {
		gologshim.SetDefaultHandler(shim{golog.SlogHandler()})
	}
	if _, set := os.LookupEnv(quicWarning); !set {
		os.Setenv(quicWarning, "true")
	}
})

// shim is what libp2p's loggers find when they first log. They introduce
// themselves by WithAttrs, which is when their level can be set.
type shim struct{ slog.Handler }

func (s shim) WithAttrs(attrs []slog.Attr) slog.Handler {
	for _, a := range attrs {
		if a.Key == "logger" {
			register(a.Value.String())
		}
	}
	return s.Handler.WithAttrs(attrs)
}

// shimIsFallback reports whether go-libp2p would log to stderr by its own
// handler, that is, whether the application has not given it another.
func shimIsFallback() bool {
	const probe = root + "/probe"
	h := gologshim.Logger(probe).Handler().WithAttrs(nil)
	switch h.(type) {
	case *slog.TextHandler, *slog.JSONHandler:
		// The fallback's level is known; that of an application is hardly this one.
		least := gologshim.ConfigFromEnv().LevelForSystem(probe)
		return h.Enabled(context.Background(), least) && !h.Enabled(context.Background(), least-1)
	default:
		return false
	}
}

// register lists a logger with go-log, and silences it if neither its level
// nor go-log as a whole were configured by anybody.
func register(name string) {
	golog.Logger(name)
	if level(sentinel) > slog.LevelError && level(name) == slog.LevelError {
		must(golog.SetLogLevel(name, quietLevel))
	}
}

// level returns the least level at which go-log prints what name logs, or one
// above error if it prints nothing.
func level(name string) slog.Level {
	h := golog.SlogHandler().WithAttrs(loggerAttr(name))
	for _, l := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError} {
		if h.Enabled(context.Background(), l) {
			return l
		}
	}
	return slog.LevelError + 1
}

// configured reports whether go-log was told anything, by the environment or
// by a package initialised before this one.
func configured() bool {
	for _, env := range []string{"GOLOG_LOG_LEVEL", "IPFS_LOGGING"} {
		if os.Getenv(env) != "" {
			return true
		}
	}
	c := golog.GetConfig()
	return c.Level != golog.LevelError || len(c.SubsystemLevels) > 0 ||
		!c.Stderr || c.Stdout || c.File != "" || c.URL != ""
}

func fullName(room string) string {
	if room == "" {
		return root
	}
	return root + "/" + room
}

func loggerAttr(name string) []slog.Attr {
	return []slog.Attr{slog.String("logger", name)}
}

// must: go-log refuses only level names it does not know, and ours are constants.
func must(err error) {
	if err != nil {
		panic("logging: " + err.Error())
	}
}
