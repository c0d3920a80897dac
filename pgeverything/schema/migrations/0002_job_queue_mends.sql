-- Mends of the job queue: acknowledgements as functions, lookups that no statistics can turn into scans, the transaction of
-- a job, the order of locks, fairness of limited queues, partitions of a day that is under way, times that programs cannot
-- read.
--
-- A vacuum that finds a table momentarily empty records that it has no rows. Every way to find one then costs the same in
-- the planner's eyes, and a join of ten jobs with `jobs` may read the whole index and compare each row with the ten.
-- What names its rows in a condition of its own, `id = any (array)` or `id = x` below a lateral limit, cannot: Postgres
-- never leaves out a condition on the first column of an index that it uses.


-- The transaction that enqueued a job, by the column's default: that costs an enqueue 8 bytes and no change of its function.
-- It is found by a BRIN index: transactions come in order, near enough, so a look-up reads a few ranges of pages, and an
-- insert pays next to nothing.
alter table pgeverything.jobs add column transaction_id bigint;
alter table pgeverything.jobs alter column transaction_id set default (pg_current_xact_id()::text)::bigint;
alter table pgeverything.finished add column transaction_id bigint;
comment on column pgeverything.jobs.transaction_id is 'that enqueued it; null of jobs from before this column';
create index jobs_transaction on pgeverything.jobs using brin (transaction_id);
create index finished_transaction on pgeverything.finished using brin (transaction_id);


