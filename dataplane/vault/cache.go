package vault

import (
	"sync"

	"casemate.dev/store"
)

// cacheSize bounds how many parsed keys stay in memory.
const cacheSize = 1024

// cache keeps parsed keys, because parsing and checking an RSA key costs more than using it. An entry is valid only for
// the revision of the record it was made from, which each use reads from the store: what changed is never served, also
// when another process changed it.
type cache struct {
	mu      sync.RWMutex
	entries map[string]cached // by store key
}

type cached struct {
	revision store.Revision
	key      *key
}

func newCache() *cache { return &cache{entries: map[string]cached{}} }

func (c *cache) get(storeKey string, rev store.Revision) *key {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if e, ok := c.entries[storeKey]; ok && e.revision == rev {
		return e.key
	}
	return nil
}

func (c *cache) put(storeKey string, rev store.Revision, k *key) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if old, ok := c.entries[storeKey]; ok && old.revision > rev {
		return
	}
	if len(c.entries) >= cacheSize {
		for victim := range c.entries { // map order is random enough
			delete(c.entries, victim)
			break
		}
	}
	c.entries[storeKey] = cached{revision: rev, key: k}
}
