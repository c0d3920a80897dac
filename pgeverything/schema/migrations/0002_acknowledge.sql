-- Acknowledgements as functions, and lookups that no statistics can turn into scans.
--
-- A vacuum that finds a table momentarily empty records that it has no rows. Every way to find one then costs the same in
-- the planner's eyes, and a join of ten jobs with `jobs` may read the whole index and compare each row with the ten.
-- What names its rows in a condition of its own, `id = any (array)` or `id = x` below a lateral limit, cannot: Postgres
-- never leaves out a condition on the first column of an index that it uses.


-- Ends jobs that a worker still owns: their bodies move to the finished ones, and their turns pass on. Returns the jobs
-- that were accepted; one that was rescued meanwhile is missing, and its late result is refused. Also returns how many
-- turns and limited queues got free.
-- Nested loops are off because the parts are joined with each other too, and a part that is thought to have one row and
-- has 500 costs 250,000 comparisons a batch.
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
              d.result),
  kept as (
    insert into pgeverything.finished (id, queue, task, state, priority, args, headers, unique_key, ordering_key,
      max_attempts, timeout, expires_at, created_at, started_at, finished_at, attempt, crashes, redriven, origin, worker,
      reason, result)
    select b.id, b.queue, b.task, b.state, b.priority, b.args, b.headers, b.unique_key, b.ordering_key, b.max_attempts,
      b.timeout, b.expires_at, b.created_at, b.started_at, clock_timestamp(), b.attempt, b.crashes, b.redriven, b.origin,
      finish.worker,
      case when b.state = 'cancelled' then coalesce(b.reason, (
        select c.reason from pgeverything.cancellations c where c.job = b.id)) end,
      b.result::jsonb
    from body b)
  select array(select d.job from done d),
         coalesce((
           select sum(pgeverything.release(k.queue, k.ordering_key, k.n))
           from (select b.queue, b.ordering_key, count(*)::integer as n from body b where b.ordering_key is not null
                 group by 1, 2 order by 1, 2) k), 0)
         + (select count(pgeverything.wake(l.queue)::text) from (select distinct d.queue from done d where d.limited) l)
  into accepted, freed;
end $$;

-- Records failed attempts. A job with a delay tries again after so many seconds; one without is dead and passes its turn
-- on. `used` is 1 where the attempt counts and 0 where it does not (a snooze). Returns what finish() returns.
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
  dead as (
    update pgeverything.jobs j
    set dead = true, died_at = d.at, reason = d.reason, fingerprint = d.fingerprint, error = d.error::jsonb,
        attempt = d.attempt, crashes = d.crashes
    from done d where j.id = any (fail.jobs) and j.id = d.job and d.delay is null
    returning j.queue, j.ordering_key),
  logged as (
    insert into pgeverything.failures (job, at, attempt, worker, error)
    select d.job, d.at, d.attempt, fail.worker, d.error::jsonb from done d where d.error is not null)
  select array(select d.job from done d),
         coalesce((
           select sum(pgeverything.release(k.queue, k.ordering_key, k.n))
           from (select d.queue, d.ordering_key, count(*)::integer as n from dead d where d.ordering_key is not null
                 group by 1, 2 order by 1, 2) k), 0)
         + (select count(pgeverything.wake(l.queue)::text) from (select distinct d.queue from done d where d.limited) l)
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
