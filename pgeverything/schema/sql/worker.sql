-- name: register
-- Begin the lease of a worker process.
insert into pgeverything.workers (id, name, queues, concurrency, started_at, heartbeat_at, lease)
values (nextval('pgeverything.worker_seq'), %(name)s::text, %(queues)s::text[], %(concurrency)s::integer,
        clock_timestamp(), clock_timestamp(), make_interval(secs => %(lease)s::double precision))
returning id;

-- name: heartbeat
-- Renew the lease and report; no row means the lease was lost. Returns the running jobs that are to be cancelled.
with now as (select clock_timestamp() as at),
beat as (
  update pgeverything.workers w
  set heartbeat_at = now.at, finished = %(finished)s::bigint, failed = %(failed)s::bigint, refused = %(refused)s::bigint
  from now where w.id = %(worker)s::bigint
  returning w.id)
select array(select c.job from pgeverything.cancellations c where c.job = any (%(jobs)s::bigint[])) from beat;

-- name: sleep
-- Say whether this worker wants to be woken when there is work.
update pgeverything.workers set asleep = %(asleep)s::boolean where id = %(worker)s::bigint and asleep <> %(asleep)s::boolean;

-- name: leave
-- End the lease of a worker that has nothing left.
delete from pgeverything.workers where id = %(worker)s::bigint;

-- name: notify
-- Send a hint, as a publisher would.
select pg_notify('pgeverything', %(payload)s::text);

-- name: lanes
-- The (queue, priority) pairs that hold ready jobs, and whether the queue has a fleet-wide limit.
select queue, priority, limited from pgeverything.lanes(%(queues)s::text[]);

-- name: claim
-- Take up to `limit` jobs from these lanes, in their order.
select *
from pgeverything.claim(%(worker)s::bigint, %(queues)s::text[], %(priorities)s::integer[], %(after)s::bigint[],
                        %(limit)s::integer);

-- name: claim_limited
-- Take up to `limit` jobs from lanes of queues with a fleet-wide limit, as far as it leaves room.
select *
from pgeverything.claim_limited(%(worker)s::bigint, %(queues)s::text[], %(priorities)s::integer[], %(limit)s::integer);

-- name: finish
-- End jobs that this worker still owns: their bodies move to the finished ones, and their turns pass on. Returns the
-- jobs that were accepted; a job that was rescued meanwhile is missing, and its late result is refused. Also returns
-- how many turns and limited queues got free.
-- plan: fresh
with given as (
  select g.job, g.token, g.state, g.result, g.reason
  from unnest(%(jobs)s::bigint[], %(tokens)s::bigint[], %(states)s::text[], %(results)s::text[], %(reasons)s::text[])
    as g(job, token, state, result, reason)),
done as (
  delete from pgeverything.running r using given g
  where r.job = g.job and r.token = g.token and r.worker = %(worker)s::bigint
  returning r.job, r.queue, r.limited, r.attempt, r.crashes, r.started_at, g.state, g.result, g.reason),
body as (
  delete from pgeverything.jobs j using done d where j.id = d.job
  returning j.id, j.queue, j.task, d.state, j.priority, j.args, j.headers, j.unique_key, j.ordering_key, j.max_attempts,
            j.timeout, j.expires_at, j.created_at, d.started_at, d.attempt, d.crashes, j.redriven, j.origin, d.reason, d.result),
kept as (
  insert into pgeverything.finished (id, queue, task, state, priority, args, headers, unique_key, ordering_key, max_attempts,
    timeout, expires_at, created_at, started_at, finished_at, attempt, crashes, redriven, origin, worker, reason, result)
  select b.id, b.queue, b.task, b.state, b.priority, b.args, b.headers, b.unique_key, b.ordering_key, b.max_attempts,
    b.timeout, b.expires_at, b.created_at, b.started_at, clock_timestamp(), b.attempt, b.crashes, b.redriven, b.origin,
    %(worker)s::bigint,
    case when b.state = 'cancelled' then coalesce(b.reason, (
      select c.reason from pgeverything.cancellations c where c.job = b.id)) end,
    b.result::jsonb
  from body b)
select array(select d.job from done d),
       coalesce((
         select sum(pgeverything.release(k.queue, k.ordering_key, k.n))
         from (select b.queue, b.ordering_key, count(*)::integer as n from body b where b.ordering_key is not null
               group by 1, 2 order by 1, 2) k), 0)
       + (select count(pgeverything.wake(l.queue)::text) from (select distinct d.queue from done d where d.limited) l);

