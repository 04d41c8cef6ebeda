"""Constants of the forecast, fitted to measured runs: docs/benchmarks.md has the runs, and the errors.

The raw figures are in tests/bench/results, 2026-11-21-estimates.json, and for a GPU, one H200,
2026-11-28-gpu-whole-flows.json.
Keys: `cpu` and `cuda` are the device; `continuous` is continuous decoding on a GPU.
"""

from __future__ import annotations

# Seconds from the start of a step's process to the start of its work: imports, mostly (2 cores); on a GPU
# machine (16 cores) processes are forked.
START_SECONDS = {
    "cpu": {"train": 11.5, "merge": 5.8, "drift": 3.2, "evaluate": 7.2},
    "cuda": {"train": 3.0, "merge": 2.0, "drift": 3.5, "evaluate": 2.7},
}
COMPILE_SECONDS = 12.0  # of a GPU's layers, before the first step
# Bytes a second of reading a data file.
DATA_FILE_RATE = 500e6
# Bytes a second of a model: merged (read, computed, written, digested), and loaded.
MERGE_RATE = {"cpu": 500e6, "cuda": 3.0e9}
LOAD_RATE = {"cpu": 500e6, "cuda": 2.7e9}
INGEST_START_SECONDS = 0.3
INGEST_TOKENS_PER_SECOND = 0.35e6
# Passes over what a layer keeps for its backward pass, each reading or writing all of it once at
# memory's speed. A CPU's are many: PyTorch allocates memory for every result, and touching new pages costs
# ten times what reading them does.
ACTIVATION_PASSES = {"cpu": 105.0, "cuda": 15.0}
FORWARD_SHARE = 0.25  # of these passes, without gradients
# Writing one token of every document in progress: passes over all weights, and over all keys and values.
WEIGHT_PASSES = {"cpu": 1.0, "cuda": 1.0, "continuous": 1.9}
CACHE_PASSES = {"cpu": 18.0, "cuda": 3.0, "continuous": 1.45}
TRL_PATH_FACTOR = 1.65  # TRL's own path on a GPU takes so much longer (657 ms against 397)
SMALL_PRODUCTS_SHARE = 0.6  # of a CPU's rate for 1,024 x 1,024, at the widths of small models
# Launching kernels, whatever the number of tokens: seconds a decoder layer, forward and backward.
LAYER_STEP_SECONDS = {"cpu": 4.0e-3, "cuda": 5.8e-3}
# The same for writing one token of each document of a batch.
LAYER_TOKEN_SECONDS = {"cpu": 0.5e-3, "cuda": 1.5e-3, "continuous": 0.08e-3}
PACKED_SHARE = 0.98  # of a packed sequence is filled; 99% was measured at eight rows a sequence
RESAMPLE_SECONDS = 1.5e-8  # a document and bootstrap sample
GATE_SECONDS = 0.2  # reading and storing what the decision was made from
# Resident before the work, GiB: the interpreter with its libraries.
FLOW_GIB = 0.31
GATE_GIB = 0.06
LIBRARIES_GIB = {"train": 0.80, "merge": 0.65, "evaluate": 0.63}
TOKEN_LIST_BYTES = 44  # an id and a label, as Python's numbers in lists
ROW_BYTES = 300  # of names that ingest keeps of each row
OVERLAP_TOKEN_BYTES = 20  # of what ingest keeps of each evaluation token, to search for overlap
SAMPLE_BYTES = 32  # of each bootstrap sample
