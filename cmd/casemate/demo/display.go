package demo

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/sys/unix"
)

// display writes progress for a person: with colour and bars on a terminal, plain lines elsewhere.
type display struct {
	out io.Writer
	tty bool
}

func newDisplay(out io.Writer) *display {
	f, ok := out.(*os.File)
	if ok {
		_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
		ok = err == nil && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	}
	return &display{out: out, tty: ok}
}

const (
	bold  = "1"
	red   = "31"
	green = "32"
	faint = "2"
)

func (d *display) paint(style, s string) string {
	if !d.tty {
		return s
	}
	return "\x1b[" + style + "m" + s + "\x1b[0m"
}

func (d *display) begin(number int, name string) {
	fmt.Fprintf(d.out, "%s %s\n", d.paint(faint, fmt.Sprintf("%2d", number)), d.paint(bold, name))
}

func (d *display) fact(f fact) {
	mark := d.paint(green, "ok  ")
	if !f.OK {
		mark = d.paint(red, "FAIL")
	}
	fmt.Fprintf(d.out, "   %s %s: %s\n", mark, f.Tried, f.Saw)
}

func (d *display) end(o outcome) {
	if o.Error != "" {
		fmt.Fprintf(d.out, "   %s %s\n", d.paint(red, "FAIL"), o.Error)
	}
	fmt.Fprintf(d.out, "   %s\n", d.paint(faint, fmt.Sprintf("%.1f s", float64(o.Millis)/1000)))
}

func (d *display) say(format string, args ...any) { fmt.Fprintf(d.out, "   "+format+"\n", args...) }

func (d *display) summary(rep report, state *demo, took time.Duration) {
	passed := 0
	for _, o := range rep.Steps {
		if o.OK {
			passed++
		}
	}
	style, word := green, "All is true"
	if !rep.OK {
		style, word = red, "Not all is true"
	}
	fmt.Fprintf(d.out, "\n%s: %d of %d steps in %.0f s.", d.paint(style, word), passed, len(rep.Steps), took.Seconds())
	if state.scores.count > 0 {
		fmt.Fprintf(d.out, " %d held-out patients: accuracy %.3f, AUC %.4f.", state.scores.count, state.scores.accuracy, state.scores.auc)
	}
	fmt.Fprintln(d.out)
}

// bar is the progress of one long piece of work.
type bar struct {
	d     *display
	p     *mpb.Progress
	b     *mpb.Bar
	began time.Time
	said  time.Time
	what  string
}

// bar shows a bar; total 0 means that nobody knows how long it takes.
func (d *display) bar(what string, total int64, bytes bool) *bar {
	b := &bar{d: d, began: time.Now(), said: time.Now(), what: what}
	if !d.tty {
		d.say("… %s", what)
		return b
	}
	b.p = mpb.New(mpb.WithOutput(d.out), mpb.WithWidth(36), mpb.WithRefreshRate(120*time.Millisecond))
	name := mpb.PrependDecorators(decor.Name("   "+what+" "), decor.Elapsed(decor.ET_STYLE_GO))
	switch {
	case total == 0:
		b.b = b.p.New(0, mpb.SpinnerStyle(), name, mpb.BarRemoveOnComplete())
	case bytes:
		b.b = b.p.AddBar(total, name, mpb.AppendDecorators(decor.CountersKibiByte("% .1f / % .1f")), mpb.BarRemoveOnComplete())
	default:
		b.b = b.p.AddBar(total, name, mpb.AppendDecorators(decor.CountersNoUnit("%d / %d")), mpb.BarRemoveOnComplete())
	}
	return b
}

// set says how far it is.
func (b *bar) set(n int64) {
	if b.b != nil {
		b.b.SetCurrent(n)
	}
}

// grow changes what is known of the whole.
func (b *bar) grow(total int64) {
	if b.b != nil && total > 0 {
		b.b.SetTotal(total, false)
	}
}

// tick tells people without a terminal that it goes on.
func (b *bar) tick(state string) {
	if b.b == nil && time.Since(b.said) > 10*time.Second {
		b.said = time.Now()
		b.d.say("… %s: %s after %.0f s", b.what, strings.ToLower(state), time.Since(b.began).Seconds())
	}
}

// done takes the bar away; doing it again does nothing.
func (b *bar) done() {
	if b.b != nil {
		b.b.SetTotal(-1, true)
		b.b.Abort(true)
		b.p.Wait()
		b.b = nil
	}
}
