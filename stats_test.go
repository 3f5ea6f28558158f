package smokesignal

import (
	"encoding/json"
	"expvar"
	"reflect"
	"strings"
	"testing"
)

// The counters are plain numbers: encoding/json writes all of them, expvar shows them, and
// a copy does not change.
func TestStatsAreASnapshot(t *testing.T) {
	a, b := newPair(t)
	if err := a.Peer(b.ID()).Emit(t.Context(), "nobody listens"); err != nil {
		t.Fatal(err)
	}
	if err := settle(a, b); err != nil {
		t.Fatal(err)
	}
	s := b.Stats()
	if s.Direct["unhandled"] != 1 {
		t.Errorf("%+v", s.Direct)
	}
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var back map[string]any
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	checkNumbers(t, "Stats", reflect.TypeFor[Stats](), back)
	var again Stats
	if err := json.Unmarshal(text, &again); err != nil || !reflect.DeepEqual(again, s) {
		t.Errorf("%v: read back %+v, want %+v", err, again, s)
	}
	shown := expvar.Func(func() any { return s }).String()
	if !strings.Contains(shown, `"unhandled":1`) {
		t.Errorf("expvar shows %s", shown)
	}
}

// checkNumbers reports fields that are not numbers in the JSON, at any depth.
func checkNumbers(t *testing.T, path string, typ reflect.Type, values map[string]any) {
	for field := range typ.Fields() {
		switch v := values[field.Name].(type) {
		case float64:
		case map[string]any:
			if field.Type.Kind() == reflect.Map {
				for name, number := range v {
					if _, ok := number.(float64); !ok {
						t.Errorf("%s.%s.%s is a %T in JSON", path, field.Name, name, number)
					}
				}
				if len(v) < 5 {
					t.Errorf("%s.%s has %d numbers", path, field.Name, len(v))
				}
				continue
			}
			checkNumbers(t, path+"."+field.Name, field.Type, v)
			if field.Type.NumField() != len(v) {
				t.Errorf("%s.%s has %d fields in JSON, want %d", path, field.Name, len(v), field.Type.NumField())
			}
		default:
			t.Errorf("%s.%s is a %T in JSON", path, field.Name, v)
		}
	}
}
