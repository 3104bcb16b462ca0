"""The lab: compares strategies of training together on real data, as real processes, in one report.

It uses dpwa as a user would. `commands`, `study`, `run` and `report` do not import torch, so `dpwa lab list` answers at
once. The words:

- A **study** compares **rows**. A row is a **strategy** (how processes train together) with settings.
- A **trial** is one row with one seed: one training, in a folder of its own, with one result.
- A **run** of a study is a folder with its trials; a run that is continued keeps the finished ones.
- A **round** is one of the equal parts of a training; at its end every process saves its model.
"""
