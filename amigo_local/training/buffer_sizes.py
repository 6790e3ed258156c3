"""Sizes of the buffers that training works through whatever the plan is; without torch, so that a plan counts them."""

from __future__ import annotations

CHUNK_BYTES = 16 << 20
"""Of the staging ring: long enough for a copy's start-up (about 10 us) not to matter at 12 GB/s: it takes 1.4 ms."""
CHUNKS = 4
"""One is being filled while others are on their way."""
LOGITS_AT_ONCE = 1 << 22
"""Of one tile, tokens x vocabulary rows: 16 MiB in f32 and 8 MiB in bf16. Measured best on CPU at 512 x 8192."""
KEEP_DECODED_BYTES = 512 << 20
"""Of the head, on a processor: decoding it anew at every micro-batch costs 7 % (Q8_0) to 18 % (Q6_K) of its
time at 512 tokens (benchmarks/tiled_head.py)."""
