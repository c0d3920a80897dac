-- The job queue and its dead letters.
--
-- A job's state is the table its small row is in (ready, running, scheduled, waiting); its body stays put in `jobs`
-- until it ends. Nothing that changes with every claim is indexed in a big table, so claiming costs the same at
-- 10^8 finished jobs as at none.

create sequence pgeverything.job_seq;      -- ids of jobs, places in line and fencing tokens: one increasing source
create sequence pgeverything.worker_seq;

create table pgeverything.queues (
  name        text primary key,
  paused      boolean not null default false,
  max_depth   bigint check (max_depth > 0),
  on_full     text not null default 'raise' check (on_full in ('raise', 'wait', 'drop')),
  concurrency integer check (concurrency > 0),
  per_key     integer not null default 1 check (per_key > 0)
);

create table pgeverything.jobs (
  id           bigint primary key,
  queue        text not null,
  task         text not null,
  priority     integer not null,
  args         jsonb not null,
  headers      jsonb,
  max_attempts integer,
  timeout      interval,
  expires_at   timestamptz,
  unique_key   text,
  ordering_key text,
  created_at   timestamptz not null,
  dead         boolean not null default false,
  died_at      timestamptz,
  reason       text,
  fingerprint  text,
  error        jsonb,
  attempt      integer,
  crashes      integer,
  redriven     integer not null default 0,
  origin       text
);
comment on column pgeverything.jobs.attempt is 'attempts used; set when the job dies, counted beside its place before that';
comment on column pgeverything.jobs.origin is 'the queue it died in, when a redrive sent it to another';
create unique index jobs_unique_key on pgeverything.jobs (task, unique_key) where unique_key is not null and not dead;
create index jobs_dead on pgeverything.jobs (died_at, id) where dead;

create table pgeverything.ready (
  queue    text collate "C" not null,
  priority integer not null,
  seq      bigint not null,
  job      bigint not null,
  attempt  integer not null default 0,
  crashes  integer not null default 0,
  primary key (queue, priority, seq)
);
-- A job that was never moved has seq = job and is found by the primary key; only the others need an index of their own.
create index ready_moved on pgeverything.ready (job) where job <> seq;

create table pgeverything.running (
  job        bigint primary key,
  token      bigint not null,
  worker     bigint not null,
  queue      text not null,
  attempt    integer not null,
  crashes    integer not null,
  started_at timestamptz not null,
  limited    boolean not null default false,
  progress   real,
  note       text
) with (fillfactor = 90);
comment on column pgeverything.running.token is 'the place in line it was claimed from; with the worker it names one claim, so a late result of an older one is refused';
create index running_limited on pgeverything.running (queue) where limited;

-- Asked of running jobs. A table of its own, because a cancel in a long transaction must not lock the row that the
-- worker's acknowledgement deletes.
create table pgeverything.cancellations (
  job    bigint primary key,
  reason text not null
);

create table pgeverything.scheduled (
  job          bigint primary key,
  due_at       timestamptz not null,
  queue        text not null,
  priority     integer not null,
  attempt      integer not null default 0,
  crashes      integer not null default 0,
  ordering_key text,
  holds        boolean not null default false
);
comment on column pgeverything.scheduled.holds is 'it had begun: it keeps its turn of the ordering key while it waits to try again';
create index scheduled_due on pgeverything.scheduled (due_at);

create table pgeverything.waiting (
  queue        text collate "C" not null,
  ordering_key text collate "C" not null,
  seq          bigint not null,
  job          bigint not null,
  priority     integer not null,
  attempt      integer not null default 0,
  crashes      integer not null default 0,
  primary key (queue, ordering_key, seq)
);
create unique index waiting_job on pgeverything.waiting (job);

-- How many jobs of an ordering key have their turn now (ready, running, or between two attempts).
create table pgeverything.turns (
  queue        text collate "C" not null,
  ordering_key text collate "C" not null,
  held         integer not null,
  primary key (queue, ordering_key)
) with (fillfactor = 70);

