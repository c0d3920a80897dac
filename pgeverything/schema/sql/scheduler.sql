-- name: clock
-- What time it is for the database, which is the only clock that counts.
select clock_timestamp();

-- name: list
-- Schedules by name, by any of the filters.
-- plan: fresh
select s.name, s.task, s.args::text, s.queue, s.priority, s.cron, s.seconds, extract(epoch from s.every)::double precision,
       s.at, s.timezone, s.start_at, s.end_at, s.misfire, extract(epoch from s.grace)::double precision, s.catch_up, s.overlap,
       extract(epoch from s.jitter)::double precision, s.runs, s.remaining, s.origin, f.state, s.next_tick, s.next_run_at,
       s.last_tick, s.last_job, s.created_at, s.changed_at
from pgeverything.schedules s
cross join lateral (
  select case when s.next_tick is null then 'ended' when s.disabled then 'disabled' when s.paused then 'paused'
              else 'active' end as state) f
where (%(name)s::text is null or s.name = %(name)s::text)
  and (%(task)s::text is null or s.task = %(task)s::text)
  and (%(state)s::text is null or f.state = %(state)s::text)
  and (%(after)s::text is null or s.name > %(after)s::text)
order by s.name
limit %(limit)s::integer;

-- name: history
-- What became of a schedule's ticks, the latest first.
-- plan: fresh
select t.tick, t.outcome, t.job, t.at, coalesce(t.since, t.tick), t.count, t.reason
from pgeverything.ticks t
where t.schedule = %(name)s::text and t.tick < coalesce(%(before)s::timestamptz, 'infinity')
order by t.tick desc
limit %(limit)s::integer;

-- name: find
-- Where these schedules stand, locked against tickers and each other.
-- plan: fresh
select s.name, s.digest, s.origin, s.paused, s.disabled, s.cron, s.seconds, extract(epoch from s.every)::double precision,
       s.at, s.timezone, s.start_at, s.end_at, extract(epoch from s.jitter)::double precision, s.runs, s.remaining,
       s.ticked_until, s.next_tick, s.last_tick, clock_timestamp()
from pgeverything.schedules s
where s.name = any (%(names)s::text[])
order by s.name
for update;

-- name: put
-- Define a schedule, new or again; tells sleeping workers when it is due before all others.
with given as (
  select clock_timestamp() as now, %(args)s::text::jsonb as args,
         make_interval(secs => %(every)s::double precision) as every,
         make_interval(secs => %(grace)s::double precision) as grace,
         make_interval(secs => %(jitter)s::double precision) as jitter),
put as (
  insert into pgeverything.schedules as s (
    name, task, args, queue, priority, cron, seconds, every, at, timezone, start_at, end_at, misfire, grace, catch_up, overlap,
    jitter, runs, remaining, digest, origin, rules, ticked_until, next_tick, next_run_at, created_at, changed_at)
  select %(name)s::text, %(task)s::text, g.args, %(queue)s::text, %(priority)s::integer, %(cron)s::text,
         %(seconds)s::boolean, g.every, %(at)s::timestamptz, %(timezone)s::text, %(start_at)s::timestamptz,
         %(end_at)s::timestamptz, %(misfire)s::text, g.grace, %(catch_up)s::integer, %(overlap)s::text, g.jitter,
         %(runs)s::bigint, %(remaining)s::bigint, %(digest)s::text, %(origin)s::text, %(rules)s::text,
         %(ticked_until)s::timestamptz, %(next_tick)s::timestamptz, %(next_run_at)s::timestamptz, g.now, g.now
  from given g
  on conflict (name) do update set
    task = excluded.task, args = excluded.args, queue = excluded.queue, priority = excluded.priority, cron = excluded.cron,
    seconds = excluded.seconds, every = excluded.every, at = excluded.at, timezone = excluded.timezone,
    start_at = excluded.start_at, end_at = excluded.end_at, misfire = excluded.misfire, grace = excluded.grace,
    catch_up = excluded.catch_up, overlap = excluded.overlap, jitter = excluded.jitter, runs = excluded.runs,
    remaining = excluded.remaining, digest = excluded.digest, origin = excluded.origin, rules = excluded.rules,
    disabled = false, ticked_until = excluded.ticked_until, next_tick = excluded.next_tick,
    next_run_at = case when s.paused then null else excluded.next_run_at end, changed_at = excluded.changed_at
  returning s.next_run_at)
select pgeverything.wake_tickers(%(name)s::text, p.next_run_at)::text from put p;

-- name: stand
-- Move a schedule to where it stands now: paused, resumed, disabled, or by other rules of its time zone.
-- plan: fresh
with now as (select clock_timestamp() as at),
moved as (
  update pgeverything.schedules s
  set paused = %(paused)s::boolean, disabled = %(disabled)s::boolean, rules = coalesce(%(rules)s::text, s.rules),
      ticked_until = %(ticked_until)s::timestamptz, next_tick = %(next_tick)s::timestamptz,
      next_run_at = %(next_run_at)s::timestamptz, changed_at = now.at
  from now
  where s.name = %(name)s::text
  returning s.next_run_at)
