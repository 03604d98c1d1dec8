/* The protocol of lease, claim, settle, rescue and fence: one job, up to three replicas, and what may go wrong.
 *
 * Each proctype is a thread, of a replica or of the server, and each atomic is what no other thread can come between. Time
 * goes by in ticks of a heartbeat: one comes when every replica that can has had its turn, so who is late is frozen.
 * README.md says what is left out, what each BROKEN_ takes away, and how to read a counter-example.
 */
#ifndef FAULTS
#define FAULTS 3   /* how many things go wrong at most */
#endif
#ifndef STOPS
#define STOPS 0    /* how many replicas are told to stop */
#endif
#ifndef BOUND
#define BOUND 8    /* ticks within which something happens while the job is not ended and a replica is healthy */
#endif

#define REPLICAS 3 /* two at the start, and one that is started once one of them is dead */
#define NOBODY REPLICAS
#define OFF 255

#define LEASE 2    /* lease_duration: the lease session's idle_session_timeout */
#define ORPHAN 4   /* orphan_after */
#define FENCE 3    /* orphan_after * (1 - FENCE_MARGIN) */
#define SILENT 3   /* orphan_after * COOPERATION */
#define LATELY 1   /* so soon after it was armed the fence is not taken away */
#define EXIT 1     /* HARD_EXIT_S */
#define RETURN 3   /* RETURN_AFTER_S */

/* What the database holds. */
mtype = { PENDING, RUNNING, SCHEDULED, ENDED };
mtype job = PENDING;
byte attempt, owner = NOBODY, due;
bool row[REPLICAS];               /* dispatcher.replica */
byte incarnation[REPLICAS];
byte holder = NOBODY;             /* whose session has the lease's lock */

/* Each replica's lease session, as the server sees it. It has the liveness lock from its first statement on. */
mtype = { GONE, USED, LEFT };     /* LEFT: the client has gone, and the server does not know */
mtype session[REPLICAS] = GONE;
bool raised[REPLICAS];            /* the row names this session: it counts as present */
byte quiet[REPLICAS];             /* since its latest statement */

/* The request that is on its way on the lease session. */
mtype = { NONE, OPEN, RAISE, BEAT, OWN, RELEASE, CONTEND, CLAIM, RESIGN };
mtype request[REPLICAS] = NONE;
mtype late[REPLICAS] = NONE;      /* the same, once its sender has given the session up */
mtype = { YES, NO, LOST };
mtype answer[REPLICAS] = NONE;
byte found[REPLICAS];             /* the attempt that an answer names, or a RELEASE */

/* A replica's process. */
bool dead[REPLICAS], frozen[REPLICAS];
bool stalled[REPLICAS];           /* nothing passes on its lease session, in either direction */
bool draining[REPLICAS], sealed[REPLICAS], ending[REPLICAS];
bool connected[REPLICAS], leading[REPLICAS], look_at_own[REPLICAS];
mtype = { BEATING, ACTING, RESTED };
mtype turn[REPLICAS] = RESTED;    /* of the heart, in this tick */
byte asked[REPLICAS];             /* since the latest request was sent */
byte trusted[REPLICAS];           /* since the latest request was sent that proved the session */
byte fence[REPLICAS] = OFF;       /* until the kernel ends the process */
byte needed[REPLICAS];            /* since the fence was armed */
#ifdef BROKEN_DISARM
bool disarms[REPLICAS];           /* the main thread has decided to take the fence away */
#endif

/* The attempt in flight, from the answered claim on, and where it is; then its outcome, and that on its way. */
mtype = { CLAIMED, WAITING, EXECUTING };
mtype place[REPLICAS] = NONE;
byte flying[REPLICAS], outcome[REPLICAS], settling[REPLICAS];
bool final[REPLICAS], settling_final[REPLICAS];

/* What replica r has observed of q, at r * REPLICAS + q: absent since, at which incarnation. */
byte absent[REPLICAS * REPLICAS] = OFF, absent_at[REPLICAS * REPLICAS];
byte target[REPLICAS] = NOBODY;   /* whom it is about to rescue from */

