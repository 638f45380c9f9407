package demo

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/csv"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// The data is the Wisconsin diagnostic breast cancer set as scikit-learn ships it: a line with counts and class names, then 30 measurements
// and the class of each patient, 0 for malignant and 1 for benign.
const (
	patientCount = 569
	measureCount = 30
)

// patient is one row.
type patient struct {
	measurements []float64
	malignant    bool
}

// readPatients parses scikit-learn's file.
func readPatients(raw []byte) ([]patient, error) {
	r := csv.NewReader(bytes.NewReader(raw))
	r.FieldsPerRecord = -1 // the first line is shorter
	rows, err := r.ReadAll()
	if err != nil {
		return nil, fmt.Errorf("reading the data set: %w", err)
	}
	if len(rows) != patientCount+1 || len(rows[0]) < 4 || rows[0][2] != "malignant" {
		return nil, fmt.Errorf("reading the data set: it has %d lines and is not the file that was expected", len(rows))
	}
	var all []patient
	for i, row := range rows[1:] {
		if len(row) != measureCount+1 {
			return nil, fmt.Errorf("reading the data set: line %d has %d fields", i+2, len(row))
		}
		p := patient{malignant: row[measureCount] == "0"}
		for _, s := range row[:measureCount] {
			v, err := strconv.ParseFloat(s, 64)
			if err != nil {
				return nil, fmt.Errorf("reading the data set: line %d: %w", i+2, err)
			}
			p.measurements = append(p.measurements, v)
		}
		all = append(all, p)
	}
	return all, nil
}

// writePatients makes the file that is uploaded: with a header, a number for each patient, and a note that only the last row has. That row
// is the canary: a copy of the first patient that training leaves out, marked so that it can be searched for.
func writePatients(all []patient, mark string) []byte {
	var b bytes.Buffer
	b.WriteString("patient")
	for i := range measureCount {
		fmt.Fprintf(&b, ",m%02d", i)
	}
	b.WriteString(",malignant,note\n")
	for i, p := range append(slices.Clone(all), all[0]) {
		fmt.Fprintf(&b, "%d", i+1)
		for _, v := range p.measurements {
			b.WriteString("," + strconv.FormatFloat(v, 'g', -1, 64))
		}
		note := ""
		if i == len(all) {
			note = mark
		}
		fmt.Fprintf(&b, ",%d,%s\n", map[bool]int{true: 1}[p.malignant], note)
	}
	return b.Bytes()
}

// canary is a random word that occurs nowhere by chance.
type canary string

func newCanary() canary {
	b := make([]byte, 24)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	return canary(hex.EncodeToString(b))
}

// mark is the canary as it is put into one place; every mark holds the whole word.
func (c canary) mark(place string) string { return "canary-" + place + "-" + string(c) }

// needle is something that must not be found.
type needle struct {
	what  string
	bytes []byte
}

// needles are the canary as it would look in the usual disguises: as it is, in UTF-16, in hexadecimal, in base64 at any offset.
func (c canary) needles() []needle {
	word := string(c)
	wide := make([]byte, 0, 2*len(word))
	for _, b := range []byte(word) {
		wide = append(wide, b, 0)
	}
	out := []needle{{"canary", []byte(word)}, {"canary in UTF-16", wide}, {"canary in hexadecimal", []byte(hex.EncodeToString([]byte(word)))}}
	for offset := range 3 {
		// Of the encoding of "??word", the characters that depend on the word alone.
		s := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("?", offset) + word))
		from := (offset*8 + 5) / 6
		to := (offset + len(word)) * 8 / 6
		out = append(out, needle{"canary in base64", []byte(s[from:to])})
	}
	return out
}
