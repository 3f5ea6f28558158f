// Package vectors reads the test vectors in docs/vectors: examples of encoded messages, against
// which tests check the packages that encode and decode them. docs/wire.md describes the files.
package vectors

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

// A Vector is an encoded message and the values of its fields.
type Vector struct {
	Name string `json:"name"`
	Hex  Bytes  `json:"hex"`
	// Fields has the values of the message's fields, as a JSON object whose form depends on
	// the file.
	Fields json.RawMessage `json:"fields,omitempty"`
	// ReadOnly means that every reader must accept the message, but this module never writes
	// it, for example because it has fields of a later version.
	ReadOnly bool `json:"readOnly,omitempty"`
	// Error means that a reader must refuse the bytes. There are no Fields then.
	Error bool `json:"error,omitempty"`
}

// Bytes is a byte slice that is written in JSON as lower case hexadecimal digits.
type Bytes []byte

// MarshalText implements encoding.TextMarshaler.
func (b Bytes) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(b)), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (b *Bytes) UnmarshalText(text []byte) (err error) {
	*b, err = hex.DecodeString(string(text))
	return err
}

// Test checks decode and encode with every vector in docs/vectors/file. T is a struct for the
// vectors' Fields in JSON. decode must return an error for a vector with Error set, and the
// vector's fields for any other. encode must return the vector's bytes for these fields, unless
// the vector is ReadOnly. The test fails if Fields has a field that T lacks.
func Test[T any](t *testing.T, file string, decode func([]byte) (T, error), encode func(T) ([]byte, error)) {
	t.Helper()
	list := Read(t, file)
	var good, bad int
	names := map[string]bool{}
	for _, v := range list {
		if v.Name == "" || names[v.Name] {
			t.Errorf("%s: the name %q is empty or used twice", file, v.Name)
		}
		names[v.Name] = true
		got, err := decode(v.Hex)
		if v.Error {
			bad++
			if err == nil {
				t.Errorf("%s, %s: decoded as %+v, it has to be refused", file, v.Name, got)
			}
			if v.Fields != nil || v.ReadOnly {
				t.Errorf("%s, %s: what is refused has neither fields nor readOnly", file, v.Name)
			}
			continue
		}
		good++
		if err != nil {
			t.Errorf("%s, %s: %v", file, v.Name, err)
			continue
		}
		var want T
		strict(t, file+", "+v.Name, v.Fields, &want)
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s, %s: decoded as\n%s, want\n%s", file, v.Name, text(got), text(want))
		}
		if v.ReadOnly {
			continue
		}
		if b, err := encode(want); err != nil || !bytes.Equal(b, v.Hex) {
			t.Errorf("%s, %s: encoded as\n%x, want\n%x; %v", file, v.Name, b, []byte(v.Hex), err)
		}
	}
	if good == 0 || bad == 0 {
		t.Errorf("%s has %d vectors to accept and %d to refuse, want some of each", file, good, bad)
	}
}

// Read returns the vectors of docs/vectors/file.
func Read(t *testing.T, file string) (list []Vector) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(Docs(t), "vectors", file))
	if err != nil {
		t.Fatal(err)
	}
	strict(t, file, b, &list)
	return list
}

// Docs returns the path of this module's folder docs. The test must belong to a package of
// this module.
func Docs(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd() // the folder of the package
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return filepath.Join(dir, "docs")
		}
		up := filepath.Dir(dir)
		if up == dir {
			t.Fatal("no go.mod above the test")
		}
		dir = up
	}
}

// strict decodes JSON and fails the test if it has a field that ptr's type lacks.
func strict(t *testing.T, what string, b []byte, ptr any) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(ptr); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// text returns v as JSON, as it is written in the files.
func text(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(b)
}