-- name: fail
-- Record failed attempts. A job with a `delay` tries again after so many seconds; one without is dead and passes its
-- turn on. `used` is 1 where the attempt counts and 0 where it does not (a snooze).
-- plan: fresh
with given as (
  select g.job, g.token, g.delay, g.used, g.reason, g.fingerprint, g.error, clock_timestamp() as at
  from unnest(%(jobs)s::bigint[], %(tokens)s::bigint[], %(delays)s::double precision[], %(used)s::integer[],
              %(reasons)s::text[], %(fingerprints)s::text[], %(errors)s::text[])
    as g(job, token, delay, used, reason, fingerprint, error)),
done as (
  delete from pgeverything.running r using given g
  where r.job = g.job and r.token = g.token and r.worker = %(worker)s::bigint
  returning r.job, r.queue, r.limited, r.attempt - 1 + g.used as attempt, r.crashes, g.delay, g.reason, g.fingerprint, g.error, g.at),
again as (
  insert into pgeverything.scheduled (job, due_at, queue, priority, attempt, crashes, ordering_key, holds)
  select d.job, d.at + make_interval(secs => d.delay), j.queue, j.priority, d.attempt, d.crashes, j.ordering_key,
         j.ordering_key is not null
  from done d join pgeverything.jobs j on j.id = d.job
  where d.delay is not null),
dead as (
  update pgeverything.jobs j
  set dead = true, died_at = d.at, reason = d.reason, fingerprint = d.fingerprint, error = d.error::jsonb,
      attempt = d.attempt, crashes = d.crashes
  from done d where j.id = d.job and d.delay is null
  returning j.queue, j.ordering_key),
logged as (
  insert into pgeverything.failures (job, at, attempt, worker, error)
  select d.job, d.at, d.attempt, %(worker)s::bigint, d.error::jsonb from done d where d.error is not null)
select array(select d.job from done d),
       coalesce((
         select sum(pgeverything.release(k.queue, k.ordering_key, k.n))
         from (select d.queue, d.ordering_key, count(*)::integer as n from dead d where d.ordering_key is not null
               group by 1, 2 order by 1, 2) k), 0)
       + (select count(pgeverything.wake(l.queue)::text) from (select distinct d.queue from done d where d.limited) l);

-- name: give_back
-- Return claimed jobs that were never started to the very place in line they came from.
-- plan: fresh
with given as (
  select g.job, g.token from unnest(%(jobs)s::bigint[], %(tokens)s::bigint[]) as g(job, token)),
undone as (
  delete from pgeverything.running r using given g
  where r.job = g.job and r.token = g.token and r.worker = %(worker)s::bigint
  returning r.job, r.token, r.attempt - 1 as attempt, r.crashes),
back as (
  insert into pgeverything.ready (queue, priority, seq, job, attempt, crashes)
  select j.queue, j.priority, u.token, u.job, u.attempt, u.crashes
  from undone u join pgeverything.jobs j on j.id = u.job
  returning queue)
select pgeverything.wake(b.queue) from (select distinct queue from back) b;

-- name: finish_here
-- End one job inside its handler's own transaction. Its turn passes on through a note, because this transaction may
-- stay open; no row means that the job is no longer this worker's.
-- plan: fresh
with done as (
  delete from pgeverything.running r
  where r.job = %(job)s::bigint and r.token = %(token)s::bigint and r.worker = %(worker)s::bigint
  returning r.job, r.queue, r.limited, r.attempt, r.crashes, r.started_at),
body as (
  delete from pgeverything.jobs j using done d where j.id = d.job
  returning j.id, j.queue, j.task, j.priority, j.args, j.headers, j.unique_key, j.ordering_key, j.max_attempts,
            j.timeout, j.expires_at, j.created_at, d.started_at, d.attempt, d.crashes, j.redriven, j.origin),
kept as (
  insert into pgeverything.finished (id, queue, task, state, priority, args, headers, unique_key, ordering_key, max_attempts,
    timeout, expires_at, created_at, started_at, finished_at, attempt, crashes, redriven, origin, worker)
  select b.id, b.queue, b.task, 'succeeded', b.priority, b.args, b.headers, b.unique_key, b.ordering_key, b.max_attempts,
    b.timeout, b.expires_at, b.created_at, b.started_at, clock_timestamp(), b.attempt, b.crashes, b.redriven, b.origin,
    %(worker)s::bigint
  from body b),
