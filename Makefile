.PHONY: help demo test test-peers install uninstall package test-package bench soak lint clean

help:
	@echo 'make demo     install what is missing, then COPY to and from a blob and read a vault secret, with no secret stored'
	@echo 'make test     the tests, on PostgreSQL 15 and 18'
	@echo 'make test-peers'
	@echo '              the tests with Prometheus postgres_exporter and azure-keyvault-emulator, which need Go'
	@echo 'make install PG_CONFIG=/path/to/pg_config'
	@echo '              build for release and install into that server (15 to 18)'
	@echo 'make uninstall PG_CONFIG=/path/to/pg_config'
	@echo '              take out of that server what make install has put there'
	@echo 'make package PG_CONFIG=/path/to/pg_config'
	@echo '              a .deb, a .tar.gz and the folder of an image, in target/dist'
	@echo 'make test-package'
	@echo '              build packages twice, compare them, install the .deb into a new Debian and use it there'
	@echo 'make bench    the benchmarks, as ratios'
	@echo 'make soak     five minutes of random faults; SEED=n repeats a run'
	@echo 'make lint     formatting, shellcheck, clippy, licences, and what may be linked'
	@echo 'make clean    remove what was built here; what was installed for it stays in its cache (see pgrx-config/env.sh)'

demo:
	@pgrx-config/demo.sh

test:
	@pgrx-config/test.sh

test-peers:
	@pgrx-config/test-peers.sh

# The convention of PGXS: the first pg_config in PATH unless one is given.
install: PG_CONFIG ?= pg_config
install:
	@pgrx-config/setup.sh install
	@pgrx-config/install.sh '$(PG_CONFIG)'

uninstall: PG_CONFIG ?= pg_config
uninstall:
	@pgrx-config/uninstall.sh '$(PG_CONFIG)'

package: PG_CONFIG ?= pg_config
package:
	@pgrx-config/setup.sh package
	@pgrx-config/package.sh '$(PG_CONFIG)'

test-package:
	@pgrx-config/package-test.sh

bench:
	@pgrx-config/bench.sh

soak:
	@pgrx-config/bench.sh soak

lint:
	@pgrx-config/lint.sh

clean:
	cargo clean
	rm -f pgrx-config/config.toml
