package vault

import (
	"context"
	"log/slog"
	"time"

	"casemate.dev/store"
)

// What happens to the current version of an object in the course of its life, besides that it expires.
const (
	taskRotate = "rotate" // a key gets a new version
	taskNotify = "notify" // the near end is announced
	taskRenew  = "renew"  // a certificate gets a new version
	taskIssue  = "issue"  // a certificate's operation is carried out
)

func taskKey(at int64, v Vault, k kind, name, task string) string {
	return store.Key("vault", "due", dueTime(at), v.ID.Key(), k.word, name, "", task)
}

// schedule makes the index of due times agree with an object and its current version: what was planned for an earlier
// state is taken out. The caller writes the object, which remembers what is planned.
func (b bench) schedule(k kind, o *object, v *version) {
	for task, at := range o.Tasks {
		b.tx.Delete(taskKey(at, b.vault, k, o.Name, task))
	}
	o.Tasks = nil
	if o.Deleted != nil || !v.Enabled || o.Managed {
		return
	}
	plan := func(task string, at int64, ok bool) {
		if !ok {
			return
		}
		if o.Tasks == nil {
			o.Tasks = map[string]int64{}
		}
		o.Tasks[task] = max(at, 0)
		b.tx.Put(taskKey(at, b.vault, k, o.Name, task), dueValue)
	}
	notify := &trigger{BeforeExpiry: nearExpiry}
	if o.Policy != nil {
		at, ok := o.Policy.Rotate.at(v)
		plan(taskRotate, at, ok)
		notify = o.Policy.Notify
	}
	at, ok := notify.at(v)
	if c := o.Certificate; c != nil {
		switch due, set := c.lifeTime(v); {
		case set && c.Lifetime[0].Action.Type == actionAutoRenew:
			plan(taskRenew, due, o.Renewed != v.ID)
		case set:
			at, ok = due, true
		}
	}
	if o.Told != v.ID {
		plan(taskNotify, at, ok)
	}
}

// wants says whether a task is still planned for that time.
func (o object) wants(task string, at time.Time) bool {
	planned, ok := o.Tasks[task]
	return ok && planned == at.Unix() && o.Deleted == nil
}

// drop removes an entry that has nothing left to do.
func (s *Service) drop(ctx context.Context, d due) error {
	return s.cfg.Store.Update(ctx, func(tx store.Txn) error {
		tx.Delete(d.key)
		return nil
	})
}

// Event is something that happened to an object by itself, under Event Grid's names for it.
type Event struct {
	Type    string // such as Microsoft.KeyVault.KeyNearExpiry
	VaultID string
	Object  string // Key, Secret or Certificate
	Name    string
	Version string
	ID      string // the version's URL
	NBF     *int64
	EXP     *int64
}

// The endings of event types.
const (
	EventNearExpiry = "NearExpiry"
	EventExpired    = "Expired"
	EventNewVersion = "NewVersionCreated"
)

// event tells the hook; at least once, since what it is about becomes durable around it.
func (s *Service) event(ending string, vault Vault, k kind, name string, v *version) {
	e := Event{
		Type: "Microsoft.KeyVault." + k.title + ending, VaultID: vault.ID.String(), Object: k.title, Name: name, Version: v.ID,
		ID: s.versionURL(vault, k, name, v.ID), NBF: v.NotBefore, EXP: v.Expires,
	}
	s.cfg.Logger.Info("key vault event", slog.String("type", e.Type), slog.String("id", e.ID))
	s.cfg.Event(e)
}

// perform does a task. Tasks that this version does not know are left for one that does.
func (s *Service) perform(ctx context.Context, vault Vault, d due) error {
	switch d.task {
	case taskRotate:
		return s.rotateDue(ctx, vault, d)
	case taskNotify:
		return s.notifyDue(ctx, vault, d)
	case taskRenew:
		return s.renewDue(ctx, vault, d)
	case taskIssue:
		return s.issueDue(ctx, vault, d)
	}
	return nil
}
