"""The storm: replicas under mixed work and a seeded schedule of faults, and a checker of what is promised.

    plan.py     from a seed: which fault comes when
    places.py   where replicas run: each behind a network of its own, restarted as systemd would
    faults.py   how each fault is made and ends
    load.py     who enqueues, cancels and retries meanwhile, and what was committed
    jobs.py     the executors; each writes down what it does, outside the database
    rows.py     what the database has in the end, and each change of a job's state on the way
    history.py  all of that in memory
    rules/      the promises as facts about it
    checker.py  all rules together

Run it with `make storm SEED=n MINUTES=m`.
"""