byte faults, stops, calm;         /* calm: ticks since anything went wrong or got further */

#define awake(r) (!dead[r] && !frozen[r])
#define executes(r) (!dead[r] && place[r] == EXECUTING)
#define present(r) (session[r] != GONE && raised[r])
#define seen(r, q) absent[r * REPLICAS + q]
#define seen_at(r, q) absent_at[r * REPLICAS + q]
#define at_most(a, most) (a < most -> a : most)
#ifdef BROKEN_DISARM /* what was just claimed, or just taken from the queue, is seen neither to wait nor to run */
#define idle(r) (place[r] != WAITING && place[r] != EXECUTING)
#else
#define idle(r) (flying[r] == 0)
#endif

#ifdef REACHED /* says once, while spin searches, that this comes about: a model in which nothing happens is safe, too */
#define reached(what) c_code { static int said; if (!said) { said = 1; printf("reached: " what "\n"); } }
#else
#define reached(what) skip
#endif

inline fault() { faults++; calm = 0 }

/* ---- the server ---- */

inline close_session(r) {
    session[r] = GONE; raised[r] = false; quiet[r] = 0; late[r] = NONE;
    if :: holder == r -> holder = NOBODY :: else fi
}

inline put_back(state, pause) { job = state; owner = NOBODY; due = pause }

inline serve(r, what, reply) {
    if
    :: what == OPEN && session[r] == GONE -> session[r] = USED; quiet[r] = 0; reply = YES
    :: what == OPEN && session[r] != GONE -> reached("own earlier session ended"); close_session(r); reply = NO
    :: what != OPEN && session[r] == GONE -> reply = LOST
    :: else ->
        quiet[r] = 0; reply = YES;
        if
        :: what == RAISE && row[r] -> incarnation[r]++; raised[r] = true
        :: what == BEAT && row[r]
        :: (what == RAISE || what == BEAT) && !row[r] -> reply = NO
        :: what == OWN -> found[r] = (job == RUNNING && owner == r -> attempt : 0)
        :: what == RELEASE ->
            if :: job == RUNNING && owner == r && attempt == found[r] -> reached("given back unstarted"); put_back(PENDING, 0) :: else fi
        :: what == CONTEND && holder == NOBODY -> holder = r; calm = 0
        :: what == CONTEND && holder != NOBODY -> reply = NO
        :: what == RESIGN -> holder = NOBODY
        :: what == CLAIM ->
            assert(holder == r); /* never two claimers */
            if
            :: job == PENDING -> job = RUNNING; attempt++; owner = r; found[r] = attempt; calm = 0
            :: else -> found[r] = 0
            fi
        fi
    fi
}

inline settle(r) {
    if
#ifdef BROKEN_SETTLE
    :: job == RUNNING ->
#else
    :: job == RUNNING && attempt == settling[r] ->
#endif
        assert(attempt == settling[r]); /* an outcome is that of its own attempt, and so recorded once */
        calm = 0;
        if :: settling_final[r] -> put_back(ENDED, 0) :: else -> put_back(PENDING, 0) fi
    :: else -> reached("outcome too late")
    fi
}

proctype Server(byte r) {
    mtype ignored;
end: do
    :: atomic { request[r] != NONE && answer[r] == NONE && !stalled[r] -> serve(r, request[r], answer[r]) }
    /* A statement goes on although its client is gone: a claim commits, and nobody hears of it. */
    :: atomic { late[r] != NONE ->
        if :: late[r] == CLAIM && job == PENDING -> reached("claim that nobody hears of") :: else fi;
        serve(r, late[r], ignored); late[r] = NONE; found[r] = 0; ignored = NONE }
    :: atomic { settling[r] != 0 -> settle(r);
        if :: outcome[r] == settling[r] -> outcome[r] = 0; final[r] = false :: else fi;
        settling[r] = 0; settling_final[r] = false
    }
    od
}

/* ---- the end of a session, and of a process ---- */

