"""What runs: the one Prefect task, the stage bodies, and the engines they use."""
