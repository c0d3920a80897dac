-- name: enqueue
-- Enqueue one job through the function that strangers call too.
select id, state, created_at
from pgeverything.enqueue(
  task => %(task)s::text, args => %(args)s::text::jsonb, queue => %(queue)s::text, priority => %(priority)s::integer,
  delay => make_interval(secs => %(delay)s::double precision), run_at => %(run_at)s::timestamptz,
  unique_key => %(unique_key)s::text, on_duplicate => %(on_duplicate)s::text, ordering_key => %(ordering_key)s::text,
  max_attempts => %(max_attempts)s::integer, timeout => make_interval(secs => %(timeout)s::double precision),
  expires => make_interval(secs => %(expires)s::double precision), headers => %(headers)s::text::jsonb, quiet => true);

-- name: enqueue_many
-- Enqueue a job for each element of a JSON array, in one round trip.
select ids, state, created_at
from pgeverything.enqueue_many(
  task => %(task)s::text, args => %(args)s::text::jsonb, queue => %(queue)s::text, priority => %(priority)s::integer,
  delay => make_interval(secs => %(delay)s::double precision), run_at => %(run_at)s::timestamptz,
  ordering_key => %(ordering_key)s::text, max_attempts => %(max_attempts)s::integer,
  timeout => make_interval(secs => %(timeout)s::double precision),
  expires => make_interval(secs => %(expires)s::double precision), headers => %(headers)s::text::jsonb, quiet => true);

-- name: full
-- What a queue does with so many more jobs that it has no room for; null when it has room.
select pgeverything.refusal(%(queue)s::text, %(wanted)s::bigint);

-- name: get
-- One job, live or finished.
-- plan: fresh
select id, queue, task, state, priority, args::text, headers::text, unique_key, ordering_key, max_attempts,
       extract(epoch from timeout)::double precision, expires_at, created_at, run_at, started_at, finished_at, attempt, crashes,
       redriven, origin, worker, progress, note, reason, fingerprint, error::text, result::text
from pgeverything.all_jobs
where id = %(id)s::bigint;

-- name: list
-- Jobs, newest first, by any of the filters. First the ids, each state's from the table that holds it, then the jobs:
-- over 200,000 live and 200,000 finished jobs a page took 350 ms as one query of the view, and takes 5 ms so. The
-- branches of other states cost nothing; subqueries that must yield one value are always index probes, never hashed.
-- plan: fresh
with page as (
  (select j.id from pgeverything.jobs j
   where %(state)s::text is null and j.id < %(before)s::bigint
     and (%(queue)s::text is null or j.queue = %(queue)s::text) and (%(task)s::text is null or j.task = %(task)s::text)
   order by j.id desc limit %(limit)s::integer)
  union all
  (select j.id from pgeverything.jobs j
   where %(state)s::text = 'dead' and j.dead and j.id < %(before)s::bigint
     and (%(queue)s::text is null or j.queue = %(queue)s::text) and (%(task)s::text is null or j.task = %(task)s::text)
   order by j.id desc limit %(limit)s::integer)
  union all
  (select j.id from pgeverything.jobs j
   where %(state)s::text = 'ready' and not j.dead and j.id < %(before)s::bigint
     and (%(queue)s::text is null or j.queue = %(queue)s::text) and (%(task)s::text is null or j.task = %(task)s::text)
     and not exists (select from pgeverything.running r where r.job = j.id)
     and not exists (select from pgeverything.scheduled s where s.job = j.id)
     and not exists (select from pgeverything.waiting w where w.job = j.id)
   order by j.id desc limit %(limit)s::integer)
  union all
  (select r.job from pgeverything.running r
   where %(state)s::text = 'running' and r.job < %(before)s::bigint
     and (%(queue)s::text is null or r.queue = %(queue)s::text)
     and (%(task)s::text is null or (select j.task from pgeverything.jobs j where j.id = r.job) = %(task)s::text)
   order by r.job desc limit %(limit)s::integer)
  union all
  (select s.job from pgeverything.scheduled s
   where %(state)s::text = 'scheduled' and s.job < %(before)s::bigint
     and (%(queue)s::text is null or s.queue = %(queue)s::text)
     and (%(task)s::text is null or (select j.task from pgeverything.jobs j where j.id = s.job) = %(task)s::text)
   order by s.job desc limit %(limit)s::integer)
  union all
  (select w.job from pgeverything.waiting w
   where %(state)s::text = 'waiting' and w.job < %(before)s::bigint
     and (%(queue)s::text is null or w.queue = %(queue)s::text)
     and (%(task)s::text is null or (select j.task from pgeverything.jobs j where j.id = w.job) = %(task)s::text)
   order by w.job desc limit %(limit)s::integer)
  union all
  (select f.id from pgeverything.finished f
   where (%(state)s::text is null or %(state)s::text in ('succeeded', 'cancelled'))
     and (%(state)s::text is null or f.state = %(state)s::text) and f.id < %(before)s::bigint
     and (%(queue)s::text is null or f.queue = %(queue)s::text) and (%(task)s::text is null or f.task = %(task)s::text)
   order by f.id desc limit %(limit)s::integer))