inline lose(r) {
    connected[r] = false; leading[r] = false; look_at_own[r] = false; turn[r] = RESTED;
    if
    :: session[r] == USED -> close_session(r)
    :: session[r] == USED -> session[r] = LEFT; /* until it has been quiet for too long */
        if :: request[r] != NONE && answer[r] == NONE -> late[r] = request[r] :: else fi
    :: else
    fi;
    request[r] = NONE; answer[r] = NONE; found[r] = (late[r] == RELEASE -> found[r] : 0); asked[r] = 0
}

inline die(r) {
    lose(r); calm = 0;
    dead[r] = true; frozen[r] = false; stalled[r] = false; draining[r] = false; sealed[r] = false; ending[r] = false;
    asked[r] = 0; trusted[r] = 0; fence[r] = OFF; needed[r] = 0;
    place[r] = NONE; flying[r] = 0; outcome[r] = 0; final[r] = false; target[r] = NOBODY;
    seen(r, 0) = OFF; seen(r, 1) = OFF; seen(r, 2) = OFF; seen_at(r, 0) = 0; seen_at(r, 1) = 0; seen_at(r, 2) = 0
}

/* ---- the fence ---- */

inline arm(r) {
    needed[r] = 0;
    if
    :: sealed[r]
    :: !sealed[r] && trusted[r] >= FENCE -> reached("armed too late"); die(r)
    :: else -> fence[r] = FENCE - trusted[r]
    fi
}

inline disarm(r) { if :: !sealed[r] -> fence[r] = OFF; needed[r] = 0 :: else fi }

/* ---- the heart: the one thread that uses the lease session ---- */

/* Answered at once, unless it stalls, or something happens right then, before or after the server did it. */
inline ask(r, what) {
    request[r] = what; asked[r] = 0;
    if
    :: !stalled[r] -> serve(r, what, answer[r])
    :: stalled[r]
    :: faults < FAULTS -> fault();
        if :: !stalled[r] -> serve(r, what, answer[r]) :: true fi;
        if :: frozen[r] = true :: stalled[r] = true :: lose(r) :: die(r) fi
    fi
}

inline done(r) { request[r] = NONE; answer[r] = NONE; asked[r] = 0 }
inline rest(r) { done(r); turn[r] = RESTED }
inline trust(r) { trusted[r] = asked[r]; done(r) }

inline mind_fence(r) {
    turn[r] = ACTING;
    if
    :: idle(r) && needed[r] > LATELY -> disarm(r)
    :: idle(r) && needed[r] <= LATELY
    :: !idle(r) -> arm(r)
    fi
}

#define refused(r) (answer[r] == LOST || answer[r] == NO && request[r] != CONTEND)
#define heard(r, what) (request[r] == what && answer[r] == YES)
#define free(r) (request[r] == NONE && place[r] != CLAIMED)
/* There is something for the heart to do: it comes back from a wait for an answer, or has its turn. */
#define acts(r) (awake(r) && !ending[r] && (request[r] != NONE -> answer[r] != NONE && !stalled[r] : turn[r] != RESTED && place[r] != CLAIMED))

/* Trust is counted from before the session was asked for its liveness lock. */
inline open_asked(r) {
    request[r] = RAISE;
    if
    :: !stalled[r] -> serve(r, RAISE, answer[r])
    :: faults < FAULTS -> fault();
        if :: serve(r, RAISE, answer[r]) :: true fi;
        if :: frozen[r] = true :: stalled[r] = true :: lose(r) :: die(r) fi
    fi
}

