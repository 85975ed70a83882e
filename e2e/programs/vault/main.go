// A Vault server for tests: the real core, HTTP API and PKI engine, with storage in memory. It is built where it is
// needed and shipped nowhere (Vault's licence is the BUSL).
//
// It comes up unsealed, after it has made the requests in the setup file with its root token, as an operator would. All
// of that is forgotten when it ends; what must survive a restart (the CA) stands in the setup.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	log "github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/builtin/logical/pki"
	"github.com/hashicorp/vault/helper/namespace"
	vaulthttp "github.com/hashicorp/vault/http"
	"github.com/hashicorp/vault/internalshared/configutil"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/hashicorp/vault/sdk/physical/inmem"
	"github.com/hashicorp/vault/vault"
)

// step is one request of the setup: a write.
type step struct {
	Path string         `json:"path"`
	Data map[string]any `json:"data"`
}

func main() {
	address := flag.String("address", "127.0.0.1:8200", "where to listen; port 0 takes a free one")
	setup := flag.String("setup", "", "a JSON file: a list of {path, data} to be written with the root token")
	certificate := flag.String("tls-cert", "", "serve HTTPS with this certificate (PEM file)")
	key := flag.String("tls-key", "", "the certificate's private key (PEM file)")
	flag.Parse()
	if err := run(*address, *setup, *certificate, *key); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(address, setup, certificate, key string) error {
	core, root, err := start()
	if err != nil {
		return err
	}
	if setup != "" {
		if err := write(core, root, setup); err != nil {
			return err
		}
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	config := &configutil.Listener{Type: "tcp", Address: listener.Addr().String()}
	server := &http.Server{
		Handler:           vaulthttp.Handler.Handler(&vault.HandlerProperties{Core: core, ListenerConfig: config}),
		ReadHeaderTimeout: 10 * time.Second,
	}
	// Whoever started it waits for this line.
	fmt.Println("listening on", listener.Addr())
	if certificate != "" {
		return server.ServeTLS(listener, certificate, key)
	}
	return server.Serve(listener)
}

// start makes a new Vault and opens it; the second result is the root token.
func start() (*vault.Core, string, error) {
	logger := log.New(&log.LoggerOptions{Name: "vault", Level: log.Warn, Output: os.Stderr})
	storage, err := inmem.NewInmem(nil, logger)
	if err != nil {
		return nil, "", err
	}
	core, err := vault.NewCore(&vault.CoreConfig{
		Physical:        storage,
		Logger:          logger,
		DisableMlock:    true,
		BuiltinRegistry: builtin{},
		LogicalBackends: map[string]logical.Factory{name: pki.Factory},
	})
	if err != nil {
		return nil, "", err
	}
	ctx := namespace.RootContext(context.Background())
	made, err := core.Initialize(ctx, &vault.InitParams{
		BarrierConfig:  &vault.SealConfig{SecretShares: 1, SecretThreshold: 1},
		RecoveryConfig: &vault.SealConfig{},
	})
	if err != nil {
		return nil, "", err
	}
	open, err := core.Unseal(made.SecretShares[0])
	if err != nil {
		return nil, "", err
	}
	if !open {
		return nil, "", errors.New("it is still sealed")
	}
	// A Vault that is alone leads as soon as it is open, but not in the same instant.
	for range 300 {
		if standby, _ := core.Standby(); !standby {
			return core, made.RootToken, nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil, "", errors.New("it does not become active")
}

// write makes the requests of the setup, in order.
func write(core *vault.Core, root, setup string) error {
	text, err := os.ReadFile(setup)
	if err != nil {
		return err
	}
	var steps []step
	if err := json.Unmarshal(text, &steps); err != nil {
		return fmt.Errorf("%s: %w", setup, err)
	}
	for _, step := range steps {
		answer, err := core.HandleRequest(namespace.RootContext(context.Background()), &logical.Request{
			Operation:   logical.UpdateOperation,
			ClientToken: root,
			Path:        step.Path,
			Data:        step.Data,
			Connection:  &logical.Connection{},
		})
		if err == nil && answer != nil {
			err = answer.Error()
		}
		if err != nil {
			return fmt.Errorf("%s: %w", step.Path, err)
		}
	}
	return nil
}

// name is what the engine is called, and mounted as.
const name = "pki"

// builtin says which plugins there are: the PKI engine. Vault's own list has every cloud's client in it.
type builtin struct{}

func (builtin) Contains(plugin string, kind consts.PluginType) bool {
	return plugin == name && kind == consts.PluginTypeSecrets
}

func (b builtin) Get(plugin string, kind consts.PluginType) (func() (any, error), bool) {
	factory := func() (any, error) { return logical.Factory(pki.Factory), nil }
	return factory, b.Contains(plugin, kind)
}

func (builtin) Keys(kind consts.PluginType) []string {
	if kind == consts.PluginTypeSecrets {
		return []string{name}
	}
	return nil
}

func (b builtin) DeprecationStatus(plugin string, kind consts.PluginType) (consts.DeprecationStatus, bool) {
	return consts.Supported, b.Contains(plugin, kind)
}

func (builtin) IsBuiltinEntPlugin(string, consts.PluginType) bool { return false }