select a.id, a.queue, a.task, a.state, a.priority, a.args::text, a.headers::text, a.unique_key, a.ordering_key, a.max_attempts,
       extract(epoch from a.timeout)::double precision, a.expires_at, a.created_at, a.run_at, a.started_at, a.finished_at,
       a.attempt, a.crashes, a.redriven, a.origin, a.worker, a.progress, a.note, a.reason, a.fingerprint, a.error::text,
       a.result::text
from (select p.id from page p order by p.id desc limit %(limit)s::integer) p
cross join lateral (select v.* from pgeverything.all_jobs v where v.id = p.id limit 1) a
order by a.id desc;

-- name: counts
-- How many jobs of a queue (of all, when null) are in each state.
-- plan: fresh
select state, sum(n)::bigint
from (
  select queue, 'scheduled' as state, count(*) as n from pgeverything.scheduled group by queue
  union all select queue, 'waiting', count(*) from pgeverything.waiting group by queue
  union all select queue, 'ready', count(*) from pgeverything.ready group by queue
  union all select queue, 'running', count(*) from pgeverything.running group by queue
  union all select queue, 'dead', count(*) from pgeverything.jobs where dead group by queue
  union all select queue, state, count(*) from pgeverything.finished group by queue, state
) c
where %(queue)s::text is null or queue = %(queue)s::text
group by state;

-- name: cancel
-- Cancel a job in whatever state it is.
select pgeverything.cancel(%(id)s::bigint, %(reason)s::text);

-- name: hurry
-- Make a scheduled job due now.
-- plan: fresh
with now as (select clock_timestamp() as at),
moved as (
  update pgeverything.scheduled s set due_at = now.at from now where s.job = %(id)s::bigint returning s.queue)
select pgeverything.wake(queue) from moved;

-- name: state
-- The state of one job and whether it is known at all.
-- plan: fresh
select state from pgeverything.all_jobs where id = %(id)s::bigint;

-- name: facts
-- All that can keep one job from running.
-- plan: fresh
select a.state, a.task, a.queue, a.ordering_key, a.attempt, a.crashes, a.reason, a.note, a.error ->> 'message', a.expires_at,
       extract(epoch from a.run_at - clock_timestamp())::double precision as due_in,
       extract(epoch from clock_timestamp() - a.started_at)::double precision as running_for,
       coalesce(q.paused, false), q.concurrency,
       (select count(*) from pgeverything.running r where r.queue = a.queue and r.limited) as in_queue,
       (select count(*) from pgeverything.workers w
        where a.queue = any (w.queues) and w.heartbeat_at + w.lease > clock_timestamp()) as workers,
       (select count(*) from (
          (select from pgeverything.ready r where r.queue = a.queue and r.priority > a.priority limit 10000)
          union all
          (select from pgeverything.ready r
           where r.queue = a.queue and r.priority = a.priority
             and r.seq < coalesce((select m.seq from pgeverything.ready m where m.job = a.id and m.job <> m.seq), a.id)
           limit 10000)) x) as ahead,
       (select count(*) from pgeverything.waiting w
        where w.queue = a.queue and w.ordering_key = a.ordering_key
          and w.seq < (select v.seq from pgeverything.waiting v where v.job = a.id)) as ahead_of_key,
       (select string_agg(h.id::text, ', ' order by h.id) from (
          select r.job as id from pgeverything.running r
          where r.queue = a.queue and (select j.ordering_key from pgeverything.jobs j where j.id = r.job) = a.ordering_key
          union all
          select s.job from pgeverything.scheduled s
          where s.holds and s.queue = a.queue and s.ordering_key = a.ordering_key
          union all
          select r.job
          from (select r.job from pgeverything.ready r where r.queue = a.queue and r.job <> r.seq order by r.job limit 10000) r
          where (select j.ordering_key from pgeverything.jobs j where j.id = r.job) = a.ordering_key
          limit 5) h where a.state = 'waiting') as holders,
       (select w.name from pgeverything.workers w where w.id = a.worker) as worker,
       exists (select from pgeverything.cancellations c where c.job = a.id) as cancelling
