"""The built-in executors, one a file: also the examples of how to write one."""
