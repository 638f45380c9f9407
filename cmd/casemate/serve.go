package main

import (
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"
)

// serveCommand runs the platform.
func serveCommand() *cobra.Command {
	flags, file := defaults(), ""
	cmd := &cobra.Command{Use: "serve", Short: "Run the platform on this machine", Args: cobra.NoArgs}
	f := cmd.Flags()
	f.StringVar(&flags.Data, "data", flags.Data, "directory in which the platform keeps everything (required)")
	f.StringVar(&flags.Listen, "listen", flags.Listen, "address of the public listener")
	f.StringVar(&flags.Domain, "domain", flags.Domain, "domain below which all host names are")
	f.StringVar(&flags.Root, "root", flags.Root, "root of trust: file:PATH, passphrase:VARIABLE or passphrase:FILE (default file:DATA/keys/root.key)")
	f.StringVar(&flags.Store, "store", flags.Store, "metadata store: pebble")
	f.StringVar(&flags.Depot, "depot", flags.Depot, "object depot: file")
	f.StringVar(&flags.DNS, "dns", flags.DNS, "address of the DNS responder for the domain; empty: none")
	f.BoolVar(&flags.Debug, "debug", flags.Debug, "log more")
	f.StringVar(&file, "config", "", "file of settings (JSON); flags that are given win")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg := flags
		if file != "" {
			fromFile, err := readConfig(defaults(), file)
			if err != nil {
				return err
			}
			cfg = overlay(fromFile, flags, f.Changed)
		}
		if err := cfg.validate(); err != nil {
			return err
		}
		return serve(cmd, cfg)
	}
	return cmd
}

// overlay lays the flags that were given over a file's settings.
func overlay(file, flags Config, changed func(string) bool) Config {
	out := file
	for name, set := range map[string]func(){
		"data": func() { out.Data = flags.Data }, "listen": func() { out.Listen = flags.Listen }, "domain": func() { out.Domain = flags.Domain },
		"root": func() { out.Root = flags.Root }, "store": func() { out.Store = flags.Store }, "depot": func() { out.Depot = flags.Depot },
		"dns": func() { out.DNS = flags.DNS }, "debug": func() { out.Debug = flags.Debug },
	} {
		if changed(name) {
			set()
		}
	}
	return out
}

func serve(cmd *cobra.Command, cfg Config) error {
	level := slog.LevelInfo
	if cfg.Debug {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	app, err := New(cmd.Context(), cfg, log)
	if err != nil {
		return err
	}
	return app.Run(cmd.Context(), func() {
		for _, n := range app.notes {
			fmt.Fprintln(cmd.OutOrStdout(), "off:", n)
		}
		fmt.Fprintf(cmd.OutOrStdout(), "ready %s in %d ms\n", app.addr.url("management"), time.Since(app.began).Milliseconds())
	})
}
