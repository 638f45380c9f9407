// Package casemate is the module's root. It holds no code, only the tests that keep the structure: which layer may import
// which, and that each package says what it is. See ARCHITECTURE.md.
package casemate
