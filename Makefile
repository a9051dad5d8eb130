# Everything from a bare checkout: `make demo`, `make test`. Needs Python >= 3.10, a C++ compiler and make.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := setup.py CMakeLists.txt $(wildcard csrc/*.* csrc/*/*.*)
CPP := $(wildcard csrc/*.* csrc/*/*.* tests/*/*.h tests/*/*.cpp)
PY := setup.py python triton_kernels tests benchmarks

.PHONY: demo test test-integrations packaging matrix docs stress fuzz sanitize counts bench lint types format gpu browser clean

demo: $(VENV)/built
	$(BIN)/torchassay demo

test: $(VENV)/built
	$(BIN)/pytest -n auto --dist loadfile --ignore tests/integrations

# Over 100 kills: the tests that kill trainings, scoring and writers, each twice as often.
stress: $(VENV)/built
	TORCHASSAY_KILLS=2 $(BIN)/pytest -n auto tests/test_resume.py tests/test_score_command.py tests/test_sum_tree_files.py

# The native code under AddressSanitizer, UBSan and ThreadSanitizer, with GCC; the ordinary build stays as it is.
sanitize: $(VENV)/built
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tests/native/sanitize.py

# Instructions of the CPU kernels against benchmarks/results/counts.md; needs valgrind.
counts: $(VENV)/built
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tests/native/counts.py

# Over 20,000 examples in the property tests, other ones in every run, counted at the end. Then, where there is clang,
# libFuzzer on the native entry points for SECONDS, under AddressSanitizer and UBSan: compiling takes minutes, once.
SECONDS ?= 120
fuzz: $(VENV)/built
	TORCHASSAY_FUZZ=1 $(BIN)/pytest -n auto --dist load tests/properties tests/test_properties.py tests/test_hostile_*.py
	PATH="$(abspath $(BIN)):$$PATH" tests/fuzz/run $(SECONDS)

# The adapters against the trainers and engines themselves, on the CPU; blocks of the docs that need them.
test-integrations: $(VENV)/integrated
	$(BIN)/pytest tests/integrations tests/test_docs.py tests/test_score_data.py -W default -n auto --dist loadfile

# What users install, each in a fresh environment: wheel, sdist, editable, without CUDA, without a compiler. Minutes.
packaging: $(VENV)/built
	$(BIN)/pytest tests/test_packaging.py tests/packaging/installs.py -s

# By hand: the oldest and the newest torch and Triton that pip finds. On Linux that is torch for CUDA, gigabytes of it,
# unless PIP_INDEX_URL names an index of builds for the CPU, and PIP_EXTRA_INDEX_URL one of all else.
matrix: $(VENV)/built
	$(BIN)/python tests/packaging/matrix.py build/matrix

# Into build/docs/docs/index.html; a warning is an error.
docs: $(VENV)/documented
	$(BIN)/sphinx-build -W --keep-going -q -c docs . build/docs

bench: $(VENV)/built
	$(BIN)/pytest benchmarks -o "python_files=bench_*.py" -p no:cacheprovider --benchmark-quiet -W default

lint: types
	$(BIN)/ruff check $(PY)
	$(BIN)/ruff format --check $(PY)
	$(BIN)/clang-format --dry-run --Werror $(CPP)

types: $(VENV)/installed
	$(BIN)/mypy

format: $(VENV)/installed
	$(BIN)/ruff check --fix $(PY)
	$(BIN)/ruff format $(PY)
	$(BIN)/clang-format -i $(CPP)

# On a machine with an NVIDIA GPU and torch already there: no virtual environment, no network. QUICK=1: 5 minutes.
gpu:
	QUICK=$(QUICK) $(PYTHON) benchmarks/gpu.py

# For the test that opens a report, which skips without one: Debian's headless Chromium, as root; 12 seconds.
browser:
	command -v chromium-headless-shell || timeout 300 sh -c "apt-get update -q && \
		apt-get install -y -q --no-install-recommends chromium-headless-shell"

clean:
	rm -rf $(VENV) build demo python/*.egg-info python/torchassay/_native*.so

# torch comes first and by itself, so that nothing else asks for another build of it.
$(VENV)/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q "$(TORCH)" numpy
	TORCHASSAY_NATIVE=0 $(BIN)/python -m pip install -q "setuptools>=77" wheel "pybind11>=3" "cmake>=3.24" ninja
	TORCHASSAY_NATIVE=0 $(BIN)/python -m pip install -q --no-build-isolation -e ".[dev]"
	touch $@

$(VENV)/built: $(VENV)/installed $(SOURCES)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pip install -q --no-build-isolation --no-deps -e .
	touch $@

# The native module stays where it was built.
$(VENV)/integrated: $(VENV)/built
	TORCHASSAY_NATIVE=0 $(BIN)/python -m pip install -q --no-build-isolation -e ".[integrations]"
	touch $@

$(VENV)/documented: $(VENV)/integrated
	TORCHASSAY_NATIVE=0 $(BIN)/python -m pip install -q --no-build-isolation -e ".[docs]"
	touch $@