select pgeverything.wake_tickers(%(name)s::text, m.next_run_at)::text from moved m;

-- name: remove
-- Forget a schedule; what became of its ticks stays.
-- plan: fresh
delete from pgeverything.schedules where name = %(name)s::text;

-- name: skip
-- Record ticks that did not run.
insert into pgeverything.ticks (schedule, tick, since, count, outcome, reason, at)
select %(name)s::text, %(tick)s::timestamptz, %(since)s::timestamptz, %(count)s::bigint, %(outcome)s::text, %(reason)s::text,
       clock_timestamp()
on conflict (schedule, tick) do nothing;

-- name: next
-- In how many seconds the next schedule is due; null when there is none.
select pgeverything.next_due(%(without)s::text[]);

-- name: lock_due
-- Lock schedules that are due and that nobody else has locked.
select name, cron, seconds, every, at, timezone, start_at, end_at, misfire, grace, catch_up, overlap, jitter, remaining,
       next_tick, busy, now
from pgeverything.lock_due(%(most)s::integer, %(without)s::text[]);

-- name: fire
-- Record what becomes of the due ticks of locked schedules, enqueue the jobs, and move the schedules on. Returns the jobs'
-- queues and ids (null where the queue was full), and in how many seconds the next schedule is due.
select queues, jobs, wait
from pgeverything.fire(
  %(tick_names)s::text[], %(ticks)s::timestamptz[], %(since)s::timestamptz[], %(counts)s::bigint[], %(outcomes)s::text[],
  %(reasons)s::text[], %(names)s::text[], %(ticked_until)s::timestamptz[], %(next_ticks)s::timestamptz[],
  %(next_run_at)s::timestamptz[], %(remaining)s::bigint[], %(rules)s::text[], %(without)s::text[]);

-- name: unfinished
-- The job that a schedule enqueued last, if it has not ended.
-- plan: fresh
select s.last_job
from pgeverything.schedules s
where s.name = %(name)s::text and s.overlap = 'skip'
  and (select j.id from pgeverything.jobs j where j.id = s.last_job and not j.dead) is not null;

-- name: other_rules
-- The time zones by whose rules next ticks were computed.
-- plan: fresh
select distinct s.timezone, s.rules from pgeverything.schedules s where s.cron is not null and s.next_tick is not null;

-- name: of_rules
-- Some of the schedules whose next tick was computed by these rules of a time zone.
-- plan: fresh
select s.name
from pgeverything.schedules s
where s.timezone = %(timezone)s::text and s.rules = %(rules)s::text and s.cron is not null and s.next_tick is not null
  and s.name > %(after)s::text
order by s.name
limit %(limit)s::integer;

-- name: declare_code
-- Say which schedules the code of a worker defines, and forget what workers said that are gone.
with gone as (
  delete from pgeverything.schedule_code c
  where c.worker <> %(worker)s::bigint and not exists (select from pgeverything.workers w where w.id = c.worker))
insert into pgeverything.schedule_code (worker, origin, names, digests)
values (%(worker)s::bigint, %(origin)s::text, %(names)s::text[], %(digests)s::text[])
on conflict (worker) do update set origin = excluded.origin, names = excluded.names, digests = excluded.digests;

-- name: compare_code
-- What the database has of the schedules that an application's code defines, or once defined; and of each whether a
-- live worker has it in its code as it is stored, one of the application that it belongs to, and at all.
-- plan: fresh
with said as (
  select c.name, c.digest, k.origin
  from pgeverything.schedule_code k
  join pgeverything.workers w on w.id = k.worker and w.heartbeat_at + w.lease > clock_timestamp()
  cross join lateral unnest(k.names, k.digests) as c(name, digest)
  where k.worker <> %(worker)s::bigint)
select s.name, s.digest, s.origin, s.disabled,
       exists (select from said where said.name = s.name and said.digest = s.digest),
       exists (select from said where said.name = s.name and said.digest = s.digest and said.origin = s.origin),
       exists (select from said where said.name = s.name)
from pgeverything.schedules s
where s.name = any (%(names)s::text[]) or s.origin = %(origin)s::text;

-- name: forget_ended
-- Forget schedules that were added at run time and ended as long ago as ticks are kept.
-- plan: fresh
delete from pgeverything.schedules s
where s.next_tick is null and s.origin is null
  and s.changed_at < clock_timestamp() - make_interval(secs => %(keep)s::double precision)
  and coalesce(s.ticked_until, s.changed_at) < clock_timestamp() - make_interval(secs => %(keep)s::double precision);

-- name: maintain
-- Create the partitions of the coming week and drop those past their retention.
select created, dropped from pgeverything.maintain_ticks(7, make_interval(secs => %(keep)s::double precision));

-- name: troubles
-- Schedules that are long overdue, by how many seconds; and those that their application's code no longer defines.
select s.name, s.origin, s.disabled, extract(epoch from clock_timestamp() - s.next_run_at)::double precision,
       s.cron, s.seconds, s.timezone
from pgeverything.schedules s
where (s.next_run_at < clock_timestamp() - make_interval(secs => %(patience)s::double precision))
   or (s.disabled and s.next_tick is not null)
order by s.name
limit 100;
