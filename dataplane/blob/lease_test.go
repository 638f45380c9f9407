package blob

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

const (
	leaseA = "aaaaaaaa-1111-4111-8111-111111111111"
	leaseB = "bbbbbbbb-2222-4222-8222-222222222222"
)

func outcome(status int, code string) string {
	return strings.TrimSpace(fmt.Sprintf("%d %s", status, code))
}

// at sets the service's clock.
func (f *fixture) at(now time.Time) { f.Service.now = func() time.Time { return now } }

// enterState brings the lease of target into a state, held by A where it has a holder.
func (f *fixture) enterState(target, state string, start time.Time) {
	f.t.Helper()
	f.at(start)
	if state == "available" {
		return
	}
	f.must(201, "PUT", target, "", "x-ms-lease-action", "acquire", "x-ms-lease-duration", "60", "x-ms-proposed-lease-id", leaseA)
	switch state {
	case "breaking":
		f.must(202, "PUT", target, "", "x-ms-lease-action", "break", "x-ms-lease-break-period", "30")
	case "broken":
		f.must(202, "PUT", target, "", "x-ms-lease-action", "break", "x-ms-lease-break-period", "0")
	case "expired":
		f.at(start.Add(61 * time.Second))
	}
}

// TestLeaseTables are the two tables of "Lease Blob": operations and uses by state.
func TestLeaseTables(t *testing.T) {
	ask := func(action string, h ...string) []string { return append([]string{"x-ms-lease-action", action}, h...) }
	acquire := func(id string) []string {
		return ask("acquire", "x-ms-lease-duration", "15", "x-ms-proposed-lease-id", id)
	}
	id := func(v string) []string { return []string{"x-ms-lease-id", v} }
	const lease = "?comp=lease"
	ops := []struct {
		name, method, query string
		headers             []string
		// outcomes in the states available, leased, breaking, broken and expired (held by A)
		want [5]string
	}{
		{"acquire A", "PUT", lease, acquire(leaseA), [5]string{"201", "201", "409 LeaseIsBreakingAndCannotBeAcquired", "201", "201"}},
		{"acquire B", "PUT", lease, acquire(leaseB), [5]string{"201", "409 LeaseAlreadyPresent", "409 LeaseAlreadyPresent", "201", "201"}},
		{"renew A", "PUT", lease, ask("renew", id(leaseA)...), [5]string{"409 LeaseIdMismatchWithLeaseOperation", "200", "409 LeaseIsBrokenAndCannotBeRenewed", "409 LeaseIsBrokenAndCannotBeRenewed", "200"}},
		{"renew B", "PUT", lease, ask("renew", id(leaseB)...), [5]string{"409 LeaseIdMismatchWithLeaseOperation", "409 LeaseIdMismatchWithLeaseOperation", "409 LeaseIdMismatchWithLeaseOperation", "409 LeaseIdMismatchWithLeaseOperation", "409 LeaseIdMismatchWithLeaseOperation"}},
		{"change A to B", "PUT", lease, ask("change", "x-ms-lease-id", leaseA, "x-ms-proposed-lease-id", leaseB), [5]string{"409 LeaseNotPresentWithLeaseOperation", "200", "409 LeaseIsBreakingAndCannotBeChanged", "409 LeaseNotPresentWithLeaseOperation", "409 LeaseNotPresentWithLeaseOperation"}},
		{"release A", "PUT", lease, ask("release", id(leaseA)...), [5]string{"409 LeaseIdMismatchWithLeaseOperation", "200", "200", "200", "200"}},
		{"release B", "PUT", lease, ask("release", id(leaseB)...), [5]string{"409 LeaseIdMismatchWithLeaseOperation", "409 LeaseIdMismatchWithLeaseOperation", "409 LeaseIdMismatchWithLeaseOperation", "409 LeaseIdMismatchWithLeaseOperation", "409 LeaseIdMismatchWithLeaseOperation"}},
		{"break", "PUT", lease, ask("break"), [5]string{"409 LeaseNotPresentWithLeaseOperation", "202", "202", "202", "202"}},
		{"write", "PUT", "?comp=metadata", nil, [5]string{"200", "412 LeaseIdMissing", "412 LeaseIdMissing", "200", "200"}},
		{"write A", "PUT", "?comp=metadata", id(leaseA), [5]string{"412 LeaseNotPresentWithBlobOperation", "200", "200", "412 LeaseLost", "412 LeaseLost"}},
		{"write B", "PUT", "?comp=metadata", id(leaseB), [5]string{"412 LeaseNotPresentWithBlobOperation", "412 LeaseIdMismatchWithBlobOperation", "412 LeaseIdMismatchWithBlobOperation", "412 LeaseIdMismatchWithBlobOperation", "412 LeaseIdMismatchWithBlobOperation"}},
		{"read", "GET", "", nil, [5]string{"200", "200", "200", "200", "200"}},
		{"read A", "GET", "", id(leaseA), [5]string{"412 LeaseNotPresentWithBlobOperation", "200", "200", "412 LeaseLost", "412 LeaseLost"}},
		{"read B", "GET", "", id(leaseB), [5]string{"412 LeaseNotPresentWithBlobOperation", "412 LeaseIdMismatchWithBlobOperation", "412 LeaseIdMismatchWithBlobOperation", "412 LeaseIdMismatchWithBlobOperation", "412 LeaseIdMismatchWithBlobOperation"}},
	}
	f := newFixture(t)
	f.container("cc1")
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for i, op := range ops {
		for j, state := range []string{"available", "leased", "breaking", "broken", "expired"} {
			target := fmt.Sprintf("/cc1/b%d-%d", i, j)
			f.at(start)
			f.upload(target, "x")
			f.enterState(target+lease, state, start)
			if got := f.must(200, "HEAD", target, "").Header().Get("x-ms-lease-state"); got != state {
				t.Fatalf("the state is %s, want %s", got, state)
			}
			w := f.do(op.method, target+op.query, "", op.headers...)
			if got := outcome(w.Code, w.Header().Get("x-ms-error-code")); got != op.want[j] {
				t.Errorf("%s while %s = %s, want %s", op.name, state, got, op.want[j])
			}
		}
	}
}

