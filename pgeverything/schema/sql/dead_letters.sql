-- name: list
-- Dead jobs, latest death first.
-- plan: fresh
select a.id, a.queue, a.task, a.state, a.priority, a.args::text, a.headers::text, a.unique_key, a.ordering_key, a.max_attempts,
       extract(epoch from a.timeout)::double precision, a.expires_at, a.created_at, a.run_at, a.started_at, a.finished_at,
       a.attempt, a.crashes, a.redriven, a.origin, a.worker, a.progress, a.note, a.reason, a.fingerprint, a.error::text,
       a.result::text
from (
  select j.id from pgeverything.jobs j
  where j.dead
    and (%(queue)s::text is null or j.queue = %(queue)s::text)
    and (%(task)s::text is null or j.task = %(task)s::text)
    and (%(fingerprint)s::text is null or j.fingerprint = %(fingerprint)s::text)
  order by j.died_at desc, j.id desc
  limit %(limit)s::integer) d
cross join lateral (select v.* from pgeverything.all_jobs v where v.id = d.id limit 1) a
order by a.finished_at desc, a.id desc;

-- name: groups
-- Dead jobs by task and fingerprint, the largest group first.
-- plan: fresh
select j.task, j.fingerprint, min(j.reason), count(*), min(j.died_at), max(j.died_at), max(j.id),
       (array_agg(j.error ->> 'type' order by j.id desc))[1], (array_agg(j.error ->> 'message' order by j.id desc))[1]
from pgeverything.jobs j
where j.dead
  and (%(queue)s::text is null or j.queue = %(queue)s::text)
  and (%(task)s::text is null or j.task = %(task)s::text)
group by j.task, j.fingerprint
order by count(*) desc, max(j.died_at) desc
limit %(limit)s::integer;

-- name: count
-- How many dead jobs match.
-- plan: fresh
select count(*)
from pgeverything.jobs j
where j.dead
  and (%(ids)s::bigint[] is null or j.id = any (%(ids)s::bigint[]))
  and (%(queue)s::text is null or j.queue = %(queue)s::text)
  and (%(task)s::text is null or j.task = %(task)s::text)
  and (%(fingerprint)s::text is null or j.fingerprint = %(fingerprint)s::text);

-- name: now
-- When a redrive begins: it leaves alone what dies later, or it would not end where that is as fast.
select clock_timestamp();

-- name: redrive
-- Give dead jobs a fresh life, oldest death first, `gap` seconds apart and the first one `start` seconds from now.
-- A job whose unique key is in use again stays dead, and so does the second of two that share one.
-- plan: fresh
with chosen as materialized (
  select j.id, j.task, j.unique_key, j.died_at
  from pgeverything.jobs j
  where j.dead and (%(until)s::timestamptz is null or j.died_at <= %(until)s::timestamptz)
    and (%(ids)s::bigint[] is null or j.id = any (%(ids)s::bigint[]))
    and (%(queue)s::text is null or j.queue = %(queue)s::text)
    and (%(task)s::text is null or j.task = %(task)s::text)
    and (%(fingerprint)s::text is null or j.fingerprint = %(fingerprint)s::text)
    and (j.unique_key is null or (
      select o.id from pgeverything.jobs o where o.task = j.task and o.unique_key = j.unique_key and not o.dead) is null)
  order by j.died_at, j.id
  limit %(limit)s::integer
  for update skip locked),
single as (
  select c.id, c.died_at,
         row_number() over (partition by c.task, coalesce(c.unique_key, c.id::text) order by c.id) as twin
  from chosen c),
numbered as (
  select s.id, clock_timestamp() + make_interval(secs => %(start)s::double precision
           + %(gap)s::double precision * (row_number() over (order by s.died_at, s.id) - 1)) as due_at
  from single s where s.twin = 1),
revived as (
  update pgeverything.jobs j
  set dead = false, died_at = null, reason = null, fingerprint = null, error = null, attempt = null, crashes = null,
      expires_at = null, redriven = j.redriven + 1,
      origin = case when %(to_queue)s::text <> j.queue then j.queue else j.origin end,
      queue = coalesce(%(to_queue)s::text, j.queue)
  from numbered n
  where j.id = any (array(select m.id from numbered m)) and j.id = n.id
  returning j.id, n.due_at, j.queue, j.priority, j.ordering_key),
placed as (
  insert into pgeverything.scheduled (job, due_at, queue, priority, ordering_key)
  select r.id, r.due_at, r.queue, r.priority, r.ordering_key from revived r)
select array(select r.id from revived r order by r.due_at, r.id),
       array(select pgeverything.wake(r.queue)::text from (select distinct queue from revived) r);

