package nft

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
)

// Counter is what a counting rule has seen.
type Counter struct {
	Chain   string
	Rule    string // its comment
	Packets uint64
	Bytes   uint64
}

// Load replaces the table of the ruleset in the namespace, in one transaction.
func Load(namespace *os.File, r Ruleset) error {
	c, err := connect(namespace)
	if err != nil {
		return err
	}
	defer c.CloseLasting()
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: r.Table}
	c.AddTable(table) // so that deleting never meets an absent table
	c.DelTable(table)
	c.AddTable(table)
	if err := encode(c, table, r); err != nil {
		return fmt.Errorf("encoding rules: %w", err)
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("loading rules: %w", err)
	}
	return nil
}

// Matches reports whether the namespace holds exactly the ruleset and no other table.
func Matches(namespace *os.File, r Ruleset) (bool, error) {
	c, err := connect(namespace)
	if err != nil {
		return false, err
	}
	defer c.CloseLasting()
	tables, err := c.ListTables()
	if err != nil {
		return false, fmt.Errorf("listing tables: %w", err)
	}
	if len(tables) != 1 || tables[0].Name != r.Table || tables[0].Family != nftables.TableFamilyINet {
		return false, nil
	}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, fmt.Errorf("listing chains: %w", err)
	}
	if len(chains) != len(r.Chains) {
		return false, nil
	}
	for _, want := range r.Chains {
		i := slices.IndexFunc(chains, func(c *nftables.Chain) bool { return c.Name == want.Name })
		if i < 0 || !sameChain(chains[i], want) {
			return false, nil
		}
		rules, err := c.GetRules(tables[0], chains[i])
		if err != nil {
			return false, fmt.Errorf("listing rules of %s: %w", want.Name, err)
		}
		if !slices.EqualFunc(rules, want.Rules, func(got *nftables.Rule, want2 Rule) bool {
			stamp, _ := userdata.GetString(got.UserData, userdata.TypeComment)
			return stamp == want2.stamp(want.Name)
		}) {
			return false, nil
		}
	}
	return true, nil
}

func sameChain(got *nftables.Chain, want Chain) bool {
	if want.Hook == NoHook {
		return got.Hooknum == nil
	}
	return got.Hooknum != nil && *got.Hooknum == *hooks[want.Hook].number &&
		got.Policy != nil && *got.Policy == nftables.ChainPolicyDrop
}

// Counters reads the counting rules of a table, in order of chain and rule.
func Counters(namespace *os.File, table string) ([]Counter, error) {
	c, err := connect(namespace)
	if err != nil {
		return nil, err
	}
	defer c.CloseLasting()
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("listing chains: %w", err)
	}
	var out []Counter
	for _, chain := range chains {
		if chain.Table.Name != table {
			continue
		}
		rules, err := c.GetRules(&nftables.Table{Family: nftables.TableFamilyINet, Name: table}, chain)
		if err != nil {
			return nil, fmt.Errorf("listing rules of %s: %w", chain.Name, err)
		}
		for _, rule := range rules {
			stamp, _ := userdata.GetString(rule.UserData, userdata.TypeComment)
			comment := stamp[:max(0, strings.LastIndex(stamp, " #"))]
			for _, e := range rule.Exprs {
				if count, ok := e.(*expr.Counter); ok {
					out = append(out, Counter{chain.Name, comment, count.Packets, count.Bytes})
				}
			}
		}
	}
	return out, nil
}

// connect opens one socket with buffers large enough for a whole transaction and its acknowledgements.
func connect(namespace *os.File) (*nftables.Conn, error) {
	const buffer = 8 << 20
	c, err := nftables.New(nftables.WithNetNSFd(int(namespace.Fd())), nftables.AsLasting(),
		nftables.WithSockOptions(func(s *netlink.Conn) error {
			if err := s.SetWriteBuffer(buffer); err != nil {
				return err
			}
			return s.SetReadBuffer(buffer)
		}))
	if err != nil {
		return nil, fmt.Errorf("connecting to nftables: %w", err)
	}
	return c, nil
}
