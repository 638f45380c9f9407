// Package image packs a root file system as an OCI image, pushes it to a
// registry like any other client, and reads files out of it.
//
// It is for the command line, which builds the curated images with it and
// pushes them over the public interface: there is no back door. The tar it is
// given comes from the machine's own package installer. The same tar and
// options give the same digest, whatever the clock and the machine: times
// stand in the options, and compression has one writer.
//
// It builds no root file system (images/ does), runs nothing of one, and signs
// nothing.
package image