noted as (
  insert into pgeverything.turn_notes (seq, queue, ordering_key, given_back)
  select nextval('pgeverything.job_seq'), b.queue, b.ordering_key, 1 from body b where b.ordering_key is not null)
select d.job,
       (select pgeverything.wake(b.queue)::text from body b where b.ordering_key is not null or d.limited)
from done d;

-- name: progress
-- Write the progress of running jobs.
update pgeverything.running r
set progress = g.progress, note = g.note
from unnest(%(jobs)s::bigint[], %(tokens)s::bigint[], %(progress)s::real[], %(notes)s::text[]) as g(job, token, progress, note)
where r.job = g.job and r.token = g.token and r.worker = %(worker)s::bigint;

-- name: advance
-- Move what is due; returns how many jobs moved and in how many seconds the next one is due.
select moved, extract(epoch from next_due - clock_timestamp())::double precision
from pgeverything.advance(%(batch)s::integer);

-- name: busy
-- Whether these queues hold a job that is running, or ready, waiting or due and not in a paused queue.
-- plan: fresh
with open as (
  select o.queue from unnest(%(queues)s::text[]) as o(queue)
  where not exists (select from pgeverything.queues q where q.name = o.queue and q.paused))
select exists (select from pgeverything.running r where r.queue = any (%(queues)s::text[]))
    or exists (select from pgeverything.ready r where r.queue = any (array(select o.queue from open o)))
    or exists (select from pgeverything.waiting w where w.queue = any (array(select o.queue from open o)))
    or exists (select from pgeverything.scheduled s
               where s.queue = any (array(select o.queue from open o)) and s.due_at <= (select clock_timestamp()));

-- name: rescue
-- Take the jobs of workers that fell silent, or left without them, back to their old place in line, with one crash more. A job that has
-- crashed its worker more often than `most` times is dead: it would crash the next one too. From the second crash on a
-- job waits for a random time before it runs again: its neighbours have crashed as often as the culprit, and together
-- in one worker again they would all be found guilty.
-- plan: fresh
with silent as materialized (
  select w.id from pgeverything.workers w
  where w.heartbeat_at + w.lease < clock_timestamp()
  for update skip locked),
gone as (
  delete from pgeverything.workers w where w.id in (select s.id from silent s)),
stray as materialized (
  select r.job from pgeverything.running r
  where r.worker in (select s.id from silent s)
     or (not exists (select from pgeverything.workers w where w.id = r.worker)
         and r.started_at < clock_timestamp() - make_interval(secs => %(stray)s::double precision))
  for update of r skip locked),
lost as (
  delete from pgeverything.running r where r.job in (select s.job from stray s)
  returning r.job, r.token, r.worker, r.attempt - 1 as attempt, r.crashes + 1 as crashes),
judged as materialized (
  select l.job, l.token, l.worker, l.attempt, l.crashes, j.queue, j.priority, j.ordering_key, clock_timestamp() as at,
         'crashed its worker ' || l.crashes || ' times' as reason,
         json_build_object('type', 'WorkerLost', 'message', 'worker ' || l.worker || ' fell silent while it ran the job') as error
  from lost l join pgeverything.jobs j on j.id = l.job),
again as (
  insert into pgeverything.ready (queue, priority, seq, job, attempt, crashes)
  select g.queue, g.priority, g.token, g.job, g.attempt, g.crashes
  from judged g where g.crashes <= least(%(most)s::integer, 1)),
apart as (
  insert into pgeverything.scheduled (job, due_at, queue, priority, attempt, crashes, ordering_key, holds)
  select g.job, g.at + make_interval(secs => random() * %(apart)s::double precision * 3.0 ^ (g.crashes - 1)), g.queue,
         g.priority, g.attempt, g.crashes, g.ordering_key, g.ordering_key is not null
  from judged g where g.crashes between 2 and %(most)s::integer),
dead as (
  update pgeverything.jobs j
  set dead = true, died_at = g.at, reason = g.reason, fingerprint = 'crash',
      error = g.error::jsonb, attempt = g.attempt, crashes = g.crashes
  from judged g where j.id = g.job and g.crashes > %(most)s::integer
  returning j.queue, j.ordering_key),
