# imap-xid: every way to build, try, test and package it. `make help` lists the targets.

SHELL := /bin/bash
.DEFAULT_GOAL := help

CARGO ?= cargo
# Compiler processes at once.
JOBS ?= 2
# Tests at once: most of the time they wait for a server.
export RUST_TEST_THREADS ?= 4
PREFIX ?= /usr
SYSCONFDIR ?= /etc
# Dovecot's module folder: the plug-in goes there, and a link for doveadm into doveadm/ below it.
MODULEDIR ?= $(PREFIX)/lib/dovecot/modules
INCLUDEDIR ?= $(PREFIX)/include
LIBDIR ?= $(PREFIX)/lib
MANDIR ?= $(PREFIX)/share/man
UNITDIR ?= $(PREFIX)/lib/systemd/system
BASHCOMPDIR ?= $(PREFIX)/share/bash-completion/completions
ZSHCOMPDIR ?= $(PREFIX)/share/zsh/vendor-completions
FISHCOMPDIR ?= $(PREFIX)/share/fish/vendor_completions.d

# The plug-in has a target folder of its own, so that building it and building the tools do not
# throw each other's objects away.
TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
PLUGIN_TARGET := $(TARGET)/dovecot
PLUGIN := $(PLUGIN_TARGET)/release/libimap_xid.so
PLUGIN_DEBUG := $(PLUGIN_TARGET)/debug/libimap_xid.so
# The C library, without any host: for assigners, and for other servers.
LIB_TARGET := $(TARGET)/lib
LIB := $(LIB_TARGET)/release/libimap_xid.so
# As IMAP_XID_ABI_VERSION and build.rs have it.
LIB_ABI := 1
XIDCTL := $(TARGET)/release/xidctl
XIDD := $(TARGET)/release/xidd
# cargo builds it along with the tests.
XIDCTL_DEBUG := $(TARGET)/debug/xidctl
XIDD_DEBUG := $(TARGET)/debug/xidd
TEST_FEATURES := cli,cluster
CARGO_DENY := 0.20.2

.PHONY: help deps deps-lint deps-soak build build-plugin build-plugin-debug build-lib build-tools install uninstall demo \
	demo-shell demo-cluster test test-rust soak bench bench-cluster lint fuzz-smoke deb generate clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

deps: ## Install what apt must give (as root; does nothing when all is there)
	packaging/dev/deps

deps-soak:
	packaging/dev/deps --soak

deps-lint: ## Install what lint looks at licences with: cargo-deny, built in a minute or two
	$(CARGO) deny --version >/dev/null 2>&1 || \
		$(CARGO) install --debug --locked -j$(JOBS) cargo-deny@$(CARGO_DENY) --target-dir $(TARGET)/cargo-deny

build: build-plugin build-lib build-tools ## Build the plug-in, the C library and the tools, optimised

build-plugin:
	$(CARGO) build --locked --release -j$(JOBS) --lib --features dovecot --target-dir $(PLUGIN_TARGET)

build-plugin-debug:
	$(CARGO) build --locked -j$(JOBS) --lib --features dovecot --target-dir $(PLUGIN_TARGET)

build-lib:
	$(CARGO) build --locked --release -j$(JOBS) --lib --target-dir $(LIB_TARGET)

build-tools:
	$(CARGO) build --locked --release -j$(JOBS) --features cli,cluster --bin xidctl --bin xidd

