package frame

import (
	"bytes"
	"io"
	"testing"

	"github.com/go-smokesignal/smokesignal/internal/vectors"
)

// TestVectors: docs/vectors/frame.json has whole streams of frames.
func TestVectors(t *testing.T) {
	type fields struct {
		Payloads []vectors.Bytes `json:"payloads"`
	}
	vectors.Test(t, "frame.json", func(b []byte) (f fields, err error) {
		r := NewReader(bytes.NewReader(b), limit)
		for {
			payload, err := r.Next()
			switch {
			case err == io.EOF:
				return f, nil
			case err != nil:
				return f, err
			}
			f.Payloads = append(f.Payloads, bytes.Clone(payload))
		}
	}, func(f fields) (b []byte, err error) {
		for _, p := range f.Payloads {
			b = Append(b, p)
		}
		return b, nil
	})
}
