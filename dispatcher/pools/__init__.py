"""The places where jobs run, one engine a file; dispatcher/pool.py is what they have in common."""
