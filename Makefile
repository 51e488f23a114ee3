# The commands of the project. `make help` lists them; CONTRIBUTING.md explains them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.SUFFIXES:

COMPUTE := .venv
AIRFLOW := .venv-airflow
FUXICTR := .venv-fuxictr
UV := $(shell command -v uv || echo build/uv/bin/uv)
PYTHON_VERSIONS := >=3.11,<3.13
# A make variable set on the command line (SEEDS=16) becomes KEY=VALUE of the launcher; nothing else does. It is
# quoted: make's own MAKEOVERRIDES is not, but for spaces.
ON_COMMAND_LINE = $(filter command,$(firstword $(origin $(1))))
RUN_VARIABLES := $(foreach name,$(.VARIABLES),$(if $(call ON_COMMAND_LINE,$(name)),'$(name)=$(subst ','\'',$($(name)))'))
PYTEST := OMP_NUM_THREADS=1 $(COMPUTE)/bin/python -m pytest
AIRFLOW_PYTEST := AIRFLOW_HOME='$(CURDIR)/build/airflow-tests' AIRFLOW__CORE__DAGS_FOLDER='$(CURDIR)/dags' \
  AIRFLOW__CORE__LOAD_EXAMPLES=False $(AIRFLOW)/bin/python -m pytest

.PHONY: help install infra run ui sql up status logs down test test-airflow test-compute test-infra test-stack test-faults \
  pictures check fmt golden lock bench bench-gpu bench-data bench-load bench-log bench-memory bench-store bench-train clean

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*  ## ' $(MAKEFILE_LIST) | sed 's/:.*  ## /\t/' | expand -t 16

install: $(COMPUTE)/installed $(AIRFLOW)/installed  ## make both environments from the locks (uv is installed if absent)

$(COMPUTE)/installed: requirements/compute.txt | $(UV)
	@infra/install.sh $(UV) $(COMPUTE) requirements/compute.txt '$(PYTHON_VERSIONS)'

$(AIRFLOW)/installed: requirements/airflow.txt | $(UV)
	@infra/install.sh $(UV) $(AIRFLOW) requirements/airflow.txt '$(PYTHON_VERSIONS)'

$(FUXICTR)/installed: infra/fuxictr/requirements.txt | $(UV)
	@infra/install.sh $(UV) $(FUXICTR) $< '$(PYTHON_VERSIONS)'

build/uv/bin/uv:
	@echo "uv is not installed: installing it into build/uv"
	@python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target build/uv uv

run: install  ## one production refresh: make run [DATASET=generated] [DATA_DIR=...] [BACKENDS=real] [RESUME=1] [SEEDS=16 ...]
	@$(if $(filter real,$(BACKENDS)),$(COMPUTE)/bin/python -m infra.install_servers,true)
	@$(COMPUTE)/bin/python -m infra.run $(RUN_VARIABLES)

ui: install  ## MLflow's page on the store of the last run: make ui [DATASET=generated] [BACKENDS=real]
	@$(COMPUTE)/bin/python -m infra.ui $(RUN_VARIABLES)

sql:  ## ask HiveServer2 of the stack, or of a run over real servers: make sql QUERY="SELECT ..." [DATASET=generated]
	@$(COMPUTE)/bin/python -m infra.sql  # make puts its variables into the environment, whatever is in them

up: install  ## the local stack, in the background: make up [EMBEDDED=1: Airflow, Ray, MLflow over embedded back ends]
	@$(if $(filter-out 0,$(EMBEDDED)),true,$(COMPUTE)/bin/python -m infra.install_servers)
	@$(COMPUTE)/bin/python -m infra.stack up $(RUN_VARIABLES)

status:  ## the stack's services: state, address, pid, memory
	@$(COMPUTE)/bin/python -m infra.stack status $(RUN_VARIABLES)

logs:  ## what the stack's services say: make logs [SERVICE=name]
	@$(COMPUTE)/bin/python -m infra.stack logs $(RUN_VARIABLES)

down:  ## stop the stack; its data stay
	@$(COMPUTE)/bin/python -m infra.stack down $(RUN_VARIABLES)

infra: install  ## install the real servers of the tests: PostgreSQL, Redis, a browser (Debian), Kafka, Hive (Maven)
	@$(COMPUTE)/bin/python -m infra.install_servers

# Airflow's part mostly waits for Ray, so it runs beside the rest; what it says comes last.
test: infra  ## every test that needs no GPU, with the real servers (at most 25 minutes on 2 cores)
	@mkdir -p build; $(MAKE) test-airflow >build/test-airflow.log 2>&1 & beside=$$!; \
	  $(MAKE) test-compute; failed=$$?; \
	  wait $$beside || failed=$$?; cat build/test-airflow.log; exit $$failed

test-airflow: install
	$(AIRFLOW_PYTEST) tests/dags vista/orchestration

# These start processes or servers, some for the whole session, and mostly wait for them: two files at a time, the long ones
# first. Of tests/infra (make test-infra), which is about the launchers, the alerts and the supervisor: no other test has them.
WITH_SERVERS := tests/faults tests/end_to_end tests/orchestration tests/contracts tests/delivery \
  tests/infra/test_supervisor.py tests/infra/test_alerts.py
test-compute: install infra
	$(PYTEST) -n 2 $(addprefix --ignore=,$(WITH_SERVERS) tests/dags tests/infra tests/kernels tests/stack vista/orchestration) vista tests
	$(PYTEST) -n 2 kernels tests/kernels
	$(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder $(WITH_SERVERS) \
	  $(addprefix --ignore=,tests/end_to_end/test_backfill_of_days.py tests/orchestration/test_dags.py)

test-infra: install infra  ## the real servers: start, answer, fail over, leave nothing behind
	$(PYTEST) tests/infra

# One test after the other, on a machine that does nothing else: here times are judged (a start of the stack, a stop of a job,
# events that are worked off), which make test leaves out. On a busy machine VISTA_FULL_SIZE=0 leaves them out here too.
test-stack: export VISTA_FULL_SIZE ?= 1
test-stack: install infra  ## the local stack: up, in a browser, kill -9 of every service, down; the DAGs on Airflow's services (an hour, quiet)
	$(PYTEST) tests/stack
	$(PYTEST) tests/orchestration
	$(PYTEST) tests/end_to_end/test_backfill_of_days.py

# The walk needs KuaiRand in VISTA_DATA_DIR, and says that it did not run where there is none; its picture then stays as it is.
pictures: install infra  ## take the guide's pictures anew, from local stacks in a browser
	VISTA_PICTURES=docs/guide/pictures $(PYTEST) tests/stack/test_browser.py tests/stack/test_walk.py

test-faults: install infra  ## kill -9 at 20 seeded points of a run, then resume; all that the delivery must hold, at full size, as a table (an hour)
	VISTA_KILL_POINTS=20 $(PYTEST) -s tests/faults/test_kill_refresh.py
	VISTA_FULL_SIZE=1 $(PYTEST) -s -m must_hold --timeout 7200 tests/unit tests/delivery

check: install  ## format, lint, types, imports; repairs nothing (make fmt does)
	$(COMPUTE)/bin/ruff format --check .
	$(COMPUTE)/bin/ruff check .
	$(COMPUTE)/bin/mypy
	$(AIRFLOW)/bin/mypy vista/orchestration/*.py dags/*.py
	$(COMPUTE)/bin/lint-imports --no-cache

fmt: install  ## repair formatting and what the linter can repair
	$(COMPUTE)/bin/ruff format .
	$(COMPUTE)/bin/ruff check --fix .

golden: install  ## rewrite the golden files; say why in the commit
	VISTA_GOLDEN=write $(PYTEST) tests/golden
	VISTA_GOLDEN=write $(AIRFLOW_PYTEST) tests/dags

lock: | $(UV)  ## resolve every requirements file again
	@for name in requirements/compute requirements/airflow infra/fuxictr/requirements; do \
	  $(UV) pip compile $$name.in --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	    --custom-compile-command "make lock" -o $$name.txt -q || exit 1; \
	done

# The kernel zeroes every fresh page: on 2 threads that takes tensors of 60 MB longer than the op that fills them.
# So pages are huge, and freed memory is kept, for the op and its peers alike.
FEW_FRESH_PAGES = THP_MEM_ALLOC_ENABLE=1 MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_MMAP_THRESHOLD_=4294967296

bench: install  ## the attention op beside its peers on 2 CPU threads, as JSON and a plot
	$(FEW_FRESH_PAGES) OMP_NUM_THREADS=2 $(COMPUTE)/bin/python -m kernels.bench cpu

# Beside torch and triton: numpy, matplotlib, pytest, pytest-timeout; fla-core too, or FLA is not compared with.
bench-gpu:  ## the same on a GPU, with the torch and triton that its machine has: make bench-gpu [PYTHON=python3]
	$(or $(PYTHON),python3) -m pytest -q tests/kernels
	$(or $(PYTHON),python3) -m kernels.bench cuda

bench-data: install  ## events prepared and tokens fed per second, as JSON
	$(COMPUTE)/bin/python -m vista.data.bench

bench-memory: install  ## a million events in one user, and the industrial recipe: seconds and peak memory, as JSON
	@trap 'exit 130' INT; failed=0; for case in million industrial; do \
	  $(COMPUTE)/bin/python -m vista.train.bench_memory $$case || failed=$$?; \
	done; exit $$failed

bench-store: install infra  ## applied to Redis beside a bare pipelined SET of the same bytes, as JSON
	$(COMPUTE)/bin/python -m infra.redis $(COMPUTE)/bin/python -m vista.delivery.bench_store

bench-log: install infra  ## the log on Kafka beside a bare loop of its client, as JSON
	$(COMPUTE)/bin/python -m vista.delivery.bench_log

bench-load: install infra  ## a region under load beside a bare loop and readers, then a live producer: 12 minutes, 13 GB of memory, 20 of disk
	$(COMPUTE)/bin/python -m vista.delivery.bench_load

# First, before an environment is made for it.
.PHONY: bench-train-data
bench-train-data:
	@test -d '$(subst ','\'',$(DATA_DIR))' || { echo "error: DATA_DIR='$${DATA_DIR}' is no folder: name KuaiRand-Pure's," \
	  "make bench-train DATA_DIR=.../kuairand-pure" >&2; exit 2; }

bench-train: bench-train-data install $(FUXICTR)/installed  ## training throughput beside FuxiCTR: make bench-train DATA_DIR=.../kuairand-pure
	$(COMPUTE)/bin/python -m vista.train.bench --data-dir '$(subst ','\'',$(DATA_DIR))' --peer $(FUXICTR)/bin/python

clean:  ## delete caches and build/, never runs, stores or environments
	rm -rf build/airflow-tests .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find vista kernels dags infra tests -name __pycache__ -prune -exec rm -rf {} +
