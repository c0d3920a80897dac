-- Mends of the job queue: order of locks, fairness of limited queues, partitions of a day that is under way, times that
-- programs cannot read.


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


-- As before, with three differences. Keys are locked in the order of their bytes, as everywhere: `turn_notes` sorts so by
-- its columns, `jobs` by the database's own rules, and where these differ two statements waited for each other. Workers
-- that sleep hear of a job that is to be tried again, as they do of one that is enqueued with a delay: the worker that
-- failed may have its hands full when it is due, or be gone. And what dies without an error of its own, because it has
-- expired or nobody knows its task any more, keeps that of its last attempt, if there was one since it was redriven.
create or replace function pgeverything.fail(
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


-- Times that programs can read. From psql anybody could enqueue for `infinity` or the year 20000: then lists of jobs
-- failed in Python, and before PostgreSQL 17 a due time of `infinity` ended every worker that asked when it is due.
update pgeverything.scheduled set due_at = timestamptz '9899-01-01 00:00 UTC' where due_at >= timestamptz '9900-01-01 00:00 UTC';
alter table pgeverything.scheduled add constraint due_at_is_before_the_year_9900
  check (due_at < timestamptz '9900-01-01 00:00 UTC');
update pgeverything.jobs set expires_at = null
  where expires_at < timestamptz '1000-01-01 00:00 UTC' or expires_at >= timestamptz '9900-01-01 00:00 UTC';
alter table pgeverything.jobs add constraint expires_at_is_in_the_years_1000_to_9899
  check (expires_at >= timestamptz '1000-01-01 00:00 UTC' and expires_at < timestamptz '9900-01-01 00:00 UTC');
