# Everything a contributor needs. Only python3 (3.11 or newer), make and git are presumed.
.DEFAULT_GOAL := help
PY := .venv/bin/python
PHOTOS ?=
DISPATCHER ?= embedded
TRACES ?=
EXAMPLES ?= 300

.PHONY: help setup run check test bench bench-policy bench-reload bench-files bench-foreign bench-kube bench-ec2 bench-rack lint types contracts fast docs fuzz-api lock clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: .venv/ready ## make .venv and install fleetd with its development tools
.venv/ready: pyproject.toml requirements.lock scripts/setup
	@scripts/setup

run: setup ## the main job: a rush of pictures; PHOTOS=~/Pictures takes your own, DISPATCHER=gearmand Debian's server
	@test "$(DISPATCHER)" != gearmand || scripts/need gearmand
	@$(PY) -m examples.rush --dispatcher $(DISPATCHER) $(if $(PHOTOS),--photos "$(PHOTOS)",)

check: setup lint types contracts fast ## lint, types, import contracts and the fast tests, under a minute

lint: setup
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

types: setup
	@$(PY) -m mypy

contracts: setup
	@.venv/bin/lint-imports

fast: setup
	@$(PY) -m pytest -q -n 2 -m "not real and not slow" tests

test: setup ## everything, with the real components; installs what it needs
	@scripts/need gearmand gearman gearman-perl redis-server prometheus openssl systemd-analyze etcd cloud-init chromium
	@scripts/need buildah mmdebstrap mksquashfs cpio qemu-system-x86_64 ovmf ipxe dnsmasq dhcpd udhcpc nginx ipmi_sim
	@scripts/kube-assets >/dev/null
	@scripts/kube-tools >/dev/null  # helm, kubectl, kubeconform
	@$(PY) -m pip install -q --require-hashes -r requirements-bench.lock  # Celery, RQ and others, to be held against
	@$(MAKE) --no-print-directory lint types contracts
	@$(PY) -m pytest -n 2 --dist loadgroup tests

bench: setup ## measure the runtime, the dispatcher's connection and the burst; prints what docs/benchmarks.md holds
	@scripts/need gearmand redis-server
	@$(PY) -m pip install -q -r requirements-bench.lock
	@$(PY) -m bench

bench-policy: setup ## what decisions cost and how fast they are; TRACES=FOLDER of NAME.jobs.csv.gz and NAME.history.csv
	@$(PY) -m pip install -q -r requirements-bench.lock
	@$(PY) -m bench policy $(TRACES)
	@$(PY) -m bench decisions

bench-reload: setup ## releases under load, beside Celery, RQ and dramatiq, and what becomes of jobs in faults; an hour
	@scripts/need gearmand redis-server
	@$(PY) -m pip install -q -r requirements-bench.lock
	@$(PY) -m bench reload
	@$(PY) -m bench faults

bench-files: setup ## 2 GiB through the file store to a worker and back, killed half way; deadlines; a batch of 10,000 jobs
	@scripts/need gearmand redis-server
	@$(PY) -m bench files

bench-ec2: setup ## instances on moto's server: launches in bad weather, spot interruptions, a budget, a stockout; half an hour
	@scripts/need gearmand
	@$(PY) -m bench ec2

bench-foreign: setup ## Celery, RQ and Perl through ten rushes each, drained while they run jobs
	@scripts/need gearmand redis-server gearman-perl
	@$(PY) -m pip install -q -r requirements-bench.lock
	@$(PY) -m bench foreign

bench-kube: setup ## pods on a real control plane: a burst, scale-ins under load, a thousand pods
	@scripts/need gearmand redis-server openssl etcd
	@scripts/kube-assets >/dev/null
	@$(PY) -m bench kube

bench-rack: setup ## the boot service beside nginx: 200 machines that boot at the same time; a rack of qemu end to end
	@scripts/need nginx
	@$(PY) -m bench boot
	@scripts/need mmdebstrap mksquashfs qemu-system-x86_64 dnsmasq ipmi_sim
	@$(PY) -m bench rack

docs: setup ## renew what the documents draw from the code: the life of a node, the commands, the API, the policy's keys
	@$(PY) -m scripts.moves
	@$(PY) -m scripts.commands
	@$(PY) -m scripts.api
	@$(PY) -m tests.config.keys
	@$(PY) -m scripts.dashboards
	@$(PY) -m scripts.metrics
	@$(PY) -m scripts.chart

fuzz-api: setup ## let schemathesis ask a live controller of simulated nodes at length; EXAMPLES=N for each call
	@$(PY) -m tests.web.fuzz $(EXAMPLES)

lock: setup ## pin every dependency anew, hashes included
	@scripts/lock

clean: ## remove .venv and caches
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
