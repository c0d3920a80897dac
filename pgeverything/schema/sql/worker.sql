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
-- End the lease of a worker that has nothing left. Others that sleep look once: what it put back into line, or is to be
-- tried again, they may not know of.
with gone as (
  delete from pgeverything.workers where id = %(worker)s::bigint returning queues)
select pgeverything.wake(q) from gone g cross join unnest(g.queues) q;

-- name: hand_over
-- Have workers that sleep look: this one takes nothing more, and what it makes ready is theirs.
select pgeverything.wake(q) from unnest(%(queues)s::text[]) q;

-- name: notify
-- Send a hint, as a publisher would.
select pg_notify('pgeverything', %(payload)s::text);

-- name: lanes
-- The (queue, priority) pairs that hold ready jobs, and whether the queue has a fleet-wide limit.
select queue, priority, limited from pgeverything.lanes(%(queues)s::text[]);

-- name: claim
-- Take up to `limit` jobs from these lanes, in their order. `soon` does not wait until the claim is on disk, unless one
-- of the jobs has an ordering key; the claimer has to see to it then.
with claimed as materialized (
  select *
  from pgeverything.claim(%(worker)s::bigint, %(queues)s::text[], %(priorities)s::integer[], %(after)s::bigint[],
                          %(limit)s::integer))
select c.*
from claimed c
cross join (
  select case when %(soon)s::boolean and not exists (select from claimed k where k.ordering_key is not null)
              then set_config('synchronous_commit', 'off', true) end) s;

-- name: harden
-- Write something and wait until it is on disk, and with it all that was committed before.
update pgeverything.workers w set asleep = w.asleep where w.id = %(worker)s::bigint;

-- name: claim_limited
-- Take up to `limit` jobs from lanes of queues with a fleet-wide limit, as far as it leaves room.
select *
from pgeverything.claim_limited(%(worker)s::bigint, %(queues)s::text[], %(priorities)s::integer[], %(limit)s::integer);

-- name: finish
-- End jobs that this worker still owns. Returns the jobs that were accepted, and how much others may take up now.
select accepted, freed
from pgeverything.finish(%(worker)s::bigint, %(jobs)s::bigint[], %(tokens)s::bigint[], %(states)s::text[],
                         %(results)s::text[], %(reasons)s::text[]);

-- name: fail
-- Record failed attempts. A job with a `delay` tries again after so many seconds; one without is dead. Returns the same.
select accepted, freed
from pgeverything.fail(%(worker)s::bigint, %(jobs)s::bigint[], %(tokens)s::bigint[], %(delays)s::double precision[],
                       %(used)s::integer[], %(reasons)s::text[], %(fingerprints)s::text[], %(errors)s::text[]);

-- name: give_back
-- Return claimed jobs that were never started to the very place in line they came from.
-- plan: fresh
with given as (
  select g.job, g.token from unnest(%(jobs)s::bigint[], %(tokens)s::bigint[]) as g(job, token)),
undone as (
  delete from pgeverything.running r using given g
  where r.job = any (%(jobs)s::bigint[]) and r.job = g.job and r.token = g.token and r.worker = %(worker)s::bigint
  returning r.job, r.token, r.attempt - 1 as attempt, r.crashes),
back as (
  insert into pgeverything.ready (queue, priority, seq, job, attempt, crashes)
  select j.queue, j.priority, u.token, u.job, u.attempt, u.crashes
  from undone u join pgeverything.jobs j on j.id = u.job
  where j.id = any (%(jobs)s::bigint[])
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
  delete from pgeverything.jobs j using done d where j.id = %(job)s::bigint
  returning j.id, j.queue, j.task, j.priority, j.args, j.headers, j.unique_key, j.ordering_key, j.max_attempts,
            j.timeout, j.expires_at, j.created_at, d.started_at, d.attempt, d.crashes, j.redriven, j.origin,
            j.transaction_id),
kept as (
  insert into pgeverything.finished (id, queue, task, state, priority, args, headers, unique_key, ordering_key, max_attempts,
    timeout, expires_at, created_at, started_at, finished_at, attempt, crashes, redriven, origin, worker,
    transaction_id)
  select b.id, b.queue, b.task, 'succeeded', b.priority, b.args, b.headers, b.unique_key, b.ordering_key, b.max_attempts,
    b.timeout, b.expires_at, b.created_at, b.started_at, clock_timestamp(), b.attempt, b.crashes, b.redriven, b.origin,
    %(worker)s::bigint, b.transaction_id
  from body b),
