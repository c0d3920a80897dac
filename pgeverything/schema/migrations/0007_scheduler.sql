-- The cron scheduler: what is to be enqueued when, and what became of every tick.
--
-- Python computes when a schedule ticks next, because the calendar and the time zones are its; the database holds the
-- answer and decides who acts on it. There is no leader: whoever gets the row lock of a due schedule records the tick,
-- enqueues the job and moves the schedule on in one transaction.

create table pgeverything.schedules (
  name         text collate "C" primary key,
  task         text not null,
  args         jsonb not null,
  queue        text not null,
  priority     integer not null,
  cron         text,
  seconds      boolean not null,
  every        interval,
  at           timestamptz,
  timezone     text not null,
  start_at     timestamptz,
  end_at       timestamptz,
  misfire      text not null check (misfire in ('once', 'all', 'skip')),
  grace        interval,
  catch_up     integer not null check (catch_up > 0),
  overlap      text not null check (overlap in ('allow', 'skip', 'queue')),
  jitter       interval not null,
  runs         bigint check (runs > 0),
  remaining    bigint check (remaining >= 0),
  digest       text not null,
  origin       text,
  rules        text not null,
  paused       boolean not null default false,
  disabled     boolean not null default false,
  ticked_until timestamptz not null,
  next_tick    timestamptz,
  next_run_at  timestamptz,
  last_tick    timestamptz,
  last_job     bigint,
  created_at   timestamptz not null,
  changed_at   timestamptz not null,
  check (num_nonnulls(cron, every, at) = 1)
) with (fillfactor = 70);
comment on column pgeverything.schedules.digest is 'of the definition: two with the same digest say the same';
comment on column pgeverything.schedules.origin is 'the application whose code defines it; null when it was added at run time';
comment on column pgeverything.schedules.rules is 'of the time zone, by which next_tick was computed';
comment on column pgeverything.schedules.disabled is 'its application runs and no longer defines it';
comment on column pgeverything.schedules.ticked_until is 'every tick up to this instant has its row in ticks';
comment on column pgeverything.schedules.next_tick is 'the first tick without a row; null when there is none any more';
comment on column pgeverything.schedules.next_run_at is 'when that tick is acted on: later by its jitter; null while it is paused or disabled';
comment on column pgeverything.schedules.last_tick is 'the last one that enqueued a job';
create index schedules_due on pgeverything.schedules (next_run_at) where next_run_at is not null;

-- What became of every tick. Consecutive ticks that did not run share a row: a year of missed seconds is one row.
create table pgeverything.ticks (
  schedule text collate "C" not null,
  tick     timestamptz not null,
  since    timestamptz,
  count    bigint not null default 1,
  outcome  text not null check (outcome in ('ran', 'manual', 'misfire', 'overlap', 'paused', 'ended', 'full')),
  reason   text,
  job      bigint,
  at       timestamptz not null,
  primary key (schedule, tick)
) partition by range (tick);
comment on column pgeverything.ticks.since is 'the first of the ticks that the row is about, when they are several; `tick` is the last';

-- Rows of days without a partition of their own; stays empty while a worker runs at least once a week.
create table pgeverything.ticks_default partition of pgeverything.ticks default;

-- The schedules in the code of each worker: one that changed in the code is not changed back by a worker that still
-- runs the old code, and one that vanished is not disabled while some worker still has it.
create table pgeverything.schedule_code (
  worker  bigint primary key,
  origin  text not null,
  names   text[] not null,
  digests text[] not null
);

alter table pgeverything.schedules set (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);


-- Ticks ----------------------------------------------------------------------------------------------------------

-- These functions rule plans out as those of the job queue do. They also say `plan_cache_mode = force_generic_plan`: the
-- one plan that is left costs more on paper than one for known values, so it was made anew for every call, and a tick took
-- three times as long (fire() 0.7 ms instead of 0.3, lock_due() 0.23 instead of 0.08).

-- A schedule that is due and locked. Times as they are, lengths in seconds, `args` left out: the database keeps them.
create type pgeverything.due_schedule as (
  name text, cron text, seconds boolean, every double precision, at timestamptz, timezone text, start_at timestamptz,
  end_at timestamptz, misfire text, grace double precision, catch_up integer, overlap text, jitter double precision,
  remaining bigint, next_tick timestamptz, busy boolean, now timestamptz);

