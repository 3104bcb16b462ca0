"""Complete training scripts that use dpwa, and the small modules that they share.

Each script runs alone (`python examples/digits/train.py`) and as a cluster
(`dpwa launch samples/four-local.yaml -- python examples/digits/train.py`).

Must not know: how dpwa works inside; the examples use its public interface only. Runs in: the training thread.
"""