inline act(r) {
    if
    :: refused(r) -> ending[r] = (answer[r] == NO && request[r] != OPEN); lose(r)
    :: free(r) && !connected[r] -> ask(r, OPEN)
    :: heard(r, OPEN) -> connected[r] = true; answer[r] = NONE; request[r] = NONE; open_asked(r)
    :: heard(r, RAISE) -> trust(r); look_at_own[r] = true; mind_fence(r)
    :: free(r) && connected[r] && turn[r] == BEATING -> ask(r, BEAT)
    :: heard(r, BEAT) -> trust(r); mind_fence(r)

    /* What the database believes that runs here and does not is given back. */
    :: free(r) && connected[r] && turn[r] == ACTING && look_at_own[r] -> ask(r, OWN)
    :: heard(r, OWN) -> done(r);
        if
#ifdef BROKEN_OWN
        :: true -> look_at_own[r] = false
#else
        :: found[r] == 0 || found[r] == flying[r] || found[r] == outcome[r] -> look_at_own[r] = false; found[r] = 0
        :: else -> ask(r, RELEASE)
#endif
        fi
    :: heard(r, RELEASE) -> done(r); look_at_own[r] = false; found[r] = 0

    :: free(r) && connected[r] && turn[r] == ACTING && !look_at_own[r] && !draining[r] ->
        if
        :: !leading[r] -> ask(r, CONTEND)
        :: leading[r] && job == PENDING && flying[r] == 0 -> ask(r, CLAIM)
        :: else -> turn[r] = RESTED
        fi
    :: heard(r, CONTEND) -> trust(r); leading[r] = true
    :: request[r] == CONTEND && answer[r] == NO -> trust(r); turn[r] = RESTED
    :: heard(r, CLAIM) -> rest(r);
        if :: found[r] != 0 -> flying[r] = found[r]; place[r] = CLAIMED; found[r] = 0 :: else fi

    /* Told to stop: the lease is given away, and what was never started is given back. */
    :: free(r) && connected[r] && turn[r] == ACTING && !look_at_own[r] && draining[r] ->
        if
        :: leading[r] -> leading[r] = false; ask(r, RESIGN)
        :: !leading[r] && place[r] == WAITING -> place[r] = NONE; found[r] = flying[r]; flying[r] = 0; ask(r, RELEASE)
        :: else -> turn[r] = RESTED
        fi
    :: heard(r, RESIGN) -> done(r)
    fi
}

proctype Heart(byte r) {
end: do
    :: atomic { acts(r) -> do :: acts(r) -> act(r) :: else -> break od }
    :: atomic { awake(r) && stalled[r] && request[r] != NONE -> lose(r) } /* no answer within the time-out */
    :: atomic { awake(r) && place[r] == CLAIMED -> place[r] = WAITING; arm(r) }
    od
}

/* ---- the main thread: the fence where the heart cannot see to it, and the end ---- */

#define lonely(r) ((trusted[r] >= SILENT || !connected[r]) && needed[r] > LATELY)

inline mind(r) {
    if
    :: !awake(r) || ending[r]
    :: awake(r) && !ending[r] && !idle(r) -> arm(r)
#ifndef BROKEN_DISARM
    :: awake(r) && !ending[r] && idle(r) && lonely(r) && fence[r] != OFF -> reached("fence taken away without a session"); disarm(r)
#endif
    :: else
    fi
}

proctype Main(byte r) {
end: do
#ifdef BROKEN_DISARM /* it looks, and acts a moment later */
    :: atomic { awake(r) && !disarms[r] && fence[r] != OFF && idle(r) && lonely(r) -> disarms[r] = true }
    :: atomic { awake(r) && disarms[r] -> disarms[r] = false; disarm(r) }
#endif
    :: atomic { awake(r) && ending[r] ->
        if :: sealed[r] -> reached("given back while running") :: else -> reached("row was removed") fi;
        die(r)
    }
    /* Told to stop: nothing is in flight, or the grace is over. */
    :: atomic { awake(r) && draining[r] && flying[r] == 0 && outcome[r] == 0 && !leading[r] && request[r] == NONE ->
        if :: job == RUNNING && owner == r :: else -> row[r] = false fi;
        die(r)
    }
    :: atomic { awake(r) && draining[r] && !sealed[r] && place[r] == EXECUTING -> sealed[r] = true; fence[r] = EXIT }
    :: atomic { awake(r) && sealed[r] && !ending[r] -> ending[r] = true;
        if
        :: flying[r] != 0 && job == RUNNING && attempt == flying[r] ->
#ifdef BROKEN_STOP
            put_back(PENDING, 0)
#else
            put_back(SCHEDULED, RETURN)
#endif
        :: else
        fi
    }
    od
}

