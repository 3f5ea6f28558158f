package logging

import (
	"bytes"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	golog "github.com/ipfs/go-log/v2"
	"github.com/libp2p/go-libp2p/gologshim"
)

// The default output of a library depends on the environment at start and on
// state which cannot be put back, so every case is a process of its own.
const childEnv = "SMOKESIGNAL_LOGGING_CHILD"

func TestMain(m *testing.M) {
	if name, ok := os.LookupEnv(childEnv); ok {
		children[name]()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// shout logs at every level as a package of the module, as libp2p, as pubsub, and as an
// application which uses go-log itself.
func shout() {
	libp2p := gologshim.Logger("swarm2")
	for _, l := range []*slog.Logger{Package("host", nil), Package("", nil), libp2p, Dependency("pubsub", nil)} {
		l.Debug("a debug line")
		l.Info("an info line")
		l.Warn("a warn line")
		l.Error("an error line")
	}
	golog.Logger("app").Error("an application's line")
}

var children = map[string]func(){
	"plain": func() { Dependencies(); shout() },
	// Merely importing smokesignal must not change what libp2p prints.
	"no host": func() { gologshim.Logger("swarm2").Error("an error line") },
	"all at error": func() {
		must(golog.SetLogLevel("*", "error"))
		Dependencies()
		shout()
	},
	"all at error, later": func() {
		Dependencies()
		must(golog.SetLogLevel("*", "error"))
		shout()
	},
	"set up": func() {
		golog.SetupLogging(golog.Config{Stderr: true, Level: golog.LevelError, Format: golog.JSONOutput})
		Dependencies()
		shout()
	},
	"one package": func() {
		Dependencies()
		must(golog.SetLogLevel("smokesignal/host", "warn"))
		shout()
	},
	"one of libp2p": func() {
		must(golog.SetLogLevel("swarm2", "warn"))
		Dependencies()
		shout()
	},
	"regex": func() {
		must(golog.SetLogLevelRegex("^smokesignal/", "info"))
		shout()
	},
	"own handler for libp2p": func() {
		gologshim.SetDefaultHandler(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}).WithAttrs([]slog.Attr{slog.Bool("mine", true)}))
		Dependencies()
		shout()
	},
	"print quic": func() {
		Dependencies()
		os.Stderr.WriteString(os.Getenv(quicWarning))
	},
	"own handler for libp2p, later": func() {
		Dependencies()
		gologshim.SetDefaultHandler(slog.NewTextHandler(os.Stderr, nil).WithAttrs([]slog.Attr{slog.Bool("mine", true)}))
		shout()
	},
}

// run starts a child with exactly the given logging variables and returns what
// it wrote to stderr.
func run(t *testing.T, child string, env ...string) string {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return strings.HasPrefix(kv, "GOLOG_") || strings.HasPrefix(kv, "IPFS_LOGGING") || strings.HasPrefix(kv, "QUIC_GO_")
	})
	cmd.Env = append(append(cmd.Env, childEnv+"="+child), env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	return stderr.String()
}

// lines counts the lines of one logger, by go-log's or by slog's format.
func lines(stderr, logger string) (n int) {
	for line := range strings.Lines(stderr) {
		line = strings.Join(strings.Fields(line), " ") + " "
		if strings.Contains(line, " "+logger+" ") || strings.Contains(line, "logger="+logger+" ") ||
			strings.Contains(line, `"logger":"`+logger+`"`) {
			n++
		}
	}
	return n
}

