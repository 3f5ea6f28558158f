package logging

import (
	"context"
	"log/slog"
	"time"
)

// A Limiter logs something that may happen often, at most one line per second. Each line says
// how often it has happened since the last line. The zero value is ready to use. A Limiter is
// not safe for concurrent use.
type Limiter struct {
	last  time.Time // when the last line was logged
	count uint64    // events since then
}

// Log counts n events and logs the line, unless one was logged within the last second.
func (l *Limiter) Log(log *slog.Logger, level slog.Level, now time.Time, n uint64, msg string, args ...any) {
	l.count += n
	if now.Sub(l.last) < time.Second {
		return
	}
	log.Log(context.Background(), level, msg, append(args, "events", l.count)...)
	l.last, l.count = now, 0
}
