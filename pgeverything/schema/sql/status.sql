-- name: server
-- The server's version, the database, the role, and whether it is a standby.
select current_setting('server_version'), current_database()::text, current_user::text, pg_is_in_recovery();

-- name: workers
-- Every worker that is registered, with its age and the jobs in its name; ages are in seconds.
select w.id, w.name, w.queues, w.concurrency, w.started_at,
       extract(epoch from clock_timestamp() - w.heartbeat_at)::double precision,
       extract(epoch from w.lease)::double precision,
       w.heartbeat_at + w.lease > clock_timestamp(), w.asleep,
       (select count(*) from pgeverything.running r where r.worker = w.id),
       w.finished, w.failed, w.refused
from pgeverything.workers w
order by w.id;

-- name: starved
-- Queues with work that is older than `patience` seconds and no live worker; the age of the oldest in seconds.
select o.queue, extract(epoch from clock_timestamp() - min(o.since))::double precision
from (
  select r.queue, j.created_at as since
  from (select queue, min(job) as job from pgeverything.ready group by queue) r join pgeverything.jobs j on j.id = r.job
  union all
  select w.queue, j.created_at
  from (select queue, min(job) as job from pgeverything.waiting group by queue) w join pgeverything.jobs j on j.id = w.job
  union all
  select s.queue, min(s.due_at) from pgeverything.scheduled s group by s.queue) o
where not exists (
    select from pgeverything.workers w where o.queue = any (w.queues) and w.heartbeat_at + w.lease > clock_timestamp())
  and not exists (select from pgeverything.queues q where q.name = o.queue and q.paused)
group by o.queue
having min(o.since) < clock_timestamp() - make_interval(secs => %(patience)s::double precision)
order by o.queue;
