"""Imported once by the fork server, so that a stage's process starts with everything loaded."""

import gc

import peft  # noqa: F401  (loaded for the children, not used here)
import torch  # noqa: F401
import transformers  # noqa: F401
import trl  # noqa: F401
from trl import RewardTrainer, SFTTrainer  # noqa: F401

import tasks.evaluate
import tasks.generate
import tasks.train_reward_model
import tasks.train_sft  # noqa: F401

gc.collect()
gc.freeze()  # a child's collections pass over what was loaded here, and leave its memory shared