noted as (
  insert into pgeverything.turn_notes (seq, queue, ordering_key, given_back)
  select nextval('pgeverything.job_seq'), b.queue, b.ordering_key, 1 from body b where b.ordering_key is not null)
select d.job,
       (select pgeverything.wake(b.queue)::text from body b where b.ordering_key is not null or d.limited)
from done d;

-- name: progress
-- Write the progress of running jobs.
-- plan: fresh
update pgeverything.running r
set progress = g.progress, note = g.note
from unnest(%(jobs)s::bigint[], %(tokens)s::bigint[], %(progress)s::real[], %(notes)s::text[]) as g(job, token, progress, note)
where r.job = any (%(jobs)s::bigint[]) and r.job = g.job and r.token = g.token and r.worker = %(worker)s::bigint;

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
  where r.worker = any (array(select s.id from silent s))
     or (r.worker <> all (array(select w.id from pgeverything.workers w))
         and r.started_at < clock_timestamp() - make_interval(secs => %(stray)s::double precision))
  for update of r skip locked),
lost as (
  delete from pgeverything.running r where r.job = any (array(select s.job from stray s))
  returning r.job, r.token, r.worker, r.attempt - 1 as attempt, r.crashes + 1 as crashes),
judged as materialized (
  select l.job, l.token, l.worker, l.attempt, l.crashes, j.queue, j.priority, j.ordering_key, clock_timestamp() as at,
         'crashed its worker ' || l.crashes || ' times' as reason,
         json_build_object('type', 'WorkerLost', 'message', 'worker ' || l.worker || ' fell silent while it ran the job') as error
  from lost l join pgeverything.jobs j on j.id = l.job
  where j.id = any (array(select x.job from lost x))),
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
  from judged g
  where j.id = any (array(select x.job from judged x where x.crashes > %(most)s::integer)) and j.id = g.job
  returning j.queue, j.ordering_key),
logged as (
  insert into pgeverything.failures (job, at, attempt, worker, error)
  select g.job, g.at, g.attempt, g.worker, g.error::jsonb from judged g)
select (select count(*) from judged),
       (select count(*) from dead),
       array(select pgeverything.wake(g.queue)::text from (select distinct queue from judged) g),
       (select sum(pgeverything.release(k.queue, k.ordering_key, k.n))
        from (select d.queue, d.ordering_key, count(*)::integer as n from dead d where d.ordering_key is not null
              group by 1, 2 order by d.queue collate "C", d.ordering_key collate "C") k);

-- name: settle_cancellations
-- Carry out cancellations whose job is not running any more: it ended, or was put back to try again.
-- plan: fresh
with left_over as (
  delete from pgeverything.cancellations c
  where (select r.job from pgeverything.running r where r.job = c.job) is null
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
-- to sweep: silent workers or jobs without one, leftover cancellations, lines of ordering keys, and which chores are due.
-- So an idle fleet sweeps with one statement. A last turn that is later than ours would be next is of a clock that was
-- set back since, on this server or the one before a failover.
-- plan: fresh
with taken as (
  insert into pgeverything.sweeps as s (name, swept_at, next_at)
  values (%(name)s::text, clock_timestamp(), clock_timestamp() + make_interval(secs => %(every)s::double precision))
  on conflict (name) do update set swept_at = excluded.swept_at, next_at = excluded.next_at
  where s.next_at <= excluded.swept_at or s.swept_at > excluded.next_at
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
       array(select c.name from unnest(%(chores)s::text[]) as c(name)
             where not exists (select from pgeverything.sweeps s
                               where s.name = c.name and s.next_at > clock_timestamp() and s.swept_at <= clock_timestamp()));

-- name: take_chore
-- Take the fleet's turn at a chore until it is due again; no row when another process has it.
insert into pgeverything.sweeps as s (name, swept_at, next_at)
values (%(name)s::text, clock_timestamp(), clock_timestamp() + make_interval(secs => %(every)s::double precision))
on conflict (name) do update set swept_at = excluded.swept_at, next_at = excluded.next_at
where s.next_at <= excluded.swept_at or s.swept_at > excluded.next_at
returning s.name;

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
  where j.id = any (array(select x.job from lost x))
  returning queue)
select (select count(*) from lost), array(select pgeverything.wake(b.queue)::text from (select distinct queue from back) b);
