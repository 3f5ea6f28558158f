package logging

import (
	"context"
	"log/slog"
	"time"
)

// Limiter logs a line at most once a second, with the number of events that it
// stands for.
type Limiter struct {
	last  time.Time
	count uint64
}

func (l *Limiter) Log(log *slog.Logger, level slog.Level, now time.Time, n uint64, msg string, args ...any) {
	l.count += n
	if now.Sub(l.last) < time.Second {
		return
	}
	log.Log(context.Background(), level, msg, append(args, "events", l.count)...)
	l.last, l.count = now, 0
}
