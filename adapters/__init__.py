"""Adapters: everything that knows a framework. They take the core's names from `dpwa` itself; the core imports none."""
