"""Which function builds a stage of each kind. Names only: who looks a body up need not import Prefect or torch."""

BODIES = {
    "model": "tasks.packaged_model:fetch_packaged_model",
    "sft": "tasks.train_sft:train_sft",
    "reward_model": "tasks.train_reward_model:train_reward_model",
    "autoregressive_reward_model": "tasks.train_autoregressive_reward_model:train_autoregressive_reward_model",
    "calibrate": "tasks.calibrate:calibrate",
    "rrhf": "tasks.train_rrhf:train_rrhf",
    "raft": "tasks.train_raft:train_raft",
    "dpo": "tasks.train_dpo:train_dpo",
    "qrpo": "tasks.train_qrpo:train_qrpo",
    "rl": "tasks.train_rl:train_rl",
    "bond": "tasks.train_bond:train_bond",
    "prefix_scorer": "tasks.train_prefix_scorer:train_prefix_scorer",
    "soup": "tasks.average_experts:average_experts",
    "sample": "tasks.generate:sample_responses",
    "label": "tasks.generate:label_responses",
    "decode": "tasks.generate:define_decoding",
    "evaluate": "tasks.evaluate:evaluate",
}
