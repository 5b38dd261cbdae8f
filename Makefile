# Two commands: `make pretrain` trains the quickstart, `make test` checks everything. Both need Python 3.11 and g++ only.
# `make hooks`: no commit is made that `make lint` refuses.
# `make fuzz`, `make sanitize`, `make chaos`, `make soak`: the attacks of docs/reliability.md, at length, or `KILLS=1000` for more.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
EXAMPLES ?= 1000
KILLS ?= 500
MINUTES ?= 60

.PHONY: pretrain test fuzz sanitize chaos soak lint hooks docs wheel wheel-test clean

$(VENV)/ready: requirements.txt requirements-mix.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-mix.txt
	touch $@

pretrain: $(VENV)/ready
	$(RUN) run_pretraining.py --config quickstart

test: lint
	$(RUN) -m pytest -n 2 --dist worksteal

fuzz: $(VENV)/ready
	FUZZ=$(EXAMPLES) $(RUN) -m pytest tests/attack

# The native kernels under AddressSanitizer, given EXAMPLES of indices that no pattern has, and their other tests. Its
# runtime has to be loaded before Python, and libstdc++ with it, whose exceptions it wraps; nothing of it is in the build.
KERNELS := $(patsubst %,tests/sparse_ops/test_%.py,native variants past_caches feed_forward attention add_norm \
    linear_cross_entropy)
SANITIZED := CXX="g++ -fsanitize=address" SPARSE_OPS_CACHE=build/sanitized
sanitize: $(VENV)/ready
	$(SANITIZED) $(RUN) -m sparse_ops.build
	$(SANITIZED) FUZZ=$(EXAMPLES) ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 \
	    LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
	    $(RUN) -m pytest -s -n 0 tests/attack/test_attack_index.py $(KERNELS) -k "not lay_structures and not no_memory"

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

# A wheel with compiled kernels of every level, for machines of this kind: build/wheel/dist/. g++ and patchelf make it, and
# the wheel's name says with how old a C library it works.
WHEEL := build/wheel
wheel: $(VENV)/ready
	rm -rf $(WHEEL) && mkdir -p $(WHEEL)/source
	git ls-files -z pyproject.toml README.md LICENSE configs ipu_bert sparse_ops | xargs -0 cp --parents -t $(WHEEL)/source
	$(PYTHON) -m venv $(WHEEL)/tools
	$(WHEEL)/tools/bin/pip install --quiet --disable-pip-version-check "setuptools>=77" wheel auditwheel patchelf
	cd $(WHEEL)/source && $(CURDIR)/$(RUN) -m sparse_ops.build wheel
	cd $(WHEEL)/source && ../tools/bin/pip wheel --quiet --no-deps --no-build-isolation \
	    --config-settings=--build-option=--plat-name=linux_$(shell uname -m) --wheel-dir .. .
	PATH=$(CURDIR)/$(WHEEL)/tools/bin:$$PATH auditwheel repair --wheel-dir $(WHEEL)/dist $(WHEEL)/*.whl
	$(WHEEL)/tools/bin/auditwheel show $(WHEEL)/dist/*.whl

# The wheel in an empty environment, where no compiler can be found: a faster step than dense, a model saved and loaded.
wheel-test:
	rm -rf $(WHEEL)/empty && $(PYTHON) -m venv $(WHEEL)/empty
	$(WHEEL)/empty/bin/pip install --quiet --disable-pip-version-check $$(grep '^torch==' requirements.txt)
	$(WHEEL)/empty/bin/pip install --quiet --disable-pip-version-check $(WHEEL)/dist/*.whl
	cp docs/examples/first_steps.py $(WHEEL)/empty
	cd $(WHEEL)/empty && env -i PATH=/nowhere SPARSE_OPS_CACHE=$(CURDIR)/$(WHEEL)/empty/cache bin/python -W error first_steps.py

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache
