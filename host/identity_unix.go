//go:build darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd

package host

import (
	"errors"
	"os"
	"syscall"
)

// lockFile locks f against every other open file at the same path, also in this process, or
// returns [ErrIdentityInUse]. unlock ends the lock; the system does when the process ends.
func lockFile(f *os.File) (unlock func() error, err error) {
	fd := int(f.Fd())
	for {
		err := syscall.Flock(fd, syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case err == nil:
			return func() error { return syscall.Flock(fd, syscall.LOCK_UN) }, nil
		case errors.Is(err, syscall.EINTR):
		case errors.Is(err, syscall.EWOULDBLOCK):
			return nil, ErrIdentityInUse
		default:
			return nil, os.NewSyscallError("lock", err)
		}
	}
}

func isReadOnly(err error) bool { return errors.Is(err, syscall.EROFS) }
