// Command casemate is the whole platform in one binary: the server, the demonstration, the agent inside nodes, and the tools
// of an operator.
//
// It is for the person who runs the platform. This package joins all planes and providers (app*.go, bottom-up), and each
// command is one small file. What a user types is trusted as far as the operating system trusts that user; everything that
// comes over a socket goes through the gateway. It decides nothing itself.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"casemate.dev/cmd/casemate/demo"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := &cobra.Command{Use: "casemate", Short: "A secure machine-learning platform that you run yourself", SilenceUsage: true, SilenceErrors: true}
	root.AddCommand(serveCommand(), agentCommand(), verifyCommand(), imageCommand(), demo.Command(), demo.DialCommand())
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "casemate:", err)
		os.Exit(1)
	}
}
