-- name: current
-- The number of this transaction.
select pg_current_xact_id()::text::bigint;

-- name: entries
-- What it wrote to the audit trail.
-- plan: fresh
select e.id, e.at, e.transaction_id, e.action, e.subject, e.key, e.other_key, e.old::text, e.new::text, e.masked,
       e.digests::text, e.personal::text, e.actor, e.reason, e.context::text, e.session_role, e.role
from pgeverything.audit_entries e
where e.transaction_id = %(id)s::bigint
order by e.id;

-- name: events
-- What it published.
-- plan: fresh
select e.position, (select t.name from pgeverything.topics t where t.id = e.topic_id), e.key, e.version, e.type,
       e.data::text, e.headers::text, e.recorded_at
from pgeverything.events e
where e.transaction_id = %(id)s::bigint
order by e.position;

-- name: jobs
-- What it enqueued.
-- plan: fresh
with enqueued as materialized (
  select j.id from pgeverything.jobs j where j.transaction_id = %(id)s::bigint
  union all
  select f.id from pgeverything.finished f where f.transaction_id = %(id)s::bigint)
select j.id, j.queue, j.task, j.state, j.priority, j.args::text, j.headers::text, j.unique_key, j.ordering_key, j.max_attempts,
       extract(epoch from j.timeout)::double precision, j.expires_at, j.created_at, j.run_at, j.started_at, j.finished_at,
       j.attempt, j.crashes, j.redriven, j.origin, j.worker, j.progress, j.note, j.reason, j.fingerprint, j.error::text,
       j.result::text
from enqueued e cross join lateral (select a.* from pgeverything.all_jobs a where a.id = e.id limit 1) j
order by j.id;