install: build ## Install below DESTDIR: plug-in, xidctl, xidd, its units, 90-xid.conf, man pages, completions, C library
	install -d $(DESTDIR)$(MODULEDIR)/doveadm
	install -m 0644 $(PLUGIN) $(DESTDIR)$(MODULEDIR)/lib20_xid_plugin.so
	strip --strip-unneeded $(DESTDIR)$(MODULEDIR)/lib20_xid_plugin.so
	ln -sf ../lib20_xid_plugin.so $(DESTDIR)$(MODULEDIR)/doveadm/lib20_doveadm_xid_plugin.so
	install -d $(DESTDIR)$(PREFIX)/bin
	install -m 0755 $(XIDCTL) $(DESTDIR)$(PREFIX)/bin/xidctl
	strip $(DESTDIR)$(PREFIX)/bin/xidctl
	install -d $(DESTDIR)$(PREFIX)/sbin $(DESTDIR)$(UNITDIR) $(DESTDIR)$(PREFIX)/share/doc/dovecot-xid
	install -m 0755 $(XIDD) $(DESTDIR)$(PREFIX)/sbin/xidd
	strip $(DESTDIR)$(PREFIX)/sbin/xidd
	install -m 0644 packaging/systemd/xidd.service packaging/systemd/xidd.socket $(DESTDIR)$(UNITDIR)/
	install -m 0644 packaging/xidd.toml $(DESTDIR)$(PREFIX)/share/doc/dovecot-xid/xidd.toml
	install -d $(DESTDIR)$(SYSCONFDIR)/dovecot/conf.d
	@# An administrator's edited file is never overwritten.
	[ -e $(DESTDIR)$(SYSCONFDIR)/dovecot/conf.d/90-xid.conf ] || \
		install -m 0644 packaging/90-xid.conf $(DESTDIR)$(SYSCONFDIR)/dovecot/conf.d/90-xid.conf
	install -d $(DESTDIR)$(MANDIR)/man1 $(DESTDIR)$(MANDIR)/man7 $(DESTDIR)$(MANDIR)/man8
	install -m 0644 packaging/man/xidd.8 $(DESTDIR)$(MANDIR)/man8/xidd.8
	install -m 0644 packaging/man/xidctl.1 $(DESTDIR)$(MANDIR)/man1/xidctl.1
	install -m 0644 packaging/man/dovecot-xid.7 $(DESTDIR)$(MANDIR)/man7/dovecot-xid.7
	install -d $(DESTDIR)$(BASHCOMPDIR) $(DESTDIR)$(ZSHCOMPDIR) $(DESTDIR)$(FISHCOMPDIR)
	$(XIDCTL) completions bash > $(DESTDIR)$(BASHCOMPDIR)/xidctl
	$(XIDCTL) completions zsh > $(DESTDIR)$(ZSHCOMPDIR)/_xidctl
	$(XIDCTL) completions fish > $(DESTDIR)$(FISHCOMPDIR)/xidctl.fish
	install -d $(DESTDIR)$(INCLUDEDIR)
	install -m 0644 include/imap_xid.h $(DESTDIR)$(INCLUDEDIR)/imap_xid.h
	install -d $(DESTDIR)$(LIBDIR)/pkgconfig
	install -m 0644 $(LIB) $(DESTDIR)$(LIBDIR)/libimap_xid.so.$(LIB_ABI)
	strip --strip-unneeded $(DESTDIR)$(LIBDIR)/libimap_xid.so.$(LIB_ABI)
	ln -sf libimap_xid.so.$(LIB_ABI) $(DESTDIR)$(LIBDIR)/libimap_xid.so
	sed -e 's|@INCLUDEDIR@|$(INCLUDEDIR)|' -e 's|@LIBDIR@|$(LIBDIR)|' \
		-e "s|@VERSION@|$$(sed -n 's/^version = "\(.*\)"$$/\1/p' Cargo.toml | head -n 1)|" \
		packaging/imap_xid.pc.in > $(DESTDIR)$(LIBDIR)/pkgconfig/imap_xid.pc

uninstall: ## Remove what install put below DESTDIR, except an edited 90-xid.conf
	rm -f $(DESTDIR)$(MODULEDIR)/lib20_xid_plugin.so \
		$(DESTDIR)$(MODULEDIR)/doveadm/lib20_doveadm_xid_plugin.so \
		$(DESTDIR)$(PREFIX)/bin/xidctl $(DESTDIR)$(PREFIX)/sbin/xidd \
		$(DESTDIR)$(UNITDIR)/xidd.service $(DESTDIR)$(UNITDIR)/xidd.socket \
		$(DESTDIR)$(PREFIX)/share/doc/dovecot-xid/xidd.toml $(DESTDIR)$(MANDIR)/man8/xidd.8 \
		$(DESTDIR)$(MANDIR)/man1/xidctl.1 $(DESTDIR)$(MANDIR)/man7/dovecot-xid.7 \
		$(DESTDIR)$(BASHCOMPDIR)/xidctl $(DESTDIR)$(ZSHCOMPDIR)/_xidctl \
		$(DESTDIR)$(FISHCOMPDIR)/xidctl.fish $(DESTDIR)$(INCLUDEDIR)/imap_xid.h \
		$(DESTDIR)$(LIBDIR)/libimap_xid.so $(DESTDIR)$(LIBDIR)/libimap_xid.so.$(LIB_ABI) \
		$(DESTDIR)$(LIBDIR)/pkgconfig/imap_xid.pc
	! cmp -s packaging/90-xid.conf $(DESTDIR)$(SYSCONFDIR)/dovecot/conf.d/90-xid.conf || \
		rm $(DESTDIR)$(SYSCONFDIR)/dovecot/conf.d/90-xid.conf