-- Notes from open transactions to the workers: this key has a new job, or gave a turn back. An enqueue never touches
-- `turns`, so two long transactions that use one ordering key neither wait for each other nor deadlock.
create table pgeverything.turn_notes (
  seq          bigint primary key,
  queue        text collate "C" not null,
  ordering_key text collate "C" not null,
  given_back   integer not null
);

create table pgeverything.workers (
  id           bigint primary key,
  name         text not null,
  queues       text[] not null,
  concurrency  integer not null,
  started_at   timestamptz not null,
  heartbeat_at timestamptz not null,
  lease        interval not null,
  asleep       boolean not null default false,
  finished     bigint not null default 0,
  failed       bigint not null default 0,
  refused      bigint not null default 0
) with (fillfactor = 50);

comment on column pgeverything.workers.lease is 'how long after its last heartbeat the others take its jobs';

-- When the fleet's next sweep is due: the first worker to pass that time takes it, so there is no leader to lose.
create table pgeverything.sweeps (
  name     text primary key,
  swept_at timestamptz not null,
  next_at  timestamptz not null
) with (fillfactor = 50);

create table pgeverything.finished (
  id           bigint not null,
  queue        text not null,
  task         text not null,
  state        text not null check (state in ('succeeded', 'cancelled')),
  priority     integer not null,
  args         jsonb not null,
  headers      jsonb,
  unique_key   text,
  ordering_key text,
  max_attempts integer,
  timeout      interval,
  expires_at   timestamptz,
  created_at   timestamptz not null,
  started_at   timestamptz,
  finished_at  timestamptz not null,
  attempt      integer not null,
  crashes      integer not null,
  redriven     integer not null default 0,
  origin       text,
  worker       bigint,
  reason       text,
  result       jsonb
) partition by range (finished_at);
create index finished_id on pgeverything.finished (id);

create table pgeverything.failures (
  job     bigint not null,
  at      timestamptz not null,
  attempt integer not null,
  worker  bigint,
  error   jsonb not null
) partition by range (at);
create index failures_job on pgeverything.failures (job);

-- Rows of days without a partition of their own; stays empty while a worker runs at least once a week.
create table pgeverything.finished_default partition of pgeverything.finished default;
create table pgeverything.failures_default partition of pgeverything.failures default;

-- Live tables are small and change all the time: vacuum them by the number of dead rows, not by their share.
alter table pgeverything.ready      set (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);
alter table pgeverything.running    set (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);
alter table pgeverything.scheduled  set (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);
alter table pgeverything.waiting    set (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);
alter table pgeverything.turns      set (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);
alter table pgeverything.turn_notes set (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);
alter table pgeverything.workers    set (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 200,  autovacuum_vacuum_cost_delay = 0);
alter table pgeverything.jobs       set (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 10000);


-- Daily partitions -----------------------------------------------------------------------------------------------

-- Creates the partitions of the next days and drops those past their retention. Runs as the schema's owner, so that
-- workers need no right to create anything. An attach takes SHARE UPDATE EXCLUSIVE on the parent and blocks nobody;
-- a drop takes ACCESS EXCLUSIVE, gives up after 100 ms behind a long reader, and is tried again by the next sweep.
create function pgeverything.maintain_partitions(ahead integer, keep interval)
returns table (created integer, dropped integer)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '100ms'
set timezone = 'UTC'
as $$
declare
  home   text := quote_ident('pgeverything');
  parent record;
  part   record;
  day    date;
  name   text;
