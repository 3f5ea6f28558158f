// Package logging gives every package of the module its logger:
//
//	log := logging.Package("host", nil) // go-log's "smokesignal/host"
//	log.Debug("listening", "addrs", addrs)
//
// A library should not write to its user's terminal unasked. So as long as
// neither the application nor the environment has configured go-log, the loggers
// of smokesignal are set to a level above error and print nothing. After a call of
// [Dependencies] the same is true for the loggers of libp2p. All of them are
// ordinary go-log loggers: GOLOG_LOG_LEVEL, golog.SetLogLevel,
// golog.SetLogLevelRegex and golog.SetupLogging work on them by name, before or
// after this package has set their levels.
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
	// quietLevel is a level of go-log above all levels of slog: a logger at this level
	// prints nothing.
	quietLevel = "fatal"
	// sentinel is the name of a logger that is never used. Nobody sets its level by
	// name, so if its level changes, the application has set all levels at once.
	sentinel = root + "/quiet"
	// quicWarning is an environment variable that turns off the warning about the
	// size of UDP buffers, which quic-go prints to stderr. Package host logs the same
	// warning at debug level.
	quicWarning = "QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING"
)

// packages holds the names for which [Package] has loggers. The empty name is that of
// the module.
var packages = []string{"", "node", "host", "events", "discovery", "health"}

// init sets the levels of smokesignal's own loggers only, so importing smokesignal does
// not change the log of other packages. It runs before main, so that a level which the
// application sets later is kept.
func init() {
	if !configured() {
		must(golog.SetLogLevel(sentinel, quietLevel))
	}
	for _, name := range packages {
		register(fullName(name))
	}
}

// Package returns the logger of a package of this module: "host" logs as
// "smokesignal/host", the empty name as "smokesignal". The logger writes to h and adds
// the attribute "logger" with its name. If h is nil it writes to go-log, which prints
// nothing unless GOLOG_LOG_LEVEL or the application sets a level.
func Package(name string, h slog.Handler) *slog.Logger {
	return logger(fullName(name), h)
}

// Dependency returns the logger for a library that takes a logger as an option and has
// a name of its own, such as go-libp2p-pubsub ("pubsub"). h has the same meaning as for
// [Package].
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

// Loud returns a logger for errors that the user must not miss, such as a panic in a
// handler of the program. If log would print nothing, because it writes to go-log and
// nobody has configured go-log, Loud returns [slog.Default], which writes to stderr unless
// the application has changed it. Otherwise it returns log.
func Loud(log *slog.Logger) *slog.Logger {
	h, ok := log.Handler().(quietHandler)
	if !ok || level(sentinel) <= slog.LevelError || h.Enabled(context.Background(), slog.LevelError) {
		return log
	}
	return slog.Default().With("logger", root)
}

// quietHandler is go-log's handler. Loggers have it if the application has not given
// them a handler.
type quietHandler struct{ slog.Handler }

func (h quietHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return quietHandler{h.Handler.WithAttrs(attrs)}
}

func (h quietHandler) WithGroup(name string) slog.Handler {
	return quietHandler{h.Handler.WithGroup(name)}
}

// Dependencies makes go-libp2p log through go-log, silences libp2p's loggers as [Package]
// does those of this module, and turns off quic-go's warning about UDP buffers. It must be
// called before a libp2p host is made; calls after the first do nothing.
//
// All this is state of the whole process, so the settings of the application take
// precedence: a handler given to gologshim.SetDefaultHandler is kept, and so is a value of
// QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING. Libp2p's loggers are silenced only if the
// application has changed neither their levels nor the level of go-log as a whole. A libp2p
// logger that has already logged something keeps its handler.
//
// One setting cannot be distinguished from the default and is lost: the level "error",
// set by name for a single libp2p logger before that logger has logged anything.
func Dependencies() { dependencies() }

var dependencies = sync.OnceFunc(func() {
	if shimIsFallback() {
		gologshim.SetDefaultHandler(shim{golog.SlogHandler()})
	}
	if _, set := os.LookupEnv(quicWarning); !set {
		os.Setenv(quicWarning, "true")
	}
})

// shim is the handler that Dependencies gives to libp2p's loggers. Each of them calls
// WithAttrs with its name before it first logs, and is silenced at that moment.
type shim struct{ slog.Handler }

func (s shim) WithAttrs(attrs []slog.Attr) slog.Handler {
	for _, a := range attrs {
		if a.Key == "logger" {
			register(a.Value.String())
		}
	}
	return s.Handler.WithAttrs(attrs)
}

// shimIsFallback reports whether go-libp2p still logs to stderr by its own handler, because
// the application has not given it another one.
func shimIsFallback() bool {
	const probe = root + "/probe"
	h := gologshim.Logger(probe).Handler().WithAttrs(nil)
	switch h.(type) {
	case *slog.TextHandler, *slog.JSONHandler:
		// A handler of the application may be of the same type. The fallback is recognized
		// by its level, which an application is unlikely to use.
		least := gologshim.ConfigFromEnv().LevelForSystem(probe)
		return h.Enabled(context.Background(), least) && !h.Enabled(context.Background(), least-1)
	default:
		return false
	}
}

// register makes a logger of that name known to go-log. It silences the logger unless the
// application or the environment has set its level or that of go-log as a whole.
func register(name string) {
	golog.Logger(name)
	if level(sentinel) > slog.LevelError && level(name) == slog.LevelError {
		must(golog.SetLogLevel(name, quietLevel))
	}
}

// level returns the lowest level at which go-log prints messages of the logger with that
// name, or a level above error if it prints none.
func level(name string) slog.Level {
	h := golog.SlogHandler().WithAttrs(loggerAttr(name))
	for _, l := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError} {
		if h.Enabled(context.Background(), l) {
			return l
		}
	}
	return slog.LevelError + 1
}

// configured reports whether go-log has been configured, by the environment or by a package
// that was initialized before this one.
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

func fullName(name string) string {
	if name == "" {
		return root
	}
	return root + "/" + name
}

func loggerAttr(name string) []slog.Attr {
	return []slog.Attr{slog.String("logger", name)}
}

// must panics if err is not nil. go-log returns an error only for a level name that it does not
// know, and this package uses only constants.
func must(err error) {
	if err != nil {
		panic("logging: " + err.Error())
	}
}
