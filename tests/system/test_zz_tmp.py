import pathlib, signal, time, tempfile, sys
sys.path.insert(0,'/work/main')
def test_x(dsn, tmp_path):
    from tests.system.replicas import Fleet, until
    with Fleet(dsn, tmp_path) as fleet:
        leader, standby = fleet.start_pair()
        ids = fleet.enqueue("hold", 3, until=str(fleet.gate()))
        fleet.until_started(ids, pid=leader.pid)
        quick = fleet.enqueue("quick", 200)
        leader.send(signal.SIGKILL); leader.wait(); t=time.monotonic(); w=time.time()
        fleet.until_started(ids, pid=standby.pid)
        print("MS", 1000*(time.monotonic()-t))
        import datetime
        print("KILL", datetime.datetime.utcfromtimestamp(w) if 0 else w)
        for e in standby.log(): print(e['ts'], e['event'], {k:v for k,v in e.items() if k not in('ts','event','logger','level')})
        ev=fleet.events("start", pid=standby.pid)
        for e in ev[:3]+ev[-5:]: print(round((e.t-t)*1000), e.job, e.attempt)
        print(len(ev), [round((e.t-t)*1000) for e in ev if e.job in ids])
        print([round((e.t-t)*1000) for e in ev][::20])
        fleet.gate().touch(); fleet.until_all(ids+quick)