// TestLeasesGuardEveryWrite: no operation that changes a leased blob or its uncommitted blocks goes on without the lease.
func TestLeasesGuardEveryWrite(t *testing.T) {
	f := newFixture(t)
	f.container("cc1")
	f.upload("/cc1/b", "locked")
	f.must(201, "PUT", blockURL("/cc1/b", 1), "staged")
	f.must(201, "PUT", "/cc1/b?comp=lease", "", "x-ms-lease-action", "acquire", "x-ms-lease-duration", "-1", "x-ms-proposed-lease-id", leaseA)
	writes := []struct{ method, target, body string }{
		{"PUT", "/cc1/b", "x"},
		{"PUT", blockURL("/cc1/b", 1), "x"},
		{"PUT", "/cc1/b?comp=blocklist", listOf("Latest", 1)},
		{"PUT", "/cc1/b?comp=properties", ""},
		{"PUT", "/cc1/b?comp=metadata", ""},
		{"DELETE", "/cc1/b", ""},
	}
	for _, q := range writes {
		for id, code := range map[string]string{"": "LeaseIdMissing", leaseB: "LeaseIdMismatchWithBlobOperation"} {
			w := f.do(q.method, q.target, q.body, "x-ms-blob-type", "BlockBlob", "x-ms-lease-id", id)
			if w.Code != 412 || w.Header().Get("x-ms-error-code") != code {
				t.Errorf("%s %s with lease %q = %d %s, want %s", q.method, q.target, id, w.Code, w.Header().Get("x-ms-error-code"), code)
			}
		}
	}
	f.restart() // leases are as durable as blobs
	if got := f.must(200, "GET", "/cc1/b", "").Body.String(); got != "locked" {
		t.Fatalf("the leased blob holds %q", got)
	}
	for _, q := range writes {
		w := f.do(q.method, q.target, q.body, "x-ms-blob-type", "BlockBlob", "x-ms-lease-id", leaseA)
		if w.Code >= 300 {
			t.Errorf("%s %s by the holder = %d %s", q.method, q.target, w.Code, w.Body)
		}
		if h := f.do("HEAD", "/cc1/b", ""); q.method != "DELETE" && h.Header().Get("x-ms-lease-duration") != "infinite" {
			t.Errorf("after %s %s the lease is %s", q.method, q.target, h.Header().Get("x-ms-lease-state"))
		}
	}
}

func TestContainerLease(t *testing.T) {
	f := newFixture(t)
	f.container("cc1")
	const lease = "/cc1?restype=container&comp=lease"
	f.must(412, "DELETE", "/cc1?restype=container", "", "x-ms-lease-id", leaseA)
	w := f.must(201, "PUT", lease, "", "x-ms-lease-action", "acquire", "x-ms-lease-duration", "-1")
	id := w.Header().Get("x-ms-lease-id")
	f.upload("/cc1/b", "a container's lease locks its removal only")
	f.must(200, "PUT", "/cc1?restype=container&comp=metadata", "", "x-ms-meta-a", "1")
	if w := f.must(412, "DELETE", "/cc1?restype=container", ""); w.Header().Get("x-ms-error-code") != "LeaseIdMissing" {
		t.Errorf("deleting without the lease: %s", w.Header().Get("x-ms-error-code"))
	}
	if w := f.must(412, "GET", "/cc1?restype=container", "", "x-ms-lease-id", leaseB); w.Header().Get("x-ms-error-code") != "LeaseIdMismatchWithContainerOperation" {
		t.Errorf("reading under another lease: %s", w.Header().Get("x-ms-error-code"))
	}
	if s := f.must(200, "GET", "/?comp=list", "").Body.String(); !strings.Contains(s, "<LeaseStatus>locked</LeaseStatus><LeaseState>leased</LeaseState><LeaseDuration>infinite</LeaseDuration>") {
		t.Errorf("list = %s", s)
	}
	f.must(202, "DELETE", "/cc1?restype=container", "", "x-ms-lease-id", strings.ToUpper(id))
}

