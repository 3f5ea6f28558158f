package host

import (
	"errors"
	"math"
	"os"

	"golang.org/x/sys/windows"
)

// lockFile locks f against every other open file at the same path, also in this process, or
// returns [ErrIdentityInUse]. unlock ends the lock; the system does when the process ends.
func lockFile(f *os.File) (unlock func() error, err error) {
	// The locked range is beyond the end of the file, because on Windows other processes
	// cannot read a range that is locked.
	at := windows.Overlapped{OffsetHigh: math.MaxInt32}
	h := windows.Handle(f.Fd())
	err = windows.LockFileEx(h, windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, &at)
	if errors.Is(err, windows.ERROR_LOCK_VIOLATION) {
		return nil, ErrIdentityInUse
	}
	if err != nil {
		return nil, os.NewSyscallError("lock", err)
	}
	return func() error { return windows.UnlockFileEx(h, 0, 1, 0, &at) }, nil
}

func isReadOnly(err error) bool { return errors.Is(err, windows.ERROR_WRITE_PROTECT) }
