package discovery

import (
	"os"
	"testing"

	"github.com/go-smokesignal/smokesignal/internal/hosttest"
)

func TestMain(m *testing.M) { os.Exit(hosttest.Main(m)) }
