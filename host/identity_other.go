//go:build !(darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd || windows)

package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// lockFile locks f by creating a second file beside it, because this system has no lock
// that ends with the process. unlock removes the second file. After a crash, the user has
// to remove it.
func lockFile(f *os.File) (unlock func() error, err error) {
	name := f.Name() + ".lock"
	lock, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("%w (if not, remove %s)", ErrIdentityInUse, name)
	}
	if err != nil {
		return nil, err
	}
	lock.Close()
	return func() error { return os.Remove(name) }, nil
}

func isReadOnly(error) bool { return false }