-- Locks up to `most` schedules that are due and that nobody else has locked, the longest overdue first. `without` names
-- those that this process cannot read. A function, because whether the last job still runs must be seen after the lock
-- was had: with one snapshot for both, the job that another process has just enqueued would not be seen.
create function pgeverything.lock_due(most integer, without text[]) returns setof pgeverything.due_schedule
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set enable_hashjoin = off set enable_mergejoin = off
set jit = off set plan_cache_mode = force_generic_plan
as $$
declare
  moment timestamptz := clock_timestamp();  -- a variable, because a volatile function cannot bound an index scan
  locked text[];
begin
  select array_agg(d.name) into locked
  from (
    select s.name from pgeverything.schedules s
    where s.next_run_at <= moment and s.name <> all (without)
    order by s.next_run_at
    limit most
    for update skip locked) d;
  return query
  select s.name, s.cron, s.seconds, extract(epoch from s.every)::double precision, s.at, s.timezone, s.start_at, s.end_at,
         s.misfire, extract(epoch from s.grace)::double precision, s.catch_up, s.overlap,
         extract(epoch from s.jitter)::double precision, s.remaining, s.next_tick,
         exists (select from pgeverything.jobs j where j.id = s.last_job and not j.dead), moment
  from pgeverything.schedules s
  where s.name = any (locked);
end $$;

-- In how many seconds the next schedule is due, below 0 when one is overdue; null when there is none.
create function pgeverything.next_due(without text[]) returns double precision
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off
set jit = off set plan_cache_mode = force_generic_plan
as $$
begin
  return (
    select extract(epoch from s.next_run_at - clock_timestamp())::double precision
    from pgeverything.schedules s
    where s.next_run_at is not null and s.name <> all (without)
    order by s.next_run_at
    limit 1);
end $$;

-- Records what becomes of the due ticks of locked schedules, enqueues the jobs, and moves the schedules on. The first six
-- arrays are of ticks, the next six of schedules. A tick that has its row already is left alone, unless it did not run and
-- now does: each runs once, also when a schedule was removed and is back. A job for which its queue has no room does not count against `remaining`; when
-- nothing remains, there is no next tick. A function, because its plan is kept: to make it anew took half the time.
create function pgeverything.fire(
  tick_names text[], ticks timestamptz[], since timestamptz[], counts bigint[], outcomes text[], reasons text[],
  names text[], ticked_until timestamptz[], next_ticks timestamptz[], next_run_at timestamptz[], remaining bigint[],
  rules text[], without text[],
  out queues text[], out jobs bigint[], out wait double precision)
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off
set jit = off set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
  -- With these the days that no tick is of are left out before they are looked at.
  earliest timestamptz := (select min(t) from unnest(fire.ticks) t);
  latest   timestamptz := (select max(t) from unnest(fire.ticks) t);
