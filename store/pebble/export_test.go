package pebble

// WithMemTable makes the engine flush after about size bytes.
func (c Config) WithMemTable(size uint64) Config {
	c.memTableSize = size
	return c
}
