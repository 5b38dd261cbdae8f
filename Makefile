# Two commands: `make pretrain` trains the quickstart, `make test` checks everything. Both need Python 3.11 and g++ only.
# `make hooks`: no commit is made that `make lint` refuses.
# `make fuzz`, `make chaos`, `make soak`: the attacks of docs/reliability.md, at length; `make chaos KILLS=1000` for more.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
EXAMPLES ?= 1000
KILLS ?= 500
MINUTES ?= 60

.PHONY: pretrain test fuzz chaos soak lint hooks docs clean

$(VENV)/ready: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

pretrain: $(VENV)/ready
	$(RUN) run_pretraining.py --config quickstart

test: lint
	$(RUN) -m pytest -n 2 --dist worksteal

fuzz: $(VENV)/ready
	FUZZ=$(EXAMPLES) $(RUN) -m pytest tests/attack

chaos: $(VENV)/ready
	PYTHONPATH=. $(RUN) tests/attack/chaos.py $(KILLS)

soak: $(VENV)/ready
	PYTHONPATH=. $(RUN) tests/attack/soak.py $(MINUTES)

lint: $(VENV)/ready
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	find sparse_ops tests -name '*.[ch]' -o -name '*.[ch]pp' | xargs $(VENV)/bin/clang-format --dry-run -Werror

hooks: $(VENV)/ready
	$(RUN) -m pre_commit install

docs: $(VENV)/ready
	$(RUN) -m ipu_bert.config > docs/config.md

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