demo: deps build-plugin ## Show an annotated IMAP session on a private Dovecot; leaves nothing behind
	IMAP_XID_PLUGIN=$(PLUGIN) IMAP_XID_XIDCTL=$(XIDCTL_DEBUG) $(CARGO) test --locked -q -j$(JOBS) --features cli --test demo

demo-shell: deps build-plugin ## Start the demo's server and leave it up to play with until Enter
	IMAP_XID_PLUGIN=$(PLUGIN) IMAP_XID_XIDCTL=$(XIDCTL_DEBUG) $(CARGO) test --locked -q -j$(JOBS) --features cli --test demo -- --shell

demo-cluster: deps build-plugin ## Show three nodes that write one mailbox through a partition, and a stock pair (as root)
	$(CARGO) build --locked -q -j$(JOBS) --features cluster --bin xidd
	IMAP_XID_PLUGIN=$(PLUGIN) IMAP_XID_XIDD=$(XIDD_DEBUG) $(CARGO) run --locked -q -j$(JOBS) --features cluster --example demo-cluster

test: deps test-rust ## Run every test: units, properties, real Dovecot, faults, C ABI, fuzz smoke

test-rust: build-plugin-debug
	IMAP_XID_PLUGIN=$(PLUGIN_DEBUG) IMAP_XID_XIDCTL=$(XIDCTL_DEBUG) IMAP_XID_XIDD=$(XIDD_DEBUG) $(CARGO) test --locked --no-fail-fast -j$(JOBS) --features $(TEST_FEATURES)

soak: deps-soak deb ## The long tests: thousands of kills, long fuzzing, Thunderbird, the package in a fresh Debian, and under systemd
	IMAP_XID_SOAK=1 $(MAKE) test-rust
	packaging/deb/test-in-chroot dist/dovecot-xid_*.deb
	packaging/deb/test-under-systemd dist/dovecot-xid_*.deb
	IMAP_XID_SOAK=1 IMAP_XID_PLUGIN=$(PLUGIN_DEBUG) IMAP_XID_XIDCTL=$(XIDCTL_DEBUG) IMAP_XID_XIDD=$(XIDD_DEBUG) timeout 3600 \
		$(CARGO) test --locked -j$(JOBS) --features $(TEST_FEATURES) --test cluster_real -- --ignored --test-threads=1

bench: deps build ## Measure the figures of docs/performance.md against the same server without the plug-in
	IMAP_XID_PLUGIN=$(PLUGIN) IMAP_XID_XIDCTL=$(XIDCTL) packaging/dev/on-ext4 $(CARGO) bench --locked -j$(JOBS) --bench table --bench figures

# ROWS="append contention": only the rows whose names contain one of these.
bench-cluster: deps build ## Measure the cluster's figures of docs/performance.md beside stock Dovecot (as root)
	IMAP_XID_PLUGIN=$(PLUGIN) IMAP_XID_XIDD=$(XIDD) packaging/dev/on-ext4 $(CARGO) bench --locked -j$(JOBS) --features $(TEST_FEATURES) --bench cluster -- $(ROWS)

lint: ## Formatting, clippy, C warnings as errors, licences of the dependencies
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked -j$(JOBS) --all-targets --features $(TEST_FEATURES) -- -D warnings
	IMAP_XID_WERROR=1 $(CARGO) clippy --locked -j$(JOBS) --lib --features dovecot --target-dir $(PLUGIN_TARGET) -- -D warnings
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny check licenses bans sources; \
	else echo "cargo-deny is not installed: licences not checked (make deps-lint)"; fi

fuzz-smoke: ## A short run of every fuzz target
	$(CARGO) test --locked -j$(JOBS) --test fuzz_smoke

deb: build ## Build dist/dovecot-xid_VERSION_ARCH.deb
	packaging/deb/build dist

generate: deps-soak build ## Write anew what is generated: the C header, xidctl(1), docs/clients.md
	IMAP_XID_BLESS=1 $(CARGO) test --locked -j$(JOBS) --test header
	$(XIDCTL) man > packaging/man/xidctl.1
	IMAP_XID_WRITE_DOCS=1 IMAP_XID_PLUGIN=$(PLUGIN) IMAP_XID_XIDCTL=$(XIDCTL) $(CARGO) test --locked -j$(JOBS) --features cli --test clients

clean: ## Remove everything that was built
	$(CARGO) clean
	rm -rf dist
