"""The lab: every strategy side by side on real data, as real processes, in one report.

A wing of its own: it uses dpwa as a user would, and no other part of dpwa imports it. `study`, `settings`, `kinds`,
`running`, `cost` and what makes the report know no torch, so that `dpwa lab list` answers at once.
"""
