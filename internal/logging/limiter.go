package logging

import (
	"context"
	"log/slog"
	"time"
)

// A Limiter logs a line about events at most once a second. The line says how many events
// there were since the line before. The zero value is ready to use; the caller guards it.
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
