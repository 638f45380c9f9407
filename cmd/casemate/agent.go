package main

import (
	"os"

	"github.com/spf13/cobra"

	"casemate.dev/dataplane/runtime/agent"
)

// agentCommand is process 1 of a node. The platform starts it; people do not.
func agentCommand() *cobra.Command {
	return &cobra.Command{Use: "agent", Hidden: true, DisableFlagParsing: true, RunE: func(cmd *cobra.Command, args []string) error {
		os.Exit(agent.Main(cmd.Context(), args, os.Stdout, os.Stderr))
		return nil
	}}
}
