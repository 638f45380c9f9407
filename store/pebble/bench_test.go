package pebble_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"casemate.dev/store"
	"casemate.dev/store/pebble"
	"casemate.dev/store/storetest"
)

func openBench(b *testing.B, dir string, cipher *storetest.Cipher) *pebble.Store {
	b.Helper()
	s, err := pebble.Open(pebble.Config{Dir: dir, Cipher: cipher, FreeReserve: -1})
	if err != nil {
		b.Fatal(err)
	}
	return s
}

// A record of 512 bytes, durable when Update returns.
func BenchmarkInsertDurable(b *testing.B) {
	for _, writers := range []int{1, 64} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			s := openBench(b, b.TempDir(), storetest.NewCipher())
			value := make([]byte, 512)
			var n atomic.Int64
			b.SetParallelism(writers) // times GOMAXPROCS; see below
			insert := func() {
				key := store.Key("bench", fmt.Sprint(n.Add(1)))
				err := s.Update(context.Background(), func(tx store.Txn) error { tx.Put(key, value); return nil })
				if err != nil {
					b.Error(err)
				}
			}
			if writers == 1 {
				for b.Loop() {
					insert()
				}
			} else {
				each := make(chan struct{}, writers) // exactly so many at once
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						each <- struct{}{}
						insert()
						<-each
					}
				})
			}
			b.StopTimer()
			if err := s.Close(); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// One View and Get of 512 bytes among 100,000 records.
func BenchmarkGet(b *testing.B) {
	const records = 100_000
	dir, cipher := b.TempDir(), storetest.NewCipher()
	s := openBench(b, dir, cipher)
	value := make([]byte, 512)
	for i := 0; i < records; i += 1000 {
		err := s.Update(context.Background(), func(tx store.Txn) error {
			for j := i; j < i+1000; j++ {
				tx.Put(store.Key("bench", fmt.Sprint(j)), value)
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	s = openBench(b, dir, cipher)
	rng := rand.New(rand.NewPCG(1, 1))
	for b.Loop() {
		key := store.Key("bench", fmt.Sprint(rng.IntN(records)))
		err := s.View(context.Background(), func(r store.Reader) error {
			_, err := r.Get(key)
			return err
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
}

// Opening a store whose log holds 10,000 records to replay, at first.
func BenchmarkOpen(b *testing.B) {
	dir, cipher := b.TempDir(), storetest.NewCipher()
	s := openBench(b, dir, cipher)
	for i := range 10 {
		err := s.Update(context.Background(), func(tx store.Txn) error {
			for j := range 1000 {
				tx.Put(store.Key("bench", fmt.Sprint(i), fmt.Sprint(j)), make([]byte, 512))
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := openBench(b, dir, cipher).Close(); err != nil {
			b.Fatal(err)
		}
	}
}
