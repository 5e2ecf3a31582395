# Two commands are all the set-up there is: `make demo` and `make test`. Each installs what it needs first.
PYTHON := .venv/bin/python
PATHS := config ops tasks workers tests

.PHONY: demo demo-vm test lab bench-rdma bench-vm bench-plan bench-executor bench-scrape dashboards drawn check setup format

demo: setup ## install, then move a live 1 GiB guest A→B and B→A, and print what it took
	.venv/bin/droveway demo $(ARGS)

demo-vm: setup .lab/.installed ## the same with a virtual machine, its console shown beside the moves; as root
	.venv/bin/droveway demo --vm $(ARGS)

test: setup .lab/.installed check ## install, then run every test (pass more to pytest with ARGS="-k worry")
	ops/scripts/browser-setup
	ops/scripts/ops-setup
	$(PYTHON) -m pytest $(ARGS)

lab: export LAB_RUN := $(value RUN)
lab: setup .lab/.installed ## a shell in an emulated machine with an RDMA device, or RUN="a command" in it
	@$(PYTHON) -m tests.lab $${LAB_RUN:+--run "$$LAB_RUN"} $(ARGS)

bench-rdma: setup .lab/.installed ## QEMU's RDMA migration and ours, side by side in an emulated machine (ARGS="--quick")
	$(PYTHON) -m tests.benchmarks.rdma $(ARGS)

bench-vm: setup .lab/.installed ## QEMU's migration of a virtual machine and ours, side by side (ARGS="--quick")
	$(PYTHON) -m tests.benchmarks.vm $(ARGS)

bench-plan: setup ## how long planning takes, and how good the plans are, up to 10,000 hosts (ARGS="--quick")
	$(PYTHON) -m tests.benchmarks.plan $(ARGS)

bench-executor: setup ## 50 of 1,000 hosts emptied: scripts a move, Redis' memory, moves a second (movers simulated)
	$(PYTHON) -m tests.benchmarks.executor $(ARGS)

bench-scrape: setup ## what a scrape a second costs a migration: the same moves with and without, by turns (ARGS="--quick")
	$(PYTHON) -m tests.benchmarks.scrape $(ARGS)

dashboards: setup ## write Grafana's dashboards anew from ops/grafana/dashboards
	$(PYTHON) -m ops.grafana.dashboards

drawn: setup ## each dashboard as pictures in .drawn, by components of Grafana's front end, of guests that really moved
	ops/scripts/browser-setup
	ops/scripts/ops-setup
	@$(PYTHON) -m tests.ops.drawn

check: setup ## style, types, import rules
	.venv/bin/ruff format --check $(PATHS)
	.venv/bin/ruff check $(PATHS)
	.venv/bin/mypy
	.venv/bin/lint-imports

metrics.md: setup workers/metrics/names.py workers/metrics/document.py ## every metric, from the code
	.venv/bin/droveway metrics --markdown > $@

format: setup ## put the code into its form
	.venv/bin/ruff format $(PATHS)
	.venv/bin/ruff check --fix $(PATHS)

# The stamp is redone when the pins or the project's own metadata change.
setup: .venv/.installed
.venv/.installed: requirements-dev.lock pyproject.toml ops/scripts/setup
	ops/scripts/setup
	touch $@

# Where no lab can be built the script says why and leaves no stamp; what needs the lab is then skipped.
.lab/.installed: .venv/.installed ops/scripts/lab-setup tests/lab/init $(wildcard ops/vm/*)
	ops/scripts/lab-setup