/* ---- the threads that run jobs, and the completer ---- */

proctype Worker(byte r) {
end: do
    :: atomic { awake(r) && place[r] == WAITING ->
        assert(!executes(0) && !executes(1) && !executes(2)); /* no attempt overlaps another */
        place[r] = EXECUTING
    }
    :: atomic { awake(r) && place[r] == EXECUTING && outcome[r] == 0 ->
        outcome[r] = flying[r]; place[r] = NONE; flying[r] = 0; calm = 0;
        if :: final[r] = true :: outcome[r] == 1 -> final[r] = false fi /* a first try may be tried again */
    }
    od
}

proctype Completer(byte r) {
end: do
    :: atomic { awake(r) && outcome[r] != 0 && settling[r] == 0 ->
        settling[r] = outcome[r]; settling_final[r] = final[r];
        if
        :: settle(r); settling[r] = 0; settling_final[r] = false; outcome[r] = 0; final[r] = false
        :: faults < FAULTS -> fault(); /* the answer is lost, and it is sent again */
            settle(r); settling[r] = 0; settling_final[r] = false
        :: faults < FAULTS -> fault(); /* it is on its way when the process freezes, or dies */
            if :: frozen[r] = true :: die(r) fi
        fi
    }
#ifdef BROKEN_TRUST /* an answer on this session, to progress say, puts off the fence */
    :: atomic { awake(r) && place[r] == EXECUTING && trusted[r] != 0 -> trusted[r] = 0; arm(r) }
#endif
    od
}

/* ---- the rescuer: every replica observes, the leader rescues ---- */

#ifdef BROKEN_ROWLESS
#define claims(q) false
#else
#define claims(q) (job == RUNNING && owner == q) /* by a claim that committed after its replica had left */
#endif
#define number(q) (row[q] -> incarnation[q] : 0)
#define watched(r, q) (q != r && (row[q] -> !present(q) : claims(q) && session[q] == GONE))
#ifdef BROKEN_INCARNATION
#define same(r, q) true
#else
#define same(r, q) (seen_at(r, q) == number(q))
#endif
#ifdef BROKEN_RESCUE
#define orphaned(r, q) true
#else
#define orphaned(r, q) (seen(r, q) >= ORPHAN || row[q] && dead[q]) /* a death may be proven on the same host */
#endif
#define rescues(r, q) (watched(r, q) && seen(r, q) != OFF && leading[r] && orphaned(r, q))
/* A look would change what is known. */
#define news(r, q) (watched(r, q) -> seen(r, q) == OFF || !same(r, q) || rescues(r, q) : seen(r, q) != OFF)

inline look(r, q) {
    if
    :: !watched(r, q) -> seen(r, q) = OFF; seen_at(r, q) = 0
    :: watched(r, q) && (seen(r, q) == OFF || !same(r, q)) -> seen(r, q) = 0; seen_at(r, q) = number(q)
    :: else
    fi;
    if :: rescues(r, q) -> reached("owner seen gone for good"); target[r] = q; seen_at(r, q) = number(q) :: else fi
}

inline rescue(q, at) { /* in one transaction, which has the liveness lock itself */
    if
    :: session[q] == GONE && number(q) == at ->
        if :: row[q] -> reached("gone replica's row removed") :: else -> reached("claim without a row rescued") fi;
        row[q] = false; calm = 0;
        if :: job == RUNNING && owner == q -> reached("rescue"); put_back(PENDING, 0) :: else fi
    :: else -> reached("rescue refused")
    fi
}

proctype Rescuer(byte r) {
end: do
    :: atomic { awake(r) && target[r] == NOBODY && news(r, 0) -> look(r, 0) }
    :: atomic { awake(r) && target[r] == NOBODY && news(r, 1) -> look(r, 1) }
    :: atomic { awake(r) && target[r] == NOBODY && news(r, 2) -> look(r, 2) }
    :: atomic { awake(r) && target[r] != NOBODY ->
        rescue(target[r], seen_at(r, target[r]));
        seen(r, target[r]) = OFF; seen_at(r, target[r]) = 0; target[r] = NOBODY
    }
    od
}

