"""What the system can do on this machine: `python -m tests.bench`. JSON lines on standard output, one a measure."""
