package main

import (
	"context"
	"encoding/binary"
	"errors"

	"casemate.dev/envelope"
	"casemate.dev/store"
)

// keyRecords keeps the envelope's records in the metadata store.
type keyRecords struct{ s store.Store }

func (k keyRecords) Load(ctx context.Context, id string) ([]byte, error) {
	b, err := getOne(ctx, k.s, store.Key("key", id))
	if errors.Is(err, store.ErrNotFound) {
		return nil, envelope.ErrNoRecord
	}
	return b, err
}

func (k keyRecords) Save(ctx context.Context, id string, record []byte) error {
	return putOne(ctx, k.s, store.Key("key", id), record)
}

func (k keyRecords) List(ctx context.Context) ([]string, error) {
	var ids []string
	err := k.s.View(ctx, func(r store.Reader) error {
		for kv, err := range r.Scan(store.Prefix("key"), store.ScanOptions{KeysOnly: true}) {
			if err != nil {
				return err
			}
			parts, err := store.SplitKey(kv.Key)
			if err != nil {
				return err
			}
			ids = append(ids, parts[1])
		}
		return nil
	})
	return ids, err
}

// oneRecord keeps a single value; nil where there is none.
type oneRecord struct {
	s   store.Store
	key string
}

func (o oneRecord) Load(ctx context.Context) ([]byte, error) {
	b, err := getOne(ctx, o.s, o.key)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	return b, err
}

func (o oneRecord) Save(ctx context.Context, b []byte) error { return putOne(ctx, o.s, o.key, b) }

// auditHead remembers how far the audit log has come.
type auditHead struct{ s store.Store }

func (h auditHead) LoadHead(ctx context.Context) (uint64, []byte, error) {
	b, err := getOne(ctx, h.s, store.Key("audit", "head"))
	if errors.Is(err, store.ErrNotFound) {
		return 0, nil, nil
	}
	if err != nil {
		return 0, nil, err
	}
	if len(b) < 8 {
		return 0, nil, errors.New("the audit head is malformed")
	}
	return binary.BigEndian.Uint64(b), b[8:], nil
}

func (h auditHead) SaveHead(ctx context.Context, seq uint64, chain []byte) error {
	return putOne(ctx, h.s, store.Key("audit", "head"), append(binary.BigEndian.AppendUint64(nil, seq), chain...))
}

func getOne(ctx context.Context, s store.Store, key string) ([]byte, error) {
	var out []byte
	err := s.View(ctx, func(r store.Reader) error {
		kv, err := r.Get(key)
		out = kv.Value
		return err
	})
	return out, err
}

func putOne(ctx context.Context, s store.Store, key string, value []byte) error {
	return s.Update(ctx, func(tx store.Txn) error { tx.Put(key, value); return nil })
}
