package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// Config is everything that can be set. Unknown fields of a file are refused.
type Config struct {
	Data   string `json:"data"`   // directory of everything; required
	Listen string `json:"listen"` // address of the public listener
	Domain string `json:"domain"` // host names are below it
	Root   string `json:"root"`   // root of trust: file:PATH or passphrase:NAME; a passphrase itself never stands here
	Store  string `json:"store"`  // pebble
	Depot  string `json:"depot"`  // file
	DNS    string `json:"dns"`    // address of the DNS responder for *.<domain>; empty: none
	Debug  bool   `json:"debug"`  // verbose log
}

func defaults() Config {
	return Config{Listen: "127.0.0.1:8443", Domain: "casemate.localhost", Store: "pebble", Depot: "file", DNS: "127.0.0.1:8053"}
}

// readConfig lays a file's settings over c.
func readConfig(c Config, path string) (Config, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return c, fmt.Errorf("reading the configuration: %w", err)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&c); err != nil {
		return c, fmt.Errorf("reading the configuration %s: %w", path, err)
	}
	if dec.More() {
		return c, fmt.Errorf("reading the configuration %s: there is something behind the object", path)
	}
	return c, nil
}

var domainPattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$`)

// validate checks all settings at once and makes paths absolute.
func (c *Config) validate() error {
	var errs []error
	if c.Data == "" {
		errs = append(errs, errors.New("--data is required: the directory in which the platform keeps everything"))
	} else if abs, err := filepath.Abs(c.Data); err == nil {
		c.Data = abs
	}
	c.Domain = strings.ToLower(c.Domain)
	if !domainPattern.MatchString(c.Domain) {
		errs = append(errs, fmt.Errorf("--domain %q is not a domain name", c.Domain))
	}
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		errs = append(errs, fmt.Errorf("--listen %q is not an address with a port, such as 127.0.0.1:8443", c.Listen))
	}
	if c.Store != "pebble" {
		errs = append(errs, fmt.Errorf("--store %q is not supported yet; use pebble", c.Store))
	}
	if c.Depot != "file" {
		errs = append(errs, fmt.Errorf("--depot %q is not supported yet; use file", c.Depot))
	}
	return errors.Join(errs...)
}
