package vault

import (
	"regexp"
	"strconv"
	"time"
)

// duration is an ISO 8601 duration of the form that rotation policies use, such as P90D, P1Y10D or PT48H. Years and months
// are those of the calendar.
type duration struct {
	years, months, days int
	clock               time.Duration
}

var durationPattern = regexp.MustCompile(`^P(?:(\d{1,4})Y)?(?:(\d{1,4})M)?(?:(\d{1,4})W)?(?:(\d{1,5})D)?(?:T(?:(\d{1,6})H)?(?:(\d{1,7})M)?(?:(\d{1,9})S)?)?$`)

// parseDuration reads a duration of at least one second.
func parseDuration(s string) (duration, error) {
	m := durationPattern.FindStringSubmatch(s)
	if m == nil || s[len(s)-1] == 'T' {
		return duration{}, badParameter("'%s' is not a duration in ISO 8601 format, such as P90D.", clip(s, 40))
	}
	n := func(i int) int {
		v, _ := strconv.Atoi(m[i]) // digits only, few; an absent part is 0
		return v
	}
	d := duration{years: n(1), months: n(2), days: 7*n(3) + n(4)}
	d.clock = time.Duration(n(5))*time.Hour + time.Duration(n(6))*time.Minute + time.Duration(n(7))*time.Second
	if d == (duration{}) {
		return d, badParameter("The duration '%s' is empty.", clip(s, 40))
	}
	return d, nil
}

// after and before give the time that lies d from t.
func (d duration) after(t time.Time) time.Time {
	return t.UTC().AddDate(d.years, d.months, d.days).Add(d.clock)
}

func (d duration) before(t time.Time) time.Time {
	return t.UTC().AddDate(-d.years, -d.months, -d.days).Add(-d.clock)
}

// length is d in days of 24 hours, counting 365 to a year and 30 to a month, as limits are stated.
func (d duration) length() time.Duration {
	return time.Duration(365*d.years+30*d.months+d.days)*24*time.Hour + d.clock
}
