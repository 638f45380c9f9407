package blob

import (
	"context"
	"math"
	"time"

	"casemate.dev/resource"
	"casemate.dev/store"
)

// leaseState is a lease's state as "Lease Blob" names it. What is recorded is what was asked for; which state that is
// follows from the time.
type leaseState string

const (
	leaseAvailable leaseState = "available"
	leaseLeased    leaseState = "leased"
	leaseExpired   leaseState = "expired"
	leaseBreaking  leaseState = "breaking"
	leaseBroken    leaseState = "broken"
)

const infiniteLease = -1

// lease is the recorded lease of a blob or container.
type lease struct {
	ID       string    `json:"id"`
	Duration int       `json:"duration"`          // seconds, or infiniteLease
	End      time.Time `json:"end,omitzero"`      // of the lease; of an infinite one, none
	Broken   time.Time `json:"brokenAt,omitzero"` // when a break ends it; zero: it was not broken
}

func (l *lease) state(now time.Time) leaseState {
	switch {
	case l == nil:
		return leaseAvailable
	case !l.Broken.IsZero() && !now.Before(l.Broken):
		return leaseBroken
	case !l.Broken.IsZero():
		return leaseBreaking
	case l.Duration != infiniteLease && !now.Before(l.End):
		return leaseExpired
	}
	return leaseLeased
}

// held says whether the lease keeps others from writing.
func (l *lease) held(now time.Time) bool {
	s := l.state(now)
	return s == leaseLeased || s == leaseBreaking
}

// after is the lease that remains when what it locked has been changed: a lease that has ended does not survive the
// change, so that its old holder, who no longer knows the contents, cannot renew it.
func (l *lease) after(now time.Time) *lease {
	if l.held(now) {
		return l
	}
	return nil
}

// shown is what properties and lists tell: status, state and (while leased) duration.
func (l *lease) shown(now time.Time) (status string, state leaseState, duration string) {
	state = l.state(now)
	status = "unlocked"
	if l.held(now) {
		status = "locked"
	}
	if state == leaseLeased {
		duration = "fixed"
		if l.Duration == infiniteLease {
			duration = "infinite"
		}
	}
	return status, state, duration
}

// leasable is the noun in the codes for what is leased.
type leasable string

const (
	leaseOfBlob      leasable = "Blob"
	leaseOfContainer leasable = "Container"
)

// allow decides by the lease id of a request (empty: none); write says that the operation needs the lease while somebody
// holds it. ("Lease Blob", outcomes of use attempts by lease state.)
func (l *lease) allow(now time.Time, id string, write bool, of leasable) error {
	state := l.state(now)
	switch {
	case id == "" && (!write || !l.held(now)):
		return nil
	case id == "":
		return resource.Errorf(412, "LeaseIdMissing", "There is currently a lease on the %s and no lease ID was specified in the request.", of)
	case state == leaseAvailable:
		return resource.Errorf(412, "LeaseNotPresentWith"+string(of)+"Operation", "There is currently no lease on the %s.", of)
	case !sameLease(l.ID, id):
		return resource.Errorf(412, "LeaseIdMismatchWith"+string(of)+"Operation", "The lease ID specified did not match the lease ID for the %s.", of)
	case state == leaseExpired || state == leaseBroken:
		return resource.Errorf(412, "LeaseLost", "A lease ID was specified, but the lease for the %s has expired.", of)
	}
	return nil
}

// leaseAsk is one Lease Blob or Lease Container request.
type leaseAsk struct {
	action   string // acquire, renew, change, release, break
	id       string
	proposed string
	duration int // of acquire
	period   int // of break, seconds; -1: not given
}

func errLease(code, message string) *resource.Error { return resource.Errorf(409, code, "%s", message) }

func errLeaseMismatch() *resource.Error {
	return errLease("LeaseIdMismatchWithLeaseOperation", "The lease ID specified did not match the lease ID for the resource.")
}

func errNoLease() *resource.Error {
	return errLease("LeaseNotPresentWithLeaseOperation", "There is currently no lease on the resource.")
}

// apply gives the lease after the operation (nil: none), and for break the seconds until the lease is over. cur is not
// changed. ("Lease Blob", outcomes of lease operations by lease state.)
func (q leaseAsk) apply(cur *lease, now time.Time) (next *lease, wait int, err error) {
	switch q.action {
	case "acquire":
		next, err = q.acquire(cur, now)
	case "renew":
		next, err = q.renew(cur, now)
	case "change":
		next, err = q.change(cur, now)
	case "release":
		if cur == nil || !sameLease(cur.ID, q.id) {
			err = errLeaseMismatch()
		}
	case "break":
		return q.broken(cur, now)
	}
	return next, 0, err
}