begin
  created := 0;
  dropped := 0;
  for parent in select * from (values ('finished', 'finished_at'), ('failures', 'at')) as p(name, stamp) loop
    for day in execute format(
      'select d::date from generate_series(current_date, current_date + $1, interval ''1 day'') d
       union select %I::date from %s.%I', parent.stamp, home, parent.name || '_default') using ahead
    loop
      name := parent.name || to_char(day, '_YYYYMMDD');
      continue when to_regclass(format('%s.%I', home, name)) is not null;
      begin
        execute format('create table %s.%I (like %s.%I including all)', home, name, home, parent.name);
        execute format('with moved as (delete from %s.%I where %I >= %L and %I < %L returning *)
                        insert into %s.%I select * from moved',
                       home, parent.name || '_default', parent.stamp, day, parent.stamp, day + 1, home, name);
        execute format('alter table %s.%I attach partition %s.%I for values from (%L) to (%L)',
                       home, parent.name, home, name, day, day + 1);
        created := created + 1;
      exception when lock_not_available or duplicate_table or unique_violation then
        null;  -- another sweep does it, or this one next time
      end;
    end loop;
    for part in
      select c.relname::text as name, to_date(right(c.relname, 8), 'YYYYMMDD') as day
      from pg_inherits i join pg_class c on c.oid = i.inhrelid
      where i.inhparent = format('%s.%I', home, parent.name)::regclass and c.relname ~ '_[0-9]{8}$'
    loop
      continue when part.day + 1 > clock_timestamp() - keep;
      begin
        execute format('drop table %s.%I', home, part.name);
        dropped := dropped + 1;
      exception when lock_not_available or undefined_table then
        null;
      end;
    end loop;
  end loop;
  return next;
end $$;

-- It drops history with its owner's rights, so only roles that are told may run it.
revoke execute on function pgeverything.maintain_partitions(integer, interval) from public;

select pgeverything.maintain_partitions(7, interval '100 years');


-- Waking sleepers ------------------------------------------------------------------------------------------------

-- Notifies only when a worker of that queue sleeps: a notifying commit takes a lock of the whole cluster, and under
-- load nobody sleeps.
create function pgeverything.wake(queue text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  if exists (select from pgeverything.workers w where w.asleep and wake.queue = any (w.queues)) then
    perform pg_notify('pgeverything', 'queue ' || wake.queue);
  end if;
end $$;

-- Functions that walk an index in order say so with `set enable_... = off`: a queue goes from empty to a million rows
-- between two runs of autovacuum, and a planner with no statistics then prefers to sort all of it for the first 200 rows
-- (measured: 400 jobs/s instead of 20,000). Inside a function the choice is part of the schema and leaves no session
-- state behind.
-- Those that only look up single rows of large tables say no more than `enable_seqscan = off`: a session keeps the plans
-- of its functions, also the one that read a table sequentially because it fitted one page.
-- `jit = off` belongs to it: what is ruled out and unavoidable all the same (a sort of ten keys) is estimated at 10^10,
-- and the compiler that such an estimate starts made advance() take 700 ms instead of 2.


-- Turns of ordering keys -----------------------------------------------------------------------------------------

-- Gives back `given_back` turns of a key and passes the free ones to the heads of its line; returns how many.
-- A function and not one statement, because the second part must see what was committed while the first waited for
-- the row lock: with one snapshot for both, a job that was enqueued meanwhile would be left behind. Called only in
-- short transactions of workers, for several keys in sorted order.
create function pgeverything.release(queue text, ordering_key text, given_back integer) returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set enable_hashjoin = off set enable_mergejoin = off
set jit = off
as $$
declare
  busy  integer;
  most  integer := coalesce((select q.per_key from pgeverything.queues q where q.name = release.queue), 1);
  moved integer;
begin
  insert into pgeverything.turns as t (queue, ordering_key, held) values (release.queue, release.ordering_key, 0)
  on conflict on constraint turns_pkey do update set held = t.held - release.given_back
  returning t.held into busy;
  with head as materialized (
    select w.seq, w.job, w.priority, w.attempt, w.crashes
    from pgeverything.waiting w
    where w.queue = release.queue and w.ordering_key = release.ordering_key
    order by w.seq
    limit greatest(most - busy, 0)
    for update skip locked),
  gone as (
    delete from pgeverything.waiting w using head h
    where w.queue = release.queue and w.ordering_key = release.ordering_key and w.seq = h.seq),
  put as (
    insert into pgeverything.ready (queue, priority, seq, job, attempt, crashes)
    select release.queue, h.priority, nextval('pgeverything.job_seq'), h.job, h.attempt, h.crashes
    from (select * from head order by seq) h)
  select count(*) into moved from head;
  if busy + moved <= 0 then
    delete from pgeverything.turns t where t.queue = release.queue and t.ordering_key = release.ordering_key;
  elsif moved > 0 then
    update pgeverything.turns t set held = t.held + moved
    where t.queue = release.queue and t.ordering_key = release.ordering_key;
  end if;
  return moved;
end $$;

-- Moves what is due: scheduled jobs whose time has come, and lines of ordering keys that have news. Any number of
-- workers may call it at once. Returns how many jobs moved and when the next scheduled one is due.
create function pgeverything.advance(batch integer, out moved bigint, out next_due timestamptz)
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set enable_hashjoin = off set enable_mergejoin = off
set jit = off
as $$
declare
  at     timestamptz := clock_timestamp();  -- a variable, because a volatile function cannot bound an index scan
  queues text[];
begin
  with due as materialized (
    select s.job, s.queue, s.priority, s.attempt, s.crashes, s.ordering_key, s.holds
    from pgeverything.scheduled s
    where s.due_at <= at
    order by s.due_at
    limit batch
    for update skip locked),
  gone as (
    delete from pgeverything.scheduled s where s.job = any (array(select d.job from due d))),
  put as (
    insert into pgeverything.ready (queue, priority, seq, job, attempt, crashes)
    select d.queue, d.priority, nextval('pgeverything.job_seq'), d.job, d.attempt, d.crashes
    from due d where d.ordering_key is null or d.holds),
  lined as (
    insert into pgeverything.waiting (queue, ordering_key, seq, job, priority, attempt, crashes)
    select d.queue, d.ordering_key, nextval('pgeverything.job_seq'), d.job, d.priority, d.attempt, d.crashes
    from due d where d.ordering_key is not null and not d.holds),
  noted as (
    insert into pgeverything.turn_notes (seq, queue, ordering_key, given_back)
    select nextval('pgeverything.job_seq'), d.queue, d.ordering_key, 0
    from (select distinct d.queue, d.ordering_key from due d where d.ordering_key is not null and not d.holds) d)
  select count(*), array_agg(distinct d.queue) into moved, queues from due d;

  if exists (select from pgeverything.turn_notes) then
    with taken as (
      select n.seq, n.queue, n.ordering_key, n.given_back
      from pgeverything.turn_notes n order by n.seq limit batch for update skip locked),
    gone as (
      delete from pgeverything.turn_notes n where n.seq = any (array(select t.seq from taken t))),
    passed as (
      select k.queue, pgeverything.release(k.queue, k.ordering_key, k.given_back) as n
      from (select t.queue, t.ordering_key, sum(t.given_back)::integer as given_back
            from taken t group by 1, 2 order by 1, 2) k)
    select moved + coalesce(sum(p.n), 0), queues || array_agg(distinct p.queue) filter (where p.n > 0)
    into moved, queues from passed p;
  end if;

  perform pgeverything.wake(q) from (select distinct q from unnest(queues) q) w;
  select s.due_at into next_due from pgeverything.scheduled s where s.due_at > at order by s.due_at limit 1;
end $$;


-- Claim ----------------------------------------------------------------------------------------------------------

-- The (queue, priority) pairs that hold ready jobs, and whether the queue has a fleet-wide limit. Found by hopping from
-- one to the next in the index, backwards: the newest end of a lane is live, while its oldest may be a long run of dead
-- rows under a pinned snapshot.
create function pgeverything.lanes(queues text[]) returns table (queue text, priority integer, limited boolean)
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set enable_hashjoin = off set enable_mergejoin = off
set jit = off
as $$
begin
  return query
  with recursive lane as (
    (select r.queue, r.priority from pgeverything.ready r order by r.queue desc, r.priority desc, r.seq desc limit 1)
    union all
    select n.queue, n.priority
    from lane l cross join lateral (
      select r.queue, r.priority from pgeverything.ready r
      where (r.queue, r.priority) < (l.queue, l.priority)
      order by r.queue desc, r.priority desc, r.seq desc limit 1) n)
  select l.queue, l.priority,
         exists (select from pgeverything.queues q where q.name = l.queue and q.concurrency is not null)
  from lane l where l.queue = any (lanes.queues);
end $$;

-- What a worker gets of a job it has claimed.
create type pgeverything.claimed as (
  job bigint, token bigint, task text, args text, attempt integer, queue text, priority integer, ordering_key text,
  max_attempts integer, timeout double precision, expired boolean, crashes integer, headers text, unique_key text,
  created_at timestamptz);

-- Takes up to `most` jobs for a worker from these lanes, in their order, each from behind the place where the worker's
-- last claim ended. The lateral scans are pulled one row at a time, so exactly the jobs that are taken are locked. A
-- worker that was declared dead and has not noticed yet gets nothing: it may still run the jobs that were taken from it.
create function pgeverything.claim(
  worker bigint, queues text[], priorities integer[], after bigint[], most integer, limited boolean default false)
returns setof pgeverything.claimed
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set enable_hashjoin = off set enable_mergejoin = off
set jit = off
as $$
begin
  return query
  with lane as (
    select l.queue, l.priority, l.after
    from unnest(claim.queues, claim.priorities, claim.after) as l(queue, priority, after)
    where not exists (
      select from pgeverything.queues q
      where q.name = l.queue and (q.paused or (q.concurrency is not null and not claim.limited)))
    and exists (select from pgeverything.workers w where w.id = claim.worker)),
  picked as materialized (
    select r.place, r.job, r.seq, r.queue, r.attempt, r.crashes
    from lane l cross join lateral (
      select r.ctid as place, r.job, r.seq, r.queue, r.attempt, r.crashes
      from pgeverything.ready r
      where r.queue = l.queue and r.priority = l.priority and r.seq > l.after
      order by r.seq
      limit claim.most
      for update skip locked) r
    limit claim.most),
  taken as (
    delete from pgeverything.ready r where r.ctid = any (array(select p.place from picked p))),
  started as (
    insert into pgeverything.running (job, token, worker, queue, attempt, crashes, started_at, limited)
    select p.job, p.seq, claim.worker, p.queue, p.attempt + 1, p.crashes, clock_timestamp(), claim.limited from picked p)
  select p.job, p.seq, j.task, j.args::text, p.attempt + 1, j.queue, j.priority, j.ordering_key, j.max_attempts,
         extract(epoch from j.timeout)::double precision, j.expires_at < clock_timestamp(),
         p.crashes, j.headers::text, j.unique_key, j.created_at
  from picked p join pgeverything.jobs j on j.id = p.job;
end $$;

-- Takes jobs of queues that have a fleet-wide limit: one claimer at a time counts and takes, while it holds the row lock
-- of the queue; others pass by. A function, because the count must see what was committed before the lock was had.
create function pgeverything.claim_limited(worker bigint, queues text[], priorities integer[], most integer)
returns setof pgeverything.claimed
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  q    record;
  free bigint;
  n    bigint;
begin
  for q in
    select c.name, c.concurrency from pgeverything.queues c
    where c.name = any (queues) and c.concurrency is not null and not c.paused
    order by c.name
    for update skip locked
  loop
    exit when most <= 0;
    free := least(most, q.concurrency - (
      select count(*) from pgeverything.running r where r.queue = q.name and r.limited));
    continue when free <= 0;
    return query
      select c.*
      from (select array_agg(l.queue) as queues, array_agg(l.priority order by l.priority desc) as priorities,
                   array_agg(0::bigint) as after
            from unnest(claim_limited.queues, claim_limited.priorities) as l(queue, priority)
            where l.queue = q.name) lane
      cross join lateral pgeverything.claim(worker, lane.queues, lane.priorities, lane.after, free::integer, true) c;
    get diagnostics n = row_count;
    most := most - n;
  end loop;
end $$;


-- Cancel ---------------------------------------------------------------------------------------------------------

-- Ends a job that has no place any more: its body moves to the finished jobs, cancelled.
create function pgeverything.bury(job bigint, reason text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off
as $$
begin
  with body as (delete from pgeverything.jobs j where j.id = bury.job returning j.*)
  insert into pgeverything.finished (id, queue, task, state, priority, args, headers, unique_key, ordering_key, max_attempts,
                                     timeout, expires_at, created_at, finished_at, attempt, crashes, redriven, origin, reason)
  select b.id, b.queue, b.task, 'cancelled', b.priority, b.args, b.headers, b.unique_key, b.ordering_key, b.max_attempts,
         b.timeout, b.expires_at, b.created_at, clock_timestamp(), coalesce(b.attempt, 0), coalesce(b.crashes, 0), b.redriven,
         b.origin, bury.reason
  from body b;
end $$;

-- Cancels a job in whatever state it is. Returns 'cancelled'; 'running' when its worker was asked to stop it; or null
-- when there is no such job that has not ended. `stop` false leaves a running job alone. Takes no lock that a worker
-- waits for, however long the caller's transaction stays open.
create function pgeverything.cancel(job bigint, reason text default 'cancelled', stop boolean default true) returns text
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off
as $$
declare
  body  record;
  keeps boolean;  -- whether it had a turn of its ordering key to give back
begin
  loop  -- each statement sees what was committed before it, so a job on the move is met sooner or later
    select j.queue, j.priority, j.ordering_key into body from pgeverything.jobs j where j.id = cancel.job;
    if not found then
      return null;
    end if;
    keeps := null;
    delete from pgeverything.scheduled s where s.job = cancel.job returning s.holds into keeps;
    if keeps is null then
      delete from pgeverything.waiting w where w.job = cancel.job returning false into keeps;
    end if;
    if keeps is null then
      delete from pgeverything.ready r
      where r.queue = body.queue and r.priority = body.priority and r.seq = cancel.job and r.job = cancel.job
      returning body.ordering_key is not null into keeps;
    end if;
    if keeps is null then
      delete from pgeverything.ready r where r.job = cancel.job and r.job <> r.seq
      returning body.ordering_key is not null into keeps;
    end if;
    if keeps is null then
      perform from pgeverything.jobs j where j.id = cancel.job and j.dead for update;
      if found then
        keeps := false;
      end if;
    end if;
    if keeps is not null then
      perform pgeverything.bury(cancel.job, cancel.reason);
      if keeps then
        insert into pgeverything.turn_notes (seq, queue, ordering_key, given_back)
          values (nextval('pgeverything.job_seq'), body.queue, body.ordering_key, 1);
        perform pgeverything.wake(body.queue);
      end if;
      return 'cancelled';
    end if;
    if exists (select from pgeverything.running r where r.job = cancel.job) then
      if stop then
        insert into pgeverything.cancellations (job, reason) values (cancel.job, cancel.reason)
          on conflict on constraint cancellations_pkey do nothing;
        perform pg_notify('pgeverything', 'cancel ' || cancel.job);
      end if;
      return 'running';
    end if;
  end loop;
end $$;


-- Enqueue --------------------------------------------------------------------------------------------------------

-- How many jobs are ready or waiting, counted up to `most`.
create function pgeverything.depth(queue text, most bigint) returns bigint
language plpgsql stable
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set enable_hashjoin = off set enable_mergejoin = off
set jit = off
as $$
begin
  return (select count(*) from (
    (select from pgeverything.ready r where r.queue = depth.queue limit most)
    union all (select from pgeverything.waiting w where w.queue = depth.queue limit most)) d);
end $$;

-- What a queue does with `wanted` more jobs that it has no room for: 'raise', 'wait' or 'drop'; null when it has room.
-- The depth is counted over at most `max_depth` index entries: cheap when far from the limit, about 10 ms per 100,000
-- jobs at it. Enqueues at the same moment do not see each other.
create function pgeverything.refusal(queue text, wanted bigint) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off
as $$
declare
  q record;
begin
  select c.max_depth, c.on_full into q from pgeverything.queues c where c.name = refusal.queue and c.max_depth is not null;
  if found and wanted + pgeverything.depth(queue, q.max_depth) > q.max_depth then
    -- What can never fit is not worth waiting for.
    return case when q.on_full = 'wait' and wanted > q.max_depth then 'raise' else q.on_full end;
  end if;
  return null;
end $$;

-- Gives jobs whose bodies are written their place, and returns the state they are in now. Those that `replace` others
-- need no room: refusing them would leave neither.
create function pgeverything.place(
  ids bigint[], queue text, priority integer, due_at timestamptz, ordering_key text, quiet boolean, replace boolean)
returns text
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off
as $$
declare
  state   text;
  refusal text;
begin
  if not replace and exists (select from pgeverything.queues q where q.name = place.queue and q.max_depth is not null) then
    refusal := pgeverything.refusal(queue, cardinality(ids));
  end if;
  if refusal = 'drop' then
    perform pgeverything.bury(id, 'dropped: the queue was full') from unnest(ids) id;
    return 'cancelled';
  elsif refusal is not null and quiet then
    delete from pgeverything.jobs j where j.id = any (ids);
    return 'full';
  elsif refusal is not null then
    raise exception 'queue % is full', queue using errcode = 'PGE01', hint = 'Try again later, or raise its max_depth.';
  elsif due_at > clock_timestamp() then
    state := 'scheduled';
    insert into pgeverything.scheduled (job, due_at, queue, priority, ordering_key)
      select id, place.due_at, place.queue, place.priority, place.ordering_key from unnest(ids) id;
  elsif ordering_key is not null then
    state := 'waiting';
    insert into pgeverything.waiting (queue, ordering_key, seq, job, priority)
      select place.queue, place.ordering_key, id, id, place.priority from unnest(ids) id;
    insert into pgeverything.turn_notes (seq, queue, ordering_key, given_back)
      values (nextval('pgeverything.job_seq'), place.queue, place.ordering_key, 0);
  else
    state := 'ready';
    insert into pgeverything.ready (queue, priority, seq, job)
      select place.queue, place.priority, id, id from unnest(ids) id;
  end if;
  -- For a scheduled job too: the sleeper may have to wake earlier than it planned. (Not a call of wake(): this is the
  -- hottest function of all.)
  if exists (select from pgeverything.workers w where w.asleep and place.queue = any (w.queues)) then
    perform pg_notify('pgeverything', 'queue ' || place.queue);
  end if;
  return state;
end $$;

-- Enqueues one job for every element of the JSON array `args`; returns their ids in that order, and the state they are
-- all in. `quiet` returns a refusal as the state 'full' instead of raising it, so that the caller's transaction lives on.
create function pgeverything.enqueue_many(
  task text, args jsonb, queue text default 'default', priority integer default 0, delay interval default null,
  run_at timestamptz default null, ordering_key text default null, max_attempts integer default null,
  timeout interval default null, expires interval default null, headers jsonb default null, quiet boolean default false,
  out ids bigint[], out state text, out created_at timestamptz)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  due_at timestamptz;
begin
  created_at := clock_timestamp();
  due_at := coalesce(run_at, created_at + delay);
  with body as (
    insert into pgeverything.jobs (id, queue, task, priority, args, headers, max_attempts, timeout, expires_at,
                                   ordering_key, created_at)
    select nextval('pgeverything.job_seq'), enqueue_many.queue, enqueue_many.task, enqueue_many.priority, a,
           enqueue_many.headers, enqueue_many.max_attempts, enqueue_many.timeout,
           coalesce(due_at, enqueue_many.created_at) + expires, enqueue_many.ordering_key, enqueue_many.created_at
    from jsonb_array_elements(enqueue_many.args) a
    returning jobs.id)
  select coalesce(array_agg(body.id), '{}') into ids from body;
  state := pgeverything.place(ids, queue, priority, due_at, ordering_key, quiet, replace => false);
end $$;

-- Enqueues one job. `on_duplicate` says what happens when an unfinished job of the same task has the same
-- `unique_key`: 'skip' returns that job, 'raise' raises, 'replace' cancels it and enqueues this one (a job that is
-- already running keeps running and gives up the key, and its end waits for this transaction's). Two enqueues of one
-- key at the same moment wait for each other.
create function pgeverything.enqueue(
  task text, args jsonb default '{}', queue text default 'default', priority integer default 0, delay interval default null,
  run_at timestamptz default null, unique_key text default null, on_duplicate text default 'skip',
  ordering_key text default null, max_attempts integer default null, timeout interval default null,
  expires interval default null, headers jsonb default null, quiet boolean default false,
  out id bigint, out state text, out created_at timestamptz)
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
declare
  due_at   timestamptz;
  replaced boolean := false;
begin
  created_at := clock_timestamp();
  due_at := coalesce(run_at, created_at + delay);
  loop
    insert into pgeverything.jobs (id, queue, task, priority, args, headers, max_attempts, timeout, expires_at, unique_key,
                                   ordering_key, created_at)
    values (nextval('pgeverything.job_seq'), enqueue.queue, enqueue.task, enqueue.priority, enqueue.args, enqueue.headers,
            enqueue.max_attempts, enqueue.timeout, coalesce(due_at, enqueue.created_at) + expires, enqueue.unique_key,
            enqueue.ordering_key, enqueue.created_at)
    on conflict (task, unique_key) where unique_key is not null and not dead do nothing
    returning jobs.id into enqueue.id;
    exit when id is not null;
    select j.id into enqueue.id from pgeverything.jobs j
      where j.task = enqueue.task and j.unique_key = enqueue.unique_key and not j.dead;
    continue when id is null;  -- it ended between the two statements
    if on_duplicate = 'replace' then
      if pgeverything.cancel(id, 'replaced', stop => false) = 'running' then
        update pgeverything.jobs j set unique_key = null where j.id = enqueue.id;
      end if;
      replaced := true;
    elsif on_duplicate = 'skip' or quiet then
      state := 'duplicate';
      return;
    else
      raise exception 'job % of task % has unique_key % and is not finished', id, task, unique_key using errcode = 'PGE02';
    end if;
  end loop;
  state := pgeverything.place(array[id], queue, priority, due_at, ordering_key, quiet, replaced);
end $$;


-- Every job in one view ------------------------------------------------------------------------------------------

-- Live and finished jobs with the state each is in. A ready job that was never moved has no attempts behind it, so
-- only moved ones are looked up in `ready`.
create view pgeverything.all_jobs as
select j.id, j.queue, j.task,
       case when j.dead then 'dead'
            when r.job is not null then 'running'
            when s.job is not null then 'scheduled'
            when w.job is not null then 'waiting'
            else 'ready' end as state,
       j.priority, j.args, j.headers, j.unique_key, j.ordering_key, j.max_attempts, j.timeout, j.expires_at, j.created_at,
       s.due_at as run_at, r.started_at, j.died_at as finished_at,
       coalesce(r.attempt, s.attempt, w.attempt, m.attempt, j.attempt, 0) as attempt,
       coalesce(r.crashes, s.crashes, w.crashes, m.crashes, j.crashes, 0) as crashes,
       j.redriven, j.origin, r.worker, r.progress, r.note, j.reason, j.fingerprint, j.error, null::jsonb as result
from pgeverything.jobs j
left join pgeverything.running r on r.job = j.id
left join pgeverything.scheduled s on s.job = j.id
left join pgeverything.waiting w on w.job = j.id
left join pgeverything.ready m on m.job = j.id and m.job <> m.seq
union all
select f.id, f.queue, f.task, f.state, f.priority, f.args, f.headers, f.unique_key, f.ordering_key, f.max_attempts, f.timeout,
       f.expires_at, f.created_at, null, f.started_at, f.finished_at, f.attempt, f.crashes, f.redriven, f.origin, f.worker,
       null, null, f.reason, null, null, f.result
from pgeverything.finished f;