-- As before, with the transaction.
create or replace function pgeverything.bury(job bigint, reason text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off
as $$
begin
  with body as (delete from pgeverything.jobs j where j.id = bury.job returning j.*)
  insert into pgeverything.finished (id, queue, task, state, priority, args, headers, unique_key, ordering_key, max_attempts,
                                     timeout, expires_at, created_at, finished_at, attempt, crashes, redriven, origin, reason,
                                     transaction_id)
  select b.id, b.queue, b.task, 'cancelled', b.priority, b.args, b.headers, b.unique_key, b.ordering_key, b.max_attempts,
         b.timeout, b.expires_at, b.created_at, clock_timestamp(), coalesce(b.attempt, 0), coalesce(b.crashes, 0), b.redriven,
         b.origin, bury.reason, b.transaction_id
  from body b;
end $$;


-- Ends jobs that a worker still owns: their bodies move to the finished ones, and their turns pass on. Returns the jobs
-- that were accepted; one that was rescued meanwhile is missing, and its late result is refused. Also returns how many
-- turns and limited queues got free.
-- Nested loops are off because the parts are joined with each other too, and a part that is thought to have one row and
-- has 500 costs 250,000 comparisons a batch.
-- Keys are locked in the order of their bytes, as everywhere: `turn_notes` sorts so by its columns, `jobs` by the database's
-- own rules, and where these differ two statements waited for each other.
create function pgeverything.finish(
  worker bigint, jobs bigint[], tokens bigint[], states text[], results text[], reasons text[],
  out accepted bigint[], out freed bigint)
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_nestloop = off set jit = off
as $$
begin
  with given as (
    select g.job, g.token, g.state, g.result, g.reason
    from unnest(finish.jobs, finish.tokens, finish.states, finish.results, finish.reasons)
      as g(job, token, state, result, reason)),
  done as (
    delete from pgeverything.running r using given g
    where r.job = any (finish.jobs) and r.job = g.job and r.token = g.token and r.worker = finish.worker
    returning r.job, r.queue, r.limited, r.attempt, r.crashes, r.started_at, g.state, g.result, g.reason),
  body as (
    delete from pgeverything.jobs j using done d
    where j.id = any (finish.jobs) and j.id = d.job
    returning j.id, j.queue, j.task, d.state, j.priority, j.args, j.headers, j.unique_key, j.ordering_key, j.max_attempts,
              j.timeout, j.expires_at, j.created_at, d.started_at, d.attempt, d.crashes, j.redriven, j.origin, d.reason,
              d.result, j.transaction_id),
  kept as (
    insert into pgeverything.finished (id, queue, task, state, priority, args, headers, unique_key, ordering_key,
      max_attempts, timeout, expires_at, created_at, started_at, finished_at, attempt, crashes, redriven, origin, worker,
      reason, result, transaction_id)
    select b.id, b.queue, b.task, b.state, b.priority, b.args, b.headers, b.unique_key, b.ordering_key, b.max_attempts,
      b.timeout, b.expires_at, b.created_at, b.started_at, clock_timestamp(), b.attempt, b.crashes, b.redriven, b.origin,
      finish.worker,
      case when b.state = 'cancelled' then coalesce(b.reason, (
        select c.reason from pgeverything.cancellations c where c.job = b.id)) end,
      b.result::jsonb, b.transaction_id
    from body b)
  select array(select d.job from done d),
         coalesce((
           select sum(pgeverything.release(k.queue, k.ordering_key, k.n))
           from (select b.queue, b.ordering_key, count(*)::integer as n from body b where b.ordering_key is not null
                 group by 1, 2 order by b.queue collate "C", b.ordering_key collate "C") k), 0)
         + (select count(pgeverything.wake(l.queue)::text) from (select distinct d.queue from done d where d.limited) l)
  into accepted, freed;
end $$;


-- Records failed attempts. A job with a delay tries again after so many seconds; one without is dead and passes its turn
-- on. `used` is 1 where the attempt counts and 0 where it does not (a snooze). Returns what finish() returns.
-- What dies without an error of its own, because it has expired or nobody knows its task any more, keeps that of its last
-- attempt, if there was one since it was redriven. Workers that sleep hear of a job that is to be tried again, as they do of
-- one that is enqueued with a delay: the worker that failed may have its hands full when it is due, or be gone.
create function pgeverything.fail(
  worker bigint, jobs bigint[], tokens bigint[], delays double precision[], used integer[], reasons text[],
  fingerprints text[], errors text[], out accepted bigint[], out freed bigint)
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_nestloop = off set jit = off
as $$
begin
  with given as (
    select g.job, g.token, g.delay, g.used, g.reason, g.fingerprint, g.error, clock_timestamp() as at
    from unnest(fail.jobs, fail.tokens, fail.delays, fail.used, fail.reasons, fail.fingerprints, fail.errors)
      as g(job, token, delay, used, reason, fingerprint, error)),
  done as (
    delete from pgeverything.running r using given g
    where r.job = any (fail.jobs) and r.job = g.job and r.token = g.token and r.worker = fail.worker
    returning r.job, r.queue, r.limited, r.attempt - 1 + g.used as attempt, r.crashes, g.delay, g.reason, g.fingerprint,
              g.error, g.at),
  again as (
    insert into pgeverything.scheduled (job, due_at, queue, priority, attempt, crashes, ordering_key, holds)
    select d.job, d.at + make_interval(secs => d.delay), j.queue, j.priority, d.attempt, d.crashes, j.ordering_key,
           j.ordering_key is not null
    from done d join pgeverything.jobs j on j.id = d.job
    where j.id = any (fail.jobs) and d.delay is not null),
  dying as materialized (
    select d.*, case when d.error is null and d.attempt + d.crashes > 0 then (
             select f.error from pgeverything.failures f where f.job = d.job order by f.at desc limit 1) end as last
    from done d where d.delay is null),
  dead as (
    update pgeverything.jobs j
    set dead = true, died_at = d.at, reason = d.reason, error = coalesce(d.error::jsonb, d.last),
        fingerprint = coalesce(d.fingerprint, d.last ->> 'fingerprint', case when d.last is not null then 'crash' end),
        attempt = d.attempt, crashes = d.crashes
    from dying d where j.id = any (fail.jobs) and j.id = d.job
    returning j.queue, j.ordering_key),
  logged as (
    insert into pgeverything.failures (job, at, attempt, worker, error)
    select d.job, d.at, d.attempt, fail.worker, d.error::jsonb from done d where d.error is not null)
  select array(select d.job from done d),
         coalesce((
           select sum(pgeverything.release(k.queue, k.ordering_key, k.n))
           from (select d.queue, d.ordering_key, count(*)::integer as n from dead d where d.ordering_key is not null
                 group by 1, 2 order by d.queue collate "C", d.ordering_key collate "C") k), 0)
         + (select count(pgeverything.wake(l.queue)::text)
            from (select distinct d.queue from done d where d.limited or d.delay is not null) l)
  into accepted, freed;
end $$;


-- As before, but the bodies are looked up one by one below a limit, which no join order can undo.
create or replace function pgeverything.claim(
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
  from picked p cross join lateral (select b.* from pgeverything.jobs b where b.id = p.job limit 1) j;
end $$;


-- As before, but the head of a line is named when it leaves it: a join could compare the head with the whole line. And
-- nested loops are on, whoever calls.
create or replace function pgeverything.release(queue text, ordering_key text, given_back integer) returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set enable_hashjoin = off set enable_mergejoin = off
set enable_nestloop = on set jit = off
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
    delete from pgeverything.waiting w where w.job = any (array(select h.job from head h))),
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


-- As before, but the lanes are taken in the order given, which is the claimer's: by priority, and by chance where that is
-- the same. In the order of names the first queue with a backlog starved the others. A queue that is full is passed by
-- without a lock, which would be a write.
create or replace function pgeverything.claim_limited(worker bigint, queues text[], priorities integer[], most integer)
returns setof pgeverything.claimed
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off
as $$
declare
  lane    record;
  allowed integer;
  free    bigint;
  n       bigint;
begin
  for lane in
    select l.queue, l.priority
    from unnest(claim_limited.queues, claim_limited.priorities) with ordinality as l(queue, priority, place)
    order by l.place
  loop
    exit when most <= 0;
    continue when (select q.concurrency from pgeverything.queues q where q.name = lane.queue)
      <= (select count(*) from pgeverything.running r where r.queue = lane.queue and r.limited);
    select q.concurrency into allowed from pgeverything.queues q
      where q.name = lane.queue and q.concurrency is not null and not q.paused
      for update skip locked;
    continue when not found;
    -- Once more, with the lock: others may have taken some meanwhile.
    free := least(most, allowed - (
      select count(*) from pgeverything.running r where r.queue = lane.queue and r.limited));
    continue when free <= 0;
    return query
      select c.*
      from pgeverything.claim(worker, array[lane.queue], array[lane.priority], array[0::bigint], free::integer, true) c;
    get diagnostics n = row_count;
    most := most - n;
  end loop;
end $$;


-- As before, but a day whose rows go to the default partition until now, and keep coming, is left for later: moving and
-- attaching are two steps, a job that ends between them makes the second fail, and that stopped all the other days too.
create or replace function pgeverything.maintain_partitions(ahead integer, keep interval)
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
      exception when lock_not_available or duplicate_table or unique_violation or check_violation then
        null;  -- another sweep does it, or this one next time, or the next day's: a job ended since the rows were moved
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


-- Times that programs can read. From psql anybody could enqueue for `infinity` or the year 20000: then lists of jobs
-- failed in Python, and before PostgreSQL 17 a due time of `infinity` ended every worker that asked when it is due.
update pgeverything.scheduled set due_at = timestamptz '9899-01-01 00:00 UTC' where due_at >= timestamptz '9900-01-01 00:00 UTC';
alter table pgeverything.scheduled add constraint due_at_is_before_the_year_9900
  check (due_at < timestamptz '9900-01-01 00:00 UTC');
update pgeverything.jobs set expires_at = null
  where expires_at < timestamptz '1000-01-01 00:00 UTC' or expires_at >= timestamptz '9900-01-01 00:00 UTC';
alter table pgeverything.jobs add constraint expires_at_is_in_the_years_1000_to_9899
  check (expires_at >= timestamptz '1000-01-01 00:00 UTC' and expires_at < timestamptz '9900-01-01 00:00 UTC');
