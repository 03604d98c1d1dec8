"""The daemon's services: each does one thing in its `step()`; none imports another, the daemon joins them."""
