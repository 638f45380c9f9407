package main

import (
	"encoding/json"
	"errors"
	"log/slog"

	"github.com/spf13/cobra"
)

// verifyCommand checks a stopped platform's audit trail from its first record to its last.
func verifyCommand() *cobra.Command {
	cfg := defaults()
	cfg.Listen, cfg.DNS = "127.0.0.1:0", ""
	cmd := &cobra.Command{Use: "verify", Short: "Check the audit trail of a stopped platform", Args: cobra.NoArgs}
	cmd.Flags().StringVar(&cfg.Data, "data", "", "directory of the platform (required)")
	cmd.Flags().StringVar(&cfg.Root, "root", "", "root of trust, as for serve")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := cfg.validate(); err != nil {
			return err
		}
		rep, err := verifyTrail(cmd.Context(), cfg, slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		if err := json.NewEncoder(cmd.OutOrStdout()).Encode(rep); err != nil {
			return err
		}
		if !rep.Intact {
			return errors.New("the audit trail was changed: " + rep.Fault)
		}
		return nil
	}
	return cmd
}
