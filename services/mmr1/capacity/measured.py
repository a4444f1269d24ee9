"""What `mmr1 plan` computes from: measured figures and a few choices, each with its source. The one file to fit anew.

Figures are of the shape of Qwen2.5-VL-3B on NVIDIA H200s in bfloat16, unless it says otherwise. Nothing is computed.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gpu:
    memory_gib: float  # what a program can have of it
    flops: float  # a second: dense bfloat16
    bandwidth: float  # bytes a second, of its memory
    float32_flops: float = 67e12
    per_node: int = 8  # GPUs of one machine


# NVIDIA's data sheets of the SXM cards: 80 and 141 GB, 989 TFLOP/s without sparsity (67 in float32), 3.35 and 4.8
# TB/s. What a program can have is a little less than what the sheet says.
GPUS = {"h100": Gpu(78, 989e12, 3.35e12), "h200": Gpu(139, 989e12, 4.8e12)}

# --- The learner's memory -------------------------------------------------------------------------------------------
# Bytes a parameter, as in "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models" (Rajbhandari et al.
# 2020, section 3.1; how stages cut them: figure 1): weights 2, float32 master weights 4, AdamW's two moments 8.
# benchmarks/learner_gpu.txt: 52.6 GB held between steps at 3.755 B parameters, which is 14.0 bytes: gradients (2) are
# not held between steps.
WEIGHT_BYTES = 2
OPTIMIZER_BYTES = 12
FLOAT32_OPTIMIZER_BYTES = 8  # the weights are their own masters
# At the end of a step's backward passes: what was summed so far and what is added to it. Fitted, with KEPT_HIDDEN and
# KEPT_INTERMEDIATE, to the same table and to benchmarks/learner_ranks.jsonl, where gradients are whole (ZeRO-1) and
# where two and three ranks share them (ZeRO-2). Peaks come out between 4 % less (ZeRO-3) and 9 % more (where one
# forward is the whole step, and nothing was summed before it) than was measured.
GRADIENT_BYTES = 2.5
# In the optimizer's step the gradients in float32 too. Same table: 30.1 GB above what stays, with one group a forward,
# whatever is recomputed: 8 bytes a parameter.
STEP_BYTES = 8
# ZeRO-3 gathers one layer's weights at a time; two, because the next is fetched meanwhile. A choice, not measured.
GATHERED_LAYERS = 2
# Numbers of two bytes kept for the backward pass, a token and layer: these times the hidden and the intermediate size.
# Same files: some 5.3 GB a group more between four and eight groups a forward (the text's layers), 5 GB more without
# the vision tower's checkpointing.
KEPT_HIDDEN = 8.6
KEPT_INTERMEDIATE = 2.7
# Of a GPU's memory nothing is planned for this share: CUDA's context, NCCL's buffers, gaps between tensors. A choice.
KEPT_FREE = 0.06
# Where both halves share a GPU, this share of it is left between them: peaks are off by a few percent, and vLLM takes a
# little more than its share. A choice.
SHARED_RESERVE = 0.05

# --- The learner's speed --------------------------------------------------------------------------------------------
# docs/performance.md, "On a GPU": 0.121 s a group with eight groups a forward, 16 groups a step, the vision tower
# computed twice; benchmarks/learner_ranks.jsonl: 1.110 s a step of eight groups in one forward, 1.208 in two; 0.15 s
# of a step are the optimizer's. So a forward and its backward take 0.102 s for each of its groups of 44.6 TFLOP, which
# is this share of the chip's peak, and the rest whatever their number. Without the tower's second computation four
# groups a forward took 0.118 s a group, which is not told apart here.
LEARNER_FRACTION = 0.442
OPTIMIZER_PARAMETERS_PER_SECOND = 3.755e9 / 0.15
# The rest, in seconds a layer: the GPU waits for launches. With everything computed twice, a third more.
LAUNCH_SECONDS_PER_LAYER = 0.098 / (36 + 32)
# What sums of gradients take several ranks beyond the link's bytes: launches, waiting for each other, and what nobody
# has told apart. At ZeRO-1 once a step, at ZeRO-2 in each backward. benchmarks/learner_ranks.jsonl: 0.15 and 0.08 s a
# backward more at ZeRO-2 than at ZeRO-1, with two ranks and with three; three ranks at ZeRO-1 take 0.11 s more than one
# does and the link explains.
SUMMING_SECONDS_PER_LAYER = 0.12 / (36 + 32)
# Groups a forward: of more nothing was measured.
MOST_GROUPS_A_FORWARD = 12
# docs/performance.md, "Weight updates between GPUs": a raw broadcast of 7.51 GB over NVLink takes 20 ms. Taken for the
# sums of gradients as well, with nothing under way meanwhile.
LINK_BYTES_PER_SECOND = 7.51e9 / 0.020
# ZeRO-3 gathers one layer's weights after another, and what it waits for is launches and DeepSpeed's handling, not the
# link: seconds a layer of text or tower and pass through it (forward, forward again, backward, the reference's), beside
# the bytes. benchmarks/learner_ranks.jsonl, 3:3, 24 groups: 4.130 s, of which 0.27 are the copy below and 1.09 what is
# computed for here; two forwards, each of 36 + 32 layers forward and backward and the tower's 32 again.
GATHER_SECONDS_PER_LAYER = (4.130 - 0.27 - 1.09) / (2 * (2 * (36 + 32) + 32))
# ZeRO-3's copy of whole weights into rank 0's memory after each step, in which all ranks wait. Same run: 4.130 s less
# forward, backward and optimizer (1.349, 2.224, 0.283). A whole run of an earlier version spent 0.83.
WHOLE_COPY_BYTES_PER_SECOND = 7.51e9 / 0.27

# --- The rollout server ---------------------------------------------------------------------------------------------
# One H200, a rollout server with rewards and queue, benchmarks/rollout_gpu.jsonl: 64 prompts of 466 tokens with an
# image of 448 x 448, 8 completions of 256 tokens each, all 512 at once.
ROLLOUT_TOKENS_PER_SECOND = 20_450
MOST_SEQUENCES = 512  # so many were at once there; more were not measured
# A decoding step reads weights and caches at this share of the memory's bandwidth: a choice, not measured.
DECODE_FRACTION = 0.5
# And each completion in it costs the host so much beside. Fitted, with the next, to the figure above and to
# benchmarks/end_to_end_gpu.jsonl: one server took 0.815 s for 8 prompts with an 896 x 896 image, and 2.18 for 24.
SECONDS_PER_RUNNING = 24e-6
# Prompts, their images' preparation included, at this share of the peak.
PREFILL_FRACTION = 0.175
# Beside weights and caches: CUDA graphs, activations and the buckets of weight updates. A choice, not measured.
ENGINE_BYTES = 4e9

# --- Both -----------------------------------------------------------------------------------------------------------
# benchmarks/end_to_end_gpu.jsonl, 1+1 with eight groups a forward: 0.117 s for 7.51 GB over NCCL while the next step
# computes (0.074 with four, 0.054 alone), fingerprints included, the probe not.
UPDATE_BYTES_PER_SECOND = 7.51e9 / 0.117
# What is sent from the copy in the host's memory (ZeRO-3, merged adapters) is slower: 195 to 207 ms from closing
# admission to the weights being in place in 3+1 at ZeRO-3, benchmarks/end_to_end_gpu.jsonl.
HOST_UPDATE_BYTES_PER_SECOND = 7.51e9 / 0.2
# How long servers sample nothing for the probe of an update: same file, the four layouts of the newest runs. They
# sample while the answer is compared, which the learner waits for only where an update is not beside a step; how long
# it takes was measured beside one (1+1), and alone it is shorter.
PROBE_SECONDS = (0.145 + 0.203 + 0.223 + 0.266) / 4
COMPARING_SECONDS = 0.296
# Of a step beside which its version goes to the servers, what is not the learner's computing: groups to collect,
# closing admission, the last version. Same file, 1+1, 2+2 and 1+3: 0.074, 0.296 and 0.173.
BETWEEN_STEPS_SECONDS = (0.074 + 0.296 + 0.173) / 3
# What an update beside a step adds to its peak: three buckets, of which the embedding alone may be one, and the probe's
# forward. A choice, not measured.
BESIDE_BYTES = 3e9
# Between machines. Assumed, not measured: one adapter of 400 Gb/s a GPU, as NVIDIA's DGX H100 has (its data sheet:
# eight ConnectX-7), at its whole speed.
BETWEEN_NODES_BYTES_PER_SECOND = 50e9

# --- How well it does -----------------------------------------------------------------------------------------------
# Whole steps, computed to measured less 1, of benchmarks/end_to_end_gpu.jsonl: with 8, 12, 8 and 8 groups a forward,
# and at ZeRO-3 of an earlier version with four. What is above was fitted to some of these, so they say what is left,
# and not what another model or machine will show: before they were measured, whole steps had been predicted 3 to 17 %
# too short, and on other GPUs once 38 %. The conditions are in tests/unit/capacity/test_against_measured.py, which
# holds these figures true.
STEPS_OFF = {"1+1": 0.02, "2+2": -0.103, "1+3": 0.0, "3+1": 0.04, "3+1 at ZeRO-3": -0.033}