from (select v.* from pgeverything.all_jobs v where v.id = %(id)s::bigint limit 1) a
left join pgeverything.queues q on q.name = a.queue;

-- name: pause
-- Stop or resume handing out the jobs of a queue.
with changed as (
  insert into pgeverything.queues (name, paused) values (%(queue)s::text, %(paused)s::boolean)
  on conflict (name) do update set paused = excluded.paused
  returning name)
select pgeverything.wake(c.name)::text from changed c;

-- name: configure
-- Set the limits of a queue; those not named stay as they are. Workers look again at what the old ones held back.
with noted as (
  insert into pgeverything.turn_notes (seq, queue, ordering_key, given_back)
  select nextval('pgeverything.job_seq'), %(queue)s::text, k.ordering_key, 0
  from (select distinct w.ordering_key from pgeverything.waiting w where w.queue = %(queue)s::text) k
  where 'per_key' = any (%(given)s::text[])),
changed as (
  insert into pgeverything.queues (name, max_depth, on_full, concurrency, per_key)
  values (%(queue)s::text, %(max_depth)s::bigint, coalesce(%(on_full)s::text, 'raise'), %(concurrency)s::integer,
          coalesce(%(per_key)s::integer, 1))
  on conflict (name) do update set
    max_depth = case when 'max_depth' = any (%(given)s::text[]) then excluded.max_depth else queues.max_depth end,
    on_full = case when 'on_full' = any (%(given)s::text[]) then excluded.on_full else queues.on_full end,
    concurrency = case when 'concurrency' = any (%(given)s::text[]) then excluded.concurrency else queues.concurrency end,
    per_key = case when 'per_key' = any (%(given)s::text[]) then excluded.per_key else queues.per_key end
  returning name)
select pgeverything.wake(c.name)::text from changed c;

-- name: queues
-- Every queue that is configured or holds unfinished jobs.
-- plan: fresh
with held as (
  select queue, state, sum(n)::bigint as n
  from (
    select queue, 'scheduled' as state, count(*) as n from pgeverything.scheduled group by queue
    union all select queue, 'waiting', count(*) from pgeverything.waiting group by queue
    union all select queue, 'ready', count(*) from pgeverything.ready group by queue
    union all select queue, 'running', count(*) from pgeverything.running group by queue
    union all select queue, 'dead', count(*) from pgeverything.jobs where dead group by queue
  ) c group by queue, state)
select n.name, coalesce(q.paused, false), q.max_depth, coalesce(q.on_full, 'raise'), q.concurrency, coalesce(q.per_key, 1),
       coalesce((select h.n from held h where h.queue = n.name and h.state = 'ready'), 0),
       coalesce((select h.n from held h where h.queue = n.name and h.state = 'waiting'), 0),
       coalesce((select h.n from held h where h.queue = n.name and h.state = 'scheduled'), 0),
       coalesce((select h.n from held h where h.queue = n.name and h.state = 'running'), 0),
       coalesce((select h.n from held h where h.queue = n.name and h.state = 'dead'), 0),
       (select count(*) from pgeverything.workers w
        where n.name = any (w.queues) and w.heartbeat_at + w.lease > clock_timestamp())
from (select name from pgeverything.queues union select queue from held) n
left join pgeverything.queues q on q.name = n.name
order by 1;

-- name: failures
-- What went wrong with a job, attempt by attempt, oldest first.
-- plan: fresh
select at, attempt, worker, error::text from pgeverything.failures where job = %(id)s::bigint order by at;
