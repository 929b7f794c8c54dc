# `make demo` shows the main job live; `make test` runs every test, `make test-fast` those that start no process and fit
# or build nothing large, `make test-py310` these with Python 3.10. All set the machine up first, in .venv.
PYTHON ?= python3
TORCH  ?= torch==2.13.0
BIN    := .venv/bin
READY  := .venv/.ready
# The tests of a file stay in one process, since they share what they set up. Bytecode is kept: these processes, and the
# hundred that they start, would each compile the same sources.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder --durations=10

.PHONY: demo test test-fast test-py310 test-gpu bench-gpu check format bench docs system-packages clean

demo: $(READY)
	$(BIN)/recald demo
	@echo "What Grafana shows of such a drift: bench/results/dashboard.png"
	@echo "To look at the page of a running recald: .venv/bin/recald demo --keep"

test: $(READY)
	$(PYTEST) -n 3

test-fast: $(READY)
	$(PYTEST) -n 2 -m "not process and not slow" --hypothesis-profile fast

test-py310: $(READY)
	TORCH="$(TORCH)" .ci/py310

test-gpu: $(READY)
	$(BIN)/python -m pytest -m gpu

bench-gpu: $(READY)
	$(BIN)/python -m bench gpu --json bench/results/gpu.json

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY)
	$(BIN)/python -m bench.results_page > /dev/null
	$(BIN)/python -m docs.generate
	$(BIN)/python -m deploy.monitoring.dashboard.build > /dev/null

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/python -m bench latency --json bench/results/latency.json
	$(BIN)/python -m bench handover --json bench/results/handover.json
	$(BIN)/python -m bench watch --json bench/results/watch.json
	$(BIN)/python -m bench attack --json bench/results/attack.json
	$(BIN)/python -m bench swap --json bench/results/swap.json
	$(BIN)/pip install -q --no-deps --target .bench/imagezmq imagezmq==1.2.0
	$(BIN)/python -m bench intake --imagezmq .bench/imagezmq --json bench/results/intake.json
	$(BIN)/python -m bench overhead --json bench/results/overhead.json
	$(BIN)/python -m bench precision --json bench/results/precision.json
	$(BIN)/python -m bench demo --json bench/results/demo.json --png bench/results/demo.png
	$(BIN)/python -m bench fit --json bench/results/fit.json
	$(BIN)/python -m bench curve --json bench/results/curve.json
	$(BIN)/python -m bench speed --json bench/results/speed.json
	$(BIN)/python -m bench peers --json bench/results/peers.json
	$(BIN)/python -m bench cameras --json bench/results/cameras.json
	$(BIN)/python -m bench mixes --json bench/results/mixes.json
	$(BIN)/pip install -q --no-deps --target .bench/imagecorruptions imagecorruptions==1.1.2
	$(BIN)/python -m bench corruptions --frost .bench/imagecorruptions/imagecorruptions/frost \
		--state .bench/corruptions.jsonl --json bench/results/corruptions.json
	$(BIN)/python -m bench drift --state .bench/drift.jsonl --json bench/results/drift.json
	$(BIN)/python -m bench drifts --state .bench/drifts.jsonl --json bench/results/drifts.json
	$(BIN)/python -m bench streams --state .bench/streams.jsonl --json bench/results/streams.json
	$(BIN)/python -m bench judge --state .bench/judge --json bench/results/judge.json
	$(BIN)/python -m bench readouts --state .bench/readouts.jsonl --json bench/results/readouts.json
	$(BIN)/python -m bench paper --state .bench/paper.jsonl --png bench/results/paper.png --json bench/results/paper.json

# Without an NVIDIA GPU the CPU build of torch is enough: a local `+cpu` build where pip is configured
# to find one, otherwise uv, which knows where the PyTorch project keeps its CPU builds.
$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	@if nvidia-smi -L >/dev/null 2>&1 || [ -e /etc/nv_tegra_release ]; then $(BIN)/pip install -q "$(TORCH)"; \
	elif $(BIN)/pip install -q "$(TORCH)+cpu" 2>/dev/null; then :; \
	else $(BIN)/pip install -q uv && $(BIN)/uv pip install -q --python $(BIN)/python --torch-backend=cpu "$(TORCH)"; fi
	$(BIN)/pip install -q -e ".[dev]"
	touch $@

# The compiler and the header for examples/camera.cpp; Chromium, which looks at the page; Prometheus with promtool, and
# amtool, only unpacked, so that no service starts. Without them their tests are skipped.
system-packages:
	@{ command -v g++ && [ -e /usr/include/zmq.h ]; } > /dev/null || \
	{ apt-get update -qq && apt-get install -qq -y --no-install-recommends g++ libzmq3-dev > /dev/null; }
	@command -v chromium > /dev/null || \
	{ apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium > /dev/null; }
	@[ -x .prometheus/usr/bin/promtool ] || \
	{ apt-get update -qq && mkdir -p .prometheus/packages && cd .prometheus/packages && \
	apt-get download -qq -o APT::Sandbox::User=root prometheus prometheus-alertmanager && \
	for package in *.deb; do dpkg -x "$$package" ..; done; }

clean:
	rm -rf .venv .venv310 .prometheus demo-output
