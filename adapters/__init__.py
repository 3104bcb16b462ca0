"""Adapters: everything that knows a framework. They use dpwa's public API, and dpwa itself never imports them."""