/* ---- what goes wrong, and what is put right ---- */

proctype World(byte r) {
end: do
    :: atomic { awake(r) && faults < FAULTS -> fault(); frozen[r] = true }
    :: atomic { !dead[r] && faults < FAULTS -> fault(); die(r) }
    :: atomic { session[r] == USED && faults < FAULTS -> fault(); close_session(r) } /* ended by the server */
    :: atomic { frozen[r] -> frozen[r] = false; calm = 0 }
    :: atomic { stalled[r] -> stalled[r] = false; calm = 0 }
    :: atomic { awake(r) && !draining[r] && stops < STOPS -> stops++; draining[r] = true }
    od
}

inline start(r) { dead[r] = false; row[r] = true; turn[r] = BEATING }

proctype Systemd() { /* what has died is started again, as another replica */
#ifndef PAIR
end: atomic { dead[0] || dead[1] -> reached("third replica"); start(2) }
#else
    skip
#endif
}

/* ---- time ---- */

#define healthy(r) (awake(r) && !stalled[r] && !draining[r] && !ending[r])
#define works(r) (awake(r) && place[r] == EXECUTING && job == RUNNING && attempt == flying[r])
#define rested(r) (!awake(r) || ((turn[r] == RESTED && request[r] == NONE || stalled[r] && request[r] != NONE) \
    && (place[r] == NONE || place[r] == EXECUTING) && outcome[r] == 0 && settling[r] == 0 && target[r] == NOBODY \
    && !news(r, 0) && !news(r, 1) && !news(r, 2) && !sealed[r] && !ending[r]))

inline age(r, q) { if :: seen(r, q) != OFF -> seen(r, q) = at_most(seen(r, q) + 1, ORPHAN) :: else fi }

inline pass(r) {
    mind(r);
    if
    :: !dead[r] ->
        trusted[r] = at_most(trusted[r] + 1, ORPHAN); if :: fence[r] != OFF -> needed[r] = at_most(needed[r] + 1, LATELY + 1) :: else fi;
        if
        :: request[r] != NONE -> asked[r] = at_most(asked[r] + 1, ORPHAN)
        :: else -> asked[r] = 0; if :: turn[r] == RESTED -> turn[r] = BEATING :: else fi
        fi;
        age(r, 0); age(r, 1); age(r, 2);
        if :: fence[r] == OFF :: fence[r] == 1 -> reached("fence strikes"); die(r) :: else -> fence[r]-- fi
    :: else
    fi;
    if
#ifndef BROKEN_EXPIRY
    :: session[r] != GONE && quiet[r] >= LEASE - 1 -> reached("session expires"); close_session(r)
#endif
    :: session[r] != GONE && quiet[r] < LEASE - 1 -> quiet[r]++
    :: else
    fi
}

proctype Clock() {
    do
    :: atomic { job != ENDED && rested(0) && rested(1) && rested(2) ->
        if
        :: works(0) || works(1) || works(2) -> calm = 0
        :: !(works(0) || works(1) || works(2)) && (healthy(0) || healthy(1) || healthy(2)) -> calm++
        :: else
        fi;
        assert(calm <= BOUND); /* nothing is lost */
        pass(0); pass(1); pass(2);
        if
        :: job == SCHEDULED && due <= 1 -> job = PENDING; due = 0
        :: job == SCHEDULED && due > 1 -> due--
        :: else
        fi
    }
    :: job == ENDED -> break
    od
}

/* The start: both have their sessions, and the lease is free. */
inline join(r) { session[r] = USED; incarnation[r] = 1; raised[r] = true; connected[r] = true }

init {
    byte r;
    atomic {
        dead[2] = true; start(0); start(1); join(0); join(1);
        for (r : 0 .. REPLICAS - 1) {
            run Server(r); run Heart(r); run Main(r); run Worker(r); run Completer(r); run Rescuer(r); run World(r)
        }
        r = 0; run Systemd(); run Clock()
    }
}
