"""Imported once by the fork server, so that a stage's process starts with everything loaded."""

import gc

import peft  # noqa: F401  (loaded for the children, not used here)
import torch  # noqa: F401
import transformers  # noqa: F401
import trl  # noqa: F401
from trl import DPOTrainer, GRPOTrainer, RewardTrainer, RLOOTrainer, SFTTrainer  # noqa: F401

import tasks.average_experts
import tasks.calibrate
import tasks.evaluate
import tasks.generate
import tasks.machine
import tasks.train_autoregressive_reward_model
import tasks.train_bond
import tasks.train_dpo
import tasks.train_prefix_scorer
import tasks.train_qrpo
import tasks.train_raft
import tasks.train_reward_model
import tasks.train_rl
import tasks.train_rrhf
import tasks.train_sft  # noqa: F401

gc.collect()
gc.freeze()  # a child's collections pass over what was loaded here, and leave its memory shared