logged as (
  insert into pgeverything.failures (job, at, attempt, worker, error)
  select g.job, g.at, g.attempt, g.worker, g.error::jsonb from judged g)
select (select count(*) from judged),
       (select count(*) from dead),
       array(select pgeverything.wake(g.queue)::text from (select distinct queue from judged) g),
       (select sum(pgeverything.release(k.queue, k.ordering_key, k.n))
        from (select d.queue, d.ordering_key, count(*)::integer as n from dead d where d.ordering_key is not null
              group by 1, 2 order by 1, 2) k);

-- name: settle_cancellations
-- Carry out cancellations whose job is not running any more: it ended, or was put back to try again.
with left_over as (
  delete from pgeverything.cancellations c
  where not exists (select from pgeverything.running r where r.job = c.job)
  returning c.job, c.reason)
select count(pgeverything.cancel(l.job, l.reason)) from left_over l;

-- name: nudge_lines
-- Note the keys whose line nobody holds: a rolled-back cancel can leave one so. Hops from key to key.
-- plan: fresh
with recursive line as (
  (select w.queue, w.ordering_key from pgeverything.waiting w order by 1, 2 limit 1)
  union all
  select n.queue, n.ordering_key
  from line l cross join lateral (
    select w.queue, w.ordering_key from pgeverything.waiting w
    where (w.queue, w.ordering_key) > (l.queue, l.ordering_key)
    order by 1, 2 limit 1) n)
insert into pgeverything.turn_notes (seq, queue, ordering_key, given_back)
select nextval('pgeverything.job_seq'), l.queue, l.ordering_key, 0
from line l
where not exists (select from pgeverything.turns t where t.queue = l.queue and t.ordering_key = l.ordering_key)
  and not exists (select from pgeverything.turn_notes n where n.queue = l.queue and n.ordering_key = l.ordering_key);

-- name: partitions
-- Create the partitions of the coming week and drop those past their retention.
select created, dropped from pgeverything.maintain_partitions(7, make_interval(secs => %(keep)s::double precision));

-- name: sweep_turn
-- Take the fleet's turn at something; 0 when it is ours, else in how many seconds the next one is due. And what there is
-- to sweep: silent workers or jobs without one, leftover cancellations, lines of ordering keys, partitions to look after.
-- So an idle fleet sweeps with one statement.
-- plan: fresh
with taken as (
  insert into pgeverything.sweeps as s (name, swept_at, next_at)
  values (%(name)s::text, clock_timestamp(), clock_timestamp() + make_interval(secs => %(every)s::double precision))
  on conflict (name) do update set swept_at = excluded.swept_at, next_at = excluded.next_at
  where s.next_at <= excluded.swept_at
  returning 0)
select coalesce(
         (select 0.0::double precision from taken),
         (select greatest(extract(epoch from s.next_at - clock_timestamp())::double precision, 0.1)
          from pgeverything.sweeps s where s.name = %(name)s::text),
         0.1),
       exists (select from pgeverything.workers w where w.heartbeat_at + w.lease < clock_timestamp())
         or exists (select from pgeverything.running r
                    where not exists (select from pgeverything.workers w where w.id = r.worker)),
       exists (select from pgeverything.cancellations),
       exists (select from pgeverything.waiting),
       not exists (select from pgeverything.sweeps s where s.name = 'partitions' and s.next_at > clock_timestamp());

-- name: orphans
-- Put back the running jobs in this worker's name that are not in its hands: the answer to their claim was lost with
-- its connection, or it let go of them and then found its lease alive. They did not crash it.
-- plan: fresh
with lost as (
  delete from pgeverything.running r
  where r.worker = %(worker)s::bigint and r.job <> all (%(jobs)s::bigint[])
  returning r.job, r.token, r.attempt - 1 as attempt, r.crashes),
back as (
  insert into pgeverything.ready (queue, priority, seq, job, attempt, crashes)
  select j.queue, j.priority, nextval('pgeverything.job_seq'), l.job, l.attempt, l.crashes
  from lost l join pgeverything.jobs j on j.id = l.job
  returning queue)
select (select count(*) from lost), array(select pgeverything.wake(b.queue)::text from (select distinct queue from back) b);