begin
  with tick as (
    select t.place, t.name, t.tick, t.since, t.count, t.outcome, t.reason
    from unnest(fire.tick_names, fire.ticks, fire.since, fire.counts, fire.outcomes, fire.reasons) with ordinality
      as t(name, tick, since, count, outcome, reason, place)
    where not exists (
      select from pgeverything.ticks h
      where h.schedule = t.name and h.tick = t.tick and h.tick between earliest and latest
        and not (h.job is null and h.count = 1 and t.outcome = 'ran'))),
  started as materialized (
    select t.place, t.name, t.tick, t.outcome, s.queue, e.state, case when e.state <> 'full' then e.id end as job
    from (select * from tick where outcome in ('ran', 'manual') order by place) t
    join pgeverything.schedules s on s.name = t.name
    cross join lateral pgeverything.enqueue(
      task => s.task, args => s.args, queue => s.queue, priority => s.priority,
      ordering_key => case s.overlap when 'queue' then 'cron:' || s.name end,
      headers => jsonb_build_object(
        'schedule', s.name, 'tick', to_char(t.tick at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')),
      quiet => true) e),
  recorded as (
    insert into pgeverything.ticks (schedule, tick, since, count, outcome, reason, job, at)
    select t.name, t.tick, t.since, t.count, case when s.state = 'full' then 'full' else t.outcome end, t.reason, s.job,
           clock_timestamp()
    from tick t left join started s on s.place = t.place
    on conflict on constraint ticks_pkey do update set
      outcome = excluded.outcome, reason = excluded.reason, job = excluded.job, at = excluded.at),
  refused as (
    select s.name, count(*) as n from started s where s.outcome = 'ran' and s.state = 'full' group by s.name),
  latest as (
    select distinct on (s.name) s.name, s.tick, s.job from started s where s.job is not null order by s.name, s.place desc),
  moved as (
    update pgeverything.schedules s
    set ticked_until = coalesce(m.ticked_until, s.ticked_until),
        next_tick = case when m.remaining + coalesce(r.n, 0) = 0 then null else m.next_tick end,
        next_run_at = case when m.remaining + coalesce(r.n, 0) = 0 then null else m.next_run_at end,
        remaining = m.remaining + coalesce(r.n, 0), rules = coalesce(m.rules, s.rules), last_tick = coalesce(l.tick, s.last_tick),
        last_job = coalesce(l.job, s.last_job)
    from unnest(fire.names, fire.ticked_until, fire.next_ticks, fire.next_run_at, fire.remaining, fire.rules)
      as m(name, ticked_until, next_tick, next_run_at, remaining, rules)
    left join latest l on l.name = m.name
    left join refused r on r.name = m.name
    where s.name = m.name)
  select array_agg(s.queue order by s.place), array_agg(s.job order by s.place) into fire.queues, fire.jobs from started s;
  wait := pgeverything.next_due(without);
end $$;

-- Tells the sleeping workers of a schedule that is due before all others. They would find any other one in time.
create function pgeverything.wake_tickers(schedule text, run_at timestamptz) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off
set jit = off set plan_cache_mode = force_generic_plan
as $$
begin
  if run_at < coalesce((
       select s.next_run_at from pgeverything.schedules s
       where s.next_run_at is not null and s.name <> wake_tickers.schedule
       order by s.next_run_at
       limit 1), 'infinity')
     and exists (select from pgeverything.workers) then
    perform pg_notify('pgeverything', E'\tcron:');
  end if;
end $$;


-- Daily partitions -----------------------------------------------------------------------------------------------

-- Creates the partitions of the next days and drops those past their retention, as maintain_partitions() does for
-- finished jobs, and with its owner's rights for the same reason.
create function pgeverything.maintain_ticks(ahead integer, keep interval, out created integer, out dropped integer)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '100ms'
set timezone = 'UTC'
as $$
declare
  home text := quote_ident('pgeverything');
  part record;
  day  date;
  name text;
begin
  created := 0;
  dropped := 0;
  for day in
    select d::date from generate_series(current_date, current_date + ahead, interval '1 day') d
    union select t.tick::date from pgeverything.ticks_default t
  loop
    name := 'ticks' || to_char(day, '_YYYYMMDD');
    continue when to_regclass(format('%s.%I', home, name)) is not null;
    begin
      execute format('create table %s.%I (like %s.ticks including all)', home, name, home);
      execute format('with moved as (delete from %s.ticks_default where tick >= %L and tick < %L returning *)
                      insert into %s.%I select * from moved', home, day, day + 1, home, name);
      execute format('alter table %s.ticks attach partition %s.%I for values from (%L) to (%L)', home, home, name, day, day + 1);
      created := created + 1;
    exception when lock_not_available or duplicate_table or unique_violation then
      null;  -- another worker does it, or this one next time
    end;
  end loop;
  for part in
    select c.relname::text as name, to_date(right(c.relname, 8), 'YYYYMMDD') as day
    from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = format('%s.ticks', home)::regclass and c.relname ~ '_[0-9]{8}$'
  loop
    continue when part.day + 1 > clock_timestamp() - keep;
    begin
      execute format('drop table %s.%I', home, part.name);
      dropped := dropped + 1;
    exception when lock_not_available or undefined_table then
      null;
    end;
  end loop;
end $$;

revoke execute on function pgeverything.maintain_ticks(integer, interval) from public;

select pgeverything.maintain_ticks(7, interval '100 years');
