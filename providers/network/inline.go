package network

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"casemate.dev/resource"
)

// inline is a list of child resources inside their parent's body: subnets of a network, rules of a security group. The child
// documents are the truth; the parent's stored body never holds the list, its view always does.
type inline struct {
	path    string // in the parent's body
	typ     string // of the children
	segment string
}

var (
	inlineSubnets = inline{"properties.subnets", subnetType, "subnets"}
	inlineRules   = inline{"properties.securityRules", ruleType, "securityRules"}
)

// read returns the children that a parent's body declares; ok is false when it says nothing of them, which keeps those that
// there are. (Azure did delete them; it stopped doing so.)
func (in inline) read(parent *resource.Document) (children []*resource.Document, ok bool, err error) {
	raw := parent.Get(in.path)
	if raw == nil {
		return nil, false, nil
	}
	list, isList := raw.([]any)
	if !isList {
		return nil, false, resource.Invalid(in.path, "The member '%s' must be a list.", in.path)
	}
	seen := map[string]bool{}
	for i, e := range list {
		at := fmt.Sprintf("%s[%d]", in.path, i)
		m, _ := e.(map[string]any)
		child := resource.Document{Body: m}
		name := child.String("name")
		if seen[strings.ToLower(name)] {
			return nil, false, resource.Errorf(400, "InvalidRequestFormat", "The name '%s' is given to more than one element of %s.", name, in.path).WithTarget(at)
		}
		seen[strings.ToLower(name)] = true
		if name == "" || len(name) > 80 || strings.Trim(name, nameCharacters) != "" {
			return nil, false, resource.Errorf(400, "InvalidResourceName", "The name '%s' is not valid. Use 1 to 80 letters, digits, '_', '.' and '-'.", name).WithTarget(at + ".name")
		}
		id, err := parent.ID.Child(in.segment, name)
		if err != nil {
			return nil, false, resource.Invalid(at+".name", "The name '%s' is not valid.", name)
		}
		props, isObject := child.Get("properties").(map[string]any)
		if !isObject {
			return nil, false, resource.Invalid(at+".properties", "Each element needs an object 'properties'.")
		}
		d := (&resource.Document{ID: id, Body: map[string]any{"properties": props}}).Clone()
		d.Unset("properties.provisioningState")
		children = append(children, d)
	}
	return children, true, nil
}

const nameCharacters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._"

// show puts the children into the body that is about to be shown.
func (in inline) show(s state, parent *resource.Document) {
	list := []any{}
	for _, c := range s.children(parent.ID, in.typ) {
		c = c.Clone()
		c.State = resource.StateSucceeded
		list = append(list, c.Wire())
	}
	parent.Set(in.path, list)
}

// reconcile makes the child documents equal to what the parent declares and takes all into the state at once. When it fails
// the children are what they were.
func (p *Provider) reconcileInline(ctx context.Context, parent *resource.Document, in inline) error {
	want, ok, err := in.read(parent)
	if err != nil {
		return err
	}
	stored := parent.Clone()
	stored.Unset(in.path)
	b := &batch{}
	var undo []func(context.Context) error
	if ok {
		undo, err = p.writeChildren(withBatch(ctx, b), parent.ID, in, want)
	}
	if err == nil {
		err = p.change(ctx, func(s state) error {
			s.set(stored)
			for _, id := range b.unset {
				s.unset(id)
			}
			for _, d := range b.set {
				s.set(d)
			}
			return nil
		})
	}
	if err != nil {
		ctx = withBatch(ctx, &batch{})
		for i := len(undo) - 1; i >= 0; i-- {
			if back := undo[i](ctx); back != nil {
				p.cfg.Logger.Error("undoing a change of child resources", "parent", parent.ID.String(), "error", back)
			}
		}
		return err
	}
	parent.Unset(in.path)
	return nil
}

// writeChildren writes and deletes child documents, and returns how to undo what was done.
func (p *Provider) writeChildren(ctx context.Context, parent resource.ID, in inline, want []*resource.Document) ([]func(context.Context) error, error) {
	docs, err := p.cfg.Resources.List(ctx, in.typ, parent)
	if err != nil {
		return nil, err
	}
	have := map[string]*resource.Document{}
	for _, d := range docs {
		have[d.ID.Key()] = d
	}
	var undo []func(context.Context) error
	keep := map[string]bool{}
	for _, d := range want {
		keep[d.ID.Key()] = true
	}
	for _, d := range docs {
		if keep[d.ID.Key()] {
			continue
		}
		if err := p.cfg.Resources.Delete(ctx, p.cfg.Platform, d.ID); err != nil {
			return undo, err
		}
		undo = append(undo, p.putBack(d))
	}
	for _, d := range want {
		old := have[d.ID.Key()]
		if old != nil && old.State == resource.StateSucceeded && sameJSON(old.Get("properties"), d.Get("properties")) {
			continue
		}
		if _, err := p.cfg.Resources.Put(ctx, p.cfg.Platform, d.ID, d.Clone().Body); err != nil {
			return undo, err
		}
		if old != nil {
			undo = append(undo, p.putBack(old))
		} else {
			undo = append(undo, func(ctx context.Context) error { return p.cfg.Resources.Delete(ctx, p.cfg.Platform, d.ID) })
		}
	}
	return undo, nil
}

func (p *Provider) putBack(d *resource.Document) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := p.cfg.Resources.Put(ctx, p.cfg.Platform, d.ID, d.Clone().Body)
		return err
	}
}

func sameJSON(a, b any) bool {
	x, err1 := json.Marshal(a)
	y, err2 := json.Marshal(b)
	return errors.Join(err1, err2) == nil && bytes.Equal(x, y)
}
