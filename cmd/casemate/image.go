package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"casemate.dev/client/image"
)

// packFormat changes when the same root file system would give another digest than before.
const packFormat = "1"

// imageCommand holds what building curated images needs.
func imageCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "image", Short: "Work with container images"}
	cmd.AddCommand(packCommand())
	return cmd
}

// packCommand turns a root file system into an OCI image layout, reproducibly.
func packCommand() *cobra.Command {
	var rootfs, tag, out string
	var version bool
	cmd := &cobra.Command{Use: "pack", Short: "Pack a root file system as an OCI image layout", Args: cobra.NoArgs}
	cmd.Flags().StringVar(&rootfs, "rootfs", "", "tar of the root file system")
	cmd.Flags().StringVar(&tag, "tag", "", "name of the image in the layout, such as casemate/sklearn:1")
	cmd.Flags().StringVar(&out, "out", "", "directory to make")
	cmd.Flags().BoolVar(&version, "version", false, "print the version of the packing format")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if version {
			fmt.Fprintln(cmd.OutOrStdout(), packFormat)
			return nil
		}
		f, err := os.Open(rootfs)
		if err != nil {
			return fmt.Errorf("opening the root file system: %w", err)
		}
		defer f.Close()
		created := time.Unix(0, 0)
		if s := os.Getenv("SOURCE_DATE_EPOCH"); s != "" {
			n, err := strconv.ParseInt(s, 10, 64)
			if err != nil {
				return fmt.Errorf("reading SOURCE_DATE_EPOCH: %w", err)
			}
			created = time.Unix(n, 0)
		}
		digest, err := image.Pack(f, out, image.Options{Tag: tag, Architecture: runtime.GOARCH, Created: created})
		if err != nil {
			return err
		}
		fmt.Fprintln(cmd.OutOrStdout(), digest)
		return nil
	}
	return cmd
}