// Nothing is logged unless the environment or the program asks for it.
func TestQuietUnlessAsked(t *testing.T) {
	for _, tt := range []struct {
		child                   string
		env                     []string
		host, root, swarm, pubs int
		app                     int
	}{
		{child: "plain", app: 1},
		{child: "no host", swarm: 1},
		{child: "plain", env: []string{"GOLOG_LOG_LEVEL=debug"}, host: 4, root: 4, swarm: 4, pubs: 4, app: 1},
		{child: "plain", env: []string{"GOLOG_LOG_LEVEL=error"}, host: 1, root: 1, swarm: 1, pubs: 1, app: 1},
		{child: "plain", env: []string{"IPFS_LOGGING=error"}, host: 1, root: 1, swarm: 1, pubs: 1, app: 1},
		{child: "plain", env: []string{"GOLOG_LOG_LEVEL=error,smokesignal/host=debug"}, host: 4, root: 1, swarm: 1, pubs: 1, app: 1},
		{child: "plain", env: []string{"GOLOG_LOG_LEVEL=error,swarm2=info,pubsub=warn"}, host: 1, root: 1, swarm: 3, pubs: 2, app: 1},
		{child: "plain", env: []string{"GOLOG_OUTPUT=stderr+stdout"}, host: 1, root: 1, swarm: 1, pubs: 1, app: 1},
		{child: "all at error", host: 1, root: 1, swarm: 1, pubs: 1, app: 1},
		{child: "all at error, later", host: 1, root: 1, swarm: 1, pubs: 1, app: 1},
		{child: "set up", host: 1, root: 1, swarm: 1, pubs: 1, app: 1},
		{child: "one package", host: 2, app: 1},
		{child: "one of libp2p", swarm: 2, app: 1},
		{child: "regex", host: 3, swarm: 1, app: 1}, // no Dependencies: libp2p prints as it does alone
		{child: "own handler for libp2p", swarm: 2, app: 1},
		{child: "own handler for libp2p, later", swarm: 3, app: 1},
	} {
		t.Run(tt.child+" "+strings.Join(tt.env, " "), func(t *testing.T) {
			t.Parallel()
			got := run(t, tt.child, tt.env...)
			for logger, want := range map[string]int{
				"smokesignal/host": tt.host, "smokesignal": tt.root, "swarm2": tt.swarm, "pubsub": tt.pubs, "app": tt.app,
			} {
				if n := lines(got, logger); n != want {
					t.Errorf("%s wrote %d lines, want %d", logger, n, want)
				}
			}
			if want := tt.host + tt.root + tt.swarm + tt.pubs + tt.app; strings.Count(got, "\n") != want {
				t.Errorf("%d lines in all, want %d", strings.Count(got, "\n"), want)
			}
			if strings.HasPrefix(tt.child, "own handler") && strings.Count(got, "mine=true") != tt.swarm {
				t.Errorf("libp2p did not log through the application's handler")
			}
			if t.Failed() {
				t.Logf("stderr:\n%s", got)
			}
		})
	}
}

// The loggers of all packages are listed by go-log.
func TestPackagesAreListed(t *testing.T) {
	listed := golog.GetSubsystems()
	for _, want := range []string{"smokesignal", "smokesignal/node", "smokesignal/host", "smokesignal/events", "smokesignal/discovery", "smokesignal/health"} {
		if !slices.Contains(listed, want) {
			t.Errorf("%s is not among %v", want, listed)
		}
	}
	if slices.Contains(listed, sentinel) {
		t.Errorf("%s is listed, so SetLogLevelRegex would move it", sentinel)
	}
}

// A package with a handler of the application logs there.
func TestPackageLogsToTheHandlerGiven(t *testing.T) {
	var b bytes.Buffer
	Package("events", slog.NewTextHandler(&b, nil)).Info("hello", "n", 1)
	if got := b.String(); !strings.Contains(got, "logger=smokesignal/events") || !strings.Contains(got, "n=1") {
		t.Errorf("got %q", got)
	}
	b.Reset()
	Dependency("pubsub", slog.NewTextHandler(&b, nil)).Info("hello")
	if got := b.String(); !strings.Contains(got, "logger=pubsub") {
		t.Errorf("got %q", got)
	}
}

// An application's own choice about quic-go's warning stays.
func TestQUICWarningVariable(t *testing.T) {
	for _, tt := range []struct{ env, want string }{
		{"SOME=thing", "true"},
		{quicWarning + "=false", "false"},
	} {
		if got := run(t, "print quic", tt.env); got != tt.want {
			t.Errorf("with %q: %q, want %q", tt.env, got, tt.want)
		}
	}
}