func newLease(id string, duration int, now time.Time) *lease {
	l := &lease{ID: id, Duration: duration}
	if duration != infiniteLease {
		l.End = now.Add(time.Duration(duration) * time.Second)
	}
	return l
}

func (q leaseAsk) acquire(cur *lease, now time.Time) (*lease, error) {
	switch cur.state(now) {
	case leaseLeased:
		if !sameLease(cur.ID, q.proposed) {
			return nil, errLease("LeaseAlreadyPresent", "There is already a lease present.")
		}
	case leaseBreaking:
		if !sameLease(cur.ID, q.proposed) {
			return nil, errLease("LeaseAlreadyPresent", "There is already a lease present.")
		}
		return nil, errLease("LeaseIsBreakingAndCannotBeAcquired", "The lease ID matched, but the lease is currently in breaking state and cannot be acquired until it is broken.")
	}
	return newLease(q.proposed, q.duration, now), nil
}

func (q leaseAsk) renew(cur *lease, now time.Time) (*lease, error) {
	switch state := cur.state(now); {
	case cur == nil || !sameLease(cur.ID, q.id):
		return nil, errLeaseMismatch()
	case state == leaseBreaking || state == leaseBroken:
		return nil, errLease("LeaseIsBrokenAndCannotBeRenewed", "The lease ID matched, but the lease has been broken explicitly and cannot be renewed.")
	}
	return newLease(cur.ID, cur.Duration, now), nil
}

func (q leaseAsk) change(cur *lease, now time.Time) (*lease, error) {
	switch cur.state(now) {
	case leaseLeased, leaseBreaking:
	default:
		return nil, errNoLease()
	}
	// A change that was done already succeeds again, for clients that saw no answer.
	if !sameLease(cur.ID, q.id) && !sameLease(cur.ID, q.proposed) {
		return nil, errLeaseMismatch()
	}
	if cur.state(now) == leaseBreaking {
		return nil, errLease("LeaseIsBreakingAndCannotBeChanged", "The lease ID matched, but the lease is currently in breaking state and cannot be changed.")
	}
	next := *cur
	next.ID = q.proposed
	return &next, nil
}

func (q leaseAsk) broken(cur *lease, now time.Time) (*lease, int, error) {
	if cur == nil {
		return nil, 0, errNoLease()
	}
	next := *cur
	var left time.Duration
	switch cur.state(now) {
	case leaseLeased:
		if left = cur.End.Sub(now); cur.Duration == infiniteLease {
			left = time.Duration(max(q.period, 0)) * time.Second
		}
	case leaseBreaking:
		left = cur.Broken.Sub(now)
	}
	if q.period >= 0 {
		left = min(left, time.Duration(q.period)*time.Second)
	}
	next.Broken = now.Add(left)
	return &next, int(math.Ceil(left.Seconds())), nil
}

// leaseBlob runs a lease operation. ETag and modification time stay: a lease is not a change of the blob.
func (s *Service) leaseBlob(ctx context.Context, a *account, container, name string, cond conditions, q leaseAsk) (rec *blobRecord, wait int, err error) {
	err = s.update(ctx, a, container, func(t store.Txn, c *containerRecord) error {
		if rec, err = a.blob(t, c.ID, name); err != nil {
			return err
		}
		if rec == nil {
			return errBlobNotFound(name)
		}
		if err := cond.change(rec.stamp); err != nil {
			return err
		}
		if err := cond.checkTags(rec); err != nil {
			return err
		}
		next, left, err := q.apply(rec.Lease, s.now().UTC())
		if err != nil {
			return err
		}
		rec.Lease, wait = next, left
		return a.save(t, blobKey(a.id, c.ID, name), rec)
	})
	return rec, wait, err
}

func (s *Service) leaseContainer(ctx context.Context, a *account, container string, cond conditions, q leaseAsk) (rec *containerRecord, wait int, err error) {
	err = s.update(ctx, a, container, func(t store.Txn, c *containerRecord) error {
		if err := cond.change(c.stamp); err != nil {
			return err
		}
		next, left, err := q.apply(c.Lease, s.now().UTC())
		if err != nil {
			return err
		}
		c.Lease, wait, rec = next, left, c
		return a.save(t, containerKey(a.id, container), c)
	})
	return rec, wait, err
}