func TestLeaseRefusals(t *testing.T) {
	f := newFixture(t)
	f.container("cc1")
	f.upload("/cc1/b", "x")
	tests := []struct {
		headers []string
		want    string
	}{
		{nil, "400 MissingRequiredHeader"},
		{[]string{"x-ms-lease-action", "steal"}, "400 InvalidHeaderValue"},
		{[]string{"x-ms-lease-action", "acquire"}, "400 MissingRequiredHeader"},
		{[]string{"x-ms-lease-action", "acquire", "x-ms-lease-duration", "14"}, "400 InvalidHeaderValue"},
		{[]string{"x-ms-lease-action", "acquire", "x-ms-lease-duration", "61"}, "400 InvalidHeaderValue"},
		{[]string{"x-ms-lease-action", "acquire", "x-ms-lease-duration", "15", "x-ms-proposed-lease-id", "mine"}, "400 InvalidHeaderValue"},
		{[]string{"x-ms-lease-action", "renew"}, "400 MissingRequiredHeader"},
		{[]string{"x-ms-lease-action", "change", "x-ms-lease-id", leaseA}, "400 MissingRequiredHeader"},
		{[]string{"x-ms-lease-action", "break", "x-ms-lease-break-period", "61"}, "400 InvalidHeaderValue"},
		{[]string{"x-ms-lease-action", "acquire", "x-ms-lease-duration", "15", "If-Match", `"0x1"`}, "412 ConditionNotMet"},
	}
	for _, tt := range tests {
		w := f.do("PUT", "/cc1/b?comp=lease", "", tt.headers...)
		if got := outcome(w.Code, w.Header().Get("x-ms-error-code")); got != tt.want {
			t.Errorf("%v = %s, want %s", tt.headers, got, tt.want)
		}
	}
	f.must(404, "PUT", "/cc1/none?comp=lease", "", "x-ms-lease-action", "break")
}

// TestLeaseHolders checks at random what a lease is for: between acquiring and the end of the lease, whatever others try,
// none but the holder writes, and never do two hold it.
func TestLeaseHolders(t *testing.T) {
	ids := []string{leaseA, leaseB}
	rapid.Check(t, func(rt *rapid.T) {
		now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		var cur *lease
		holder, until := "", time.Time{} // the oracle: who may write, until when
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 20).Draw(rt, "pass")) * time.Second)
			q := leaseAsk{action: rapid.SampledFrom([]string{"acquire", "renew", "change", "release", "break"}).Draw(rt, "action"),
				id: rapid.SampledFrom(ids).Draw(rt, "id"), proposed: rapid.SampledFrom(ids).Draw(rt, "proposed"),
				duration: rapid.SampledFrom([]int{15, 60, infiniteLease}).Draw(rt, "duration"), period: rapid.SampledFrom([]int{-1, 0, 10}).Draw(rt, "period")}
			if !now.Before(until) {
				holder = ""
			}
			next, wait, err := q.apply(cur, now)
			if err == nil {
				if holder != "" && q.action == "acquire" && q.proposed != holder {
					rt.Fatalf("%s took the lease of %s", q.proposed, holder)
				}
				cur = next
				switch q.action {
				case "acquire", "renew":
					holder, until = cur.ID, now.Add(time.Duration(cur.Duration)*time.Second)
					if cur.Duration == infiniteLease {
						until = now.AddDate(100, 0, 0)
					}
				case "change":
					holder = q.proposed
				case "release":
					holder = ""
				case "break":
					if end := now.Add(time.Duration(wait) * time.Second); end.Before(until) {
						until = end
					}
				}
			}
			for _, id := range append(ids, "") {
				may := cur.allow(now, id, true, leaseOfBlob) == nil
				if held := holder != "" && now.Before(until); held != cur.held(now) || (held && may != (id == holder)) || (!held && may != (id == "")) {
					rt.Fatalf("%s writes: %v, while %q holds until %s (now %s): %+v", id, may, holder, until, now, cur)
				}
			}
		}
	})
}
