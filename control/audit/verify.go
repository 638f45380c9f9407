package audit

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
)

func decodeCheckpoint(b []byte) (*checkpoint, error) {
	var c checkpoint
	if err := json.Unmarshal(b, &c); err != nil || len(c.Chain) != len(chain{}) {
		return nil, errors.New("an audit checkpoint is malformed")
	}
	return &c, nil
}

func (l *Log) openEntry(sealed []byte) (*Entry, error) {
	plain, err := l.cfg.Sealer.OpenBytes(object, sealed)
	if err != nil {
		return nil, fmt.Errorf("opening an audit record: %w", err)
	}
	var e Entry
	if err := json.Unmarshal(plain, &e); err != nil {
		return nil, fmt.Errorf("decoding an audit record: %w", err)
	}
	return &e, nil
}

// scan walks all frames of all segments in order, chain values checked from segment to segment. A torn last frame ends it
// without an error: it was never acknowledged.
func (l *Log) scan(fn func(kind byte, payload []byte, s *segmentReader) error) error {
	segments, err := listSegments(l.cfg.Dir)
	if err != nil {
		return err
	}
	var prev *chain
	for i, path := range segments {
		next, err := scanSegment(path, prev, i == len(segments)-1, fn)
		if err != nil {
			return err
		}
		prev = &next
	}
	return nil
}

func scanSegment(path string, prev *chain, last bool, fn func(byte, []byte, *segmentReader) error) (chain, error) {
	s, err := openSegment(path)
	if err != nil {
		return chain{}, err
	}
	defer s.Close()
	if prev != nil && s.chain != *prev {
		return chain{}, fmt.Errorf("audit segment %s does not continue the one before it", s.name)
	}
	for {
		kind, payload, err := s.next()
		switch {
		case err == io.EOF, errors.Is(err, errTorn) && last:
			return s.chain, nil
		case err != nil:
			return chain{}, fmt.Errorf("audit segment %s at offset %d: %w", s.name, s.off, err)
		}
		if err := fn(kind, payload, s); err != nil {
			return chain{}, err
		}
	}
}

// Report is what Verify found.
type Report struct {
	Records     uint64 `json:"records"`
	Checkpoints uint64 `json:"checkpoints"`
	Intact      bool   `json:"intact"`
	Fault       string `json:"fault,omitempty"` // what is wrong, and where
}

// Verify reads the whole trail from disk: each record opens, sequence numbers have no gap, each checkpoint's signature and
// chain value fit, and the trail reaches at least as far as the remembered head. A fault is in the report; the error is
// for not being able to look.
func (l *Log) Verify(ctx context.Context) (Report, error) {
	l.mu.Lock()
	synced := l.synced
	l.mu.Unlock()
	return l.verify(ctx, synced)
}

// Check verifies a trail that no process writes, without opening it for writing.
func Check(ctx context.Context, cfg Config) (Report, error) {
	return (&Log{cfg: cfg}).verify(ctx, 0)
}

func (l *Log) verify(ctx context.Context, synced uint64) (Report, error) {
	var rep Report
	headSeq, _, err := l.cfg.Head.LoadHead(ctx)
	if err != nil {
		return rep, fmt.Errorf("loading the audit head: %w", err)
	}
	headSeq = max(headSeq, synced)
	v := verifier{log: l, pub: &l.cfg.Key.PublicKey}
	err = l.scan(func(kind byte, payload []byte, s *segmentReader) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return v.frame(kind, payload, s)
	})
	rep.Records, rep.Checkpoints = v.records, v.checkpoints
	switch {
	case ctx.Err() != nil:
		return rep, ctx.Err()
	case err != nil:
		rep.Fault = err.Error()
	case v.attested < headSeq:
		rep.Fault = fmt.Sprintf("the last checkpoint vouches for record %d, but record %d was written: the trail was cut off", v.attested, headSeq)
	default:
		rep.Intact = true
	}
	return rep, nil
}

type verifier struct {
	log                  *Log
	pub                  *ecdsa.PublicKey
	seq, attested        uint64
	records, checkpoints uint64
	before               chain // chain before the current frame
}

func (v *verifier) frame(kind byte, payload []byte, s *segmentReader) error {
	defer func() { v.before = s.chain }()
	if kind == kindRecord {
		e, err := v.log.openEntry(payload)
		if err != nil {
			return fmt.Errorf("record after %d: %w", v.seq, err)
		}
		if e.Sequence != v.seq+1 {
			return fmt.Errorf("record %d is followed by record %d", v.seq, e.Sequence)
		}
		v.seq = e.Sequence
		v.records++
		return nil
	}
	c, err := decodeCheckpoint(payload)
	if err != nil {
		return err
	}
	if c.Sequence != v.seq || !bytes.Equal(c.Chain, v.before[:]) {
		return fmt.Errorf("the records up to %d are not those that checkpoint %d vouches for", v.seq, c.Sequence)
	}
	if !ecdsa.VerifyASN1(v.pub, c.digest(), c.Signature) {
		return fmt.Errorf("the signature of the checkpoint behind record %d is wrong", v.seq)
	}
	v.attested = c.Sequence
	v.checkpoints++
	return nil
}

// Query calls fn for each entry on disk that the filter chooses, oldest first unless Newest, until fn returns false.
// Records younger than 100 ms may still be in the buffer.
func (l *Log) Query(ctx context.Context, f Filter, fn func(Entry) bool) error {
	segments, err := listSegments(l.cfg.Dir)
	if err != nil {
		return err
	}
	if f.Newest {
		slices.Reverse(segments)
	}
	for _, path := range segments {
		entries, err := l.segmentEntries(ctx, path, f)
		if err != nil {
			return err
		}
		if f.Newest {
			slices.Reverse(entries)
		}
		for _, e := range entries {
			if !fn(e) {
				return nil
			}
		}
	}
	return nil
}

func (l *Log) segmentEntries(ctx context.Context, path string, f Filter) ([]Entry, error) {
	var out []Entry
	_, err := scanSegment(path, nil, true, func(kind byte, payload []byte, _ *segmentReader) error {
		if kind != kindRecord {
			return ctx.Err()
		}
		e, err := l.openEntry(payload)
		if err != nil {
			return err
		}
		if f.match(e) {
			out = append(out, *e)
		}
		return ctx.Err()
	})
	return out, err
}
