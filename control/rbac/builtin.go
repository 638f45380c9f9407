package rbac

import (
	"bytes"
	_ "embed" // for the role definitions
	"encoding/json"
	"fmt"
)

// builtInJSON lists the built-in roles of Azure that concern the planes of Casemate. Each entry has the role's GUID, name
// and a description in our own words, and its permission blocks: "+" actions, "-" notActions, "data+" dataActions,
// "data-" notDataActions, "if" condition. GUIDs, names and action strings are Azure's.
//
//go:embed builtin.json
var builtInJSON []byte

// BuiltIn returns the built-in roles. The result is the caller's own.
func BuiltIn() ([]Role, error) {
	var file []struct {
		ID, Name, Text string
		Grants         []struct {
			Actions        []string `json:"+"`
			NotActions     []string `json:"not"`
			DataActions    []string `json:"data+"`
			NotDataActions []string `json:"data-"`
			Condition      string   `json:"if"`
		}
	}
	dec := json.NewDecoder(bytes.NewReader(builtInJSON))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&file); err != nil {
		return nil, fmt.Errorf("decoding built-in roles: %w", err)
	}
	roles := make([]Role, 0, len(file))
	for _, f := range file {
		r := Role{ID: f.ID, Name: f.Name, Description: f.Text, BuiltIn: true, AssignableScopes: []string{"/"}}
		for _, g := range f.Grants {
			r.Permissions = append(r.Permissions, Permission(g))
		}
		roles = append(roles, r)
	}
	return roles, nil
}