-- name: discard
-- End dead jobs for good; they join the finished ones as cancelled.
-- plan: fresh
with chosen as materialized (
  select j.id
  from pgeverything.jobs j
  where j.dead
    and (%(ids)s::bigint[] is null or j.id = any (%(ids)s::bigint[]))
    and (%(queue)s::text is null or j.queue = %(queue)s::text)
    and (%(task)s::text is null or j.task = %(task)s::text)
    and (%(fingerprint)s::text is null or j.fingerprint = %(fingerprint)s::text)
  order by j.died_at, j.id
  limit %(limit)s::integer
  for update skip locked)
select count(pgeverything.bury(c.id, 'discarded')::text) from chosen c;

-- name: list_deliveries
-- Dead deliveries, latest death first, with their events as far as they are kept.
-- plan: fresh
select d.dead_id, s.name, d.position, d.delivered, d.crashes, d.redriven, d.reason, d.fingerprint, d.error::text, d.died_at,
       (select t.name from pgeverything.topics t where t.id = e.topic_id), e.key, e.version, e.type, e.data::text,
       e.headers::text, e.recorded_at
from (
  select d.*
  from pgeverything.deliveries d
  where d.dead_id is not null
    and (%(ids)s::bigint[] is null or d.dead_id = any (%(ids)s::bigint[]))
    and (%(subscription)s::text is null
         or d.subscription = (select n.id from pgeverything.subscriptions n where n.name = %(subscription)s::text))
    and (%(fingerprint)s::text is null or d.fingerprint = %(fingerprint)s::text)
  order by d.died_at desc, d.dead_id desc
  limit %(limit)s::integer) d
join pgeverything.subscriptions s on s.id = d.subscription
left join lateral (select e.* from pgeverything.events e where e.position = d.position limit 1) e on true
order by d.died_at desc, d.dead_id desc;

-- name: group_deliveries
-- Dead deliveries by subscription and fingerprint, the largest group first.
-- plan: fresh
select s.name, d.fingerprint, min(d.reason), count(*), min(d.died_at), max(d.died_at), max(d.dead_id),
       (array_agg(d.error ->> 'type' order by d.dead_id desc))[1],
       (array_agg(d.error ->> 'message' order by d.dead_id desc))[1]
from pgeverything.deliveries d
join pgeverything.subscriptions s on s.id = d.subscription
where d.dead_id is not null and (%(subscription)s::text is null or s.name = %(subscription)s::text)
group by s.name, d.fingerprint
order by count(*) desc, max(d.died_at) desc
limit %(limit)s::integer;

-- name: count_deliveries
-- How many dead deliveries match.
-- plan: fresh
select count(*)
from pgeverything.deliveries d
where d.dead_id is not null
  and (%(ids)s::bigint[] is null or d.dead_id = any (%(ids)s::bigint[]))
  and (%(subscription)s::text is null
       or d.subscription = (select n.id from pgeverything.subscriptions n where n.name = %(subscription)s::text))
  and (%(fingerprint)s::text is null or d.fingerprint = %(fingerprint)s::text);

-- name: redrive_deliveries
-- Have dead deliveries delivered again, oldest death first, `gap` seconds apart and the first one `start` seconds from now.
-- plan: fresh
with chosen as materialized (
  select d.subscription, d.position, d.dead_id, d.died_at
  from pgeverything.deliveries d
  where d.dead_id is not null and d.died_at <= %(until)s::timestamptz
    and (%(ids)s::bigint[] is null or d.dead_id = any (%(ids)s::bigint[]))
    and (%(subscription)s::text is null
         or d.subscription = (select n.id from pgeverything.subscriptions n where n.name = %(subscription)s::text))
    and (%(fingerprint)s::text is null or d.fingerprint = %(fingerprint)s::text)
  order by d.died_at, d.dead_id
  limit %(limit)s::integer
  for update skip locked),
numbered as (
  select c.subscription, c.position, clock_timestamp() + make_interval(secs => %(start)s::double precision
           + %(gap)s::double precision * (row_number() over (order by c.died_at, c.dead_id) - 1)) as due_at
  from chosen c),
revived as (
  update pgeverything.deliveries d
  set dead_id = null, died_at = null, reason = null, fingerprint = null, error = null, delivered = 0, failures = 0,
      crashes = 0, redriven = d.redriven + 1, due_at = n.due_at
  from numbered n
  where d.subscription = n.subscription and d.position = n.position
  returning d.position)
select array(select r.position from revived r),
       case when exists (select from revived r) then pgeverything.wake_readers()::text end;

-- name: discard_deliveries
-- Forget dead deliveries; what one holds up goes on.
-- plan: fresh
select pgeverything.discard_deliveries(array(
  select d.dead_id
  from pgeverything.deliveries d
  where d.dead_id is not null
    and (%(ids)s::bigint[] is null or d.dead_id = any (%(ids)s::bigint[]))
    and (%(subscription)s::text is null
         or d.subscription = (select n.id from pgeverything.subscriptions n where n.name = %(subscription)s::text))
    and (%(fingerprint)s::text is null or d.fingerprint = %(fingerprint)s::text)
  order by d.died_at, d.dead_id
  limit %(limit)s::integer
  for update skip locked));
