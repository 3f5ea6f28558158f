package schema

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"

	"github.com/go-smokesignal/smokesignal/internal/vectors"
)

// The message definitions in docs/wire.md and in docs/proto are the same.
func TestTheSpecificationHasTheMessagesOfTheProtoFiles(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(vectors.Docs(t), "wire.md"))
	if err != nil {
		t.Fatal(err)
	}
	var source strings.Builder
	source.WriteString("syntax = \"proto3\";\n")
	for _, block := range regexp.MustCompile("(?s)```proto\n(.*?)```").FindAllStringSubmatch(string(b), -1) {
		source.WriteString(block[1])
	}
	inText := Compile(t, map[string]string{"wire.md": source.String()})
	for name, m := range inText {
		got, want := protodesc.ToDescriptorProto(m), protodesc.ToDescriptorProto(Message(t, name))
		// The package is part of the full names of types, and only the files have one.
		for _, f := range want.Field {
			f.TypeName = proto.String(strings.NewReplacer(".smokesignal.", ".", ".pubsub.", ".").Replace(f.GetTypeName()))
		}
		for _, f := range got.Field {
			f.TypeName = proto.String(f.GetTypeName())
		}
		if !proto.Equal(got, want) {
			t.Errorf("message %s in docs/wire.md is\n%v\nin docs/proto it is\n%v", name, got, want)
		}
	}
	if len(inText) != len(compiled.messages) {
		t.Errorf("docs/wire.md has %d messages, docs/proto has %d", len(inText), len(compiled.messages))
	}
}
