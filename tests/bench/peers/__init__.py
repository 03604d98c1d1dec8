"""Other job queues on the same work, beside this one, in one run: see README.md in this folder."""
