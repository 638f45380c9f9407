package mainjob

import (
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"casemate.dev/test/harness"
)

// BenchmarkSubmit measures what a person waits for: from sending the PUT of a job through the public interface to the
// first line of the job's own code on its fresh node, the image being there. It reports the median in milliseconds.
func BenchmarkSubmit(b *testing.B) {
	lab := harness.NewLab(b, harness.Options{}, 1)
	warm := lab.Submit(b, "warm", "date +%s%N", "") // pulls and unpacks the image
	lab.Await(b, warm, "Completed")
	var waits []time.Duration
	for i := 0; b.Loop(); i++ {
		sent := time.Now()
		job := lab.Submit(b, fmt.Sprintf("measured-%d", i), "printf 'first %s\\n' $(date +%s%N)", "")
		nanos, err := strconv.ParseInt(lab.AwaitLog(b, job, "first "), 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		waits = append(waits, time.Unix(0, nanos).Sub(sent))
		lab.Await(b, job, "Completed")
	}
	slices.Sort(waits)
	b.ReportMetric(float64(waits[len(waits)/2].Microseconds())/1e3, "p50-ms")
	b.ReportMetric(float64(waits[len(waits)-1].Microseconds())/1e3, "max-ms")
}
