-- What one transaction did: its audit entries, events and jobs.
--
-- The first two know their transaction. A job gets to know it by the column's default, which costs an enqueue 8 bytes and
-- no change of its function. All are found by a BRIN index: transactions come in order, near enough, so a look-up reads
-- a few ranges of pages, and an insert pays next to nothing.

alter table pgeverything.jobs add column transaction_id bigint;
alter table pgeverything.jobs alter column transaction_id set default (pg_current_xact_id()::text)::bigint;
alter table pgeverything.finished add column transaction_id bigint;
comment on column pgeverything.jobs.transaction_id is 'that enqueued it; null of jobs from before this column';
create index jobs_transaction on pgeverything.jobs using brin (transaction_id);
create index finished_transaction on pgeverything.finished using brin (transaction_id);
create index events_transaction on pgeverything.events using brin (transaction_id);

-- As before, with the transaction.
create or replace function pgeverything.bury(job bigint, reason text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off
as $$
begin
  with body as (delete from pgeverything.jobs j where j.id = bury.job returning j.*)
  insert into pgeverything.finished (id, queue, task, state, priority, args, headers, unique_key, ordering_key, max_attempts,
                                     timeout, expires_at, created_at, finished_at, attempt, crashes, redriven, origin, reason,
                                     transaction_id)
  select b.id, b.queue, b.task, 'cancelled', b.priority, b.args, b.headers, b.unique_key, b.ordering_key, b.max_attempts,
         b.timeout, b.expires_at, b.created_at, clock_timestamp(), coalesce(b.attempt, 0), coalesce(b.crashes, 0), b.redriven,
         b.origin, bury.reason, b.transaction_id
  from body b;
end $$;

-- As before, with the transaction, and with keys locked in the order of their bytes: what `turn_notes` sorts so by its
-- columns, `jobs` sorts by the database's own rules, and where these differ two statements waited for each other.
create or replace function pgeverything.finish(
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
              d.result, j.transaction_id),
  kept as (
    insert into pgeverything.finished (id, queue, task, state, priority, args, headers, unique_key, ordering_key,
      max_attempts, timeout, expires_at, created_at, started_at, finished_at, attempt, crashes, redriven, origin, worker,
      reason, result, transaction_id)
    select b.id, b.queue, b.task, b.state, b.priority, b.args, b.headers, b.unique_key, b.ordering_key, b.max_attempts,
      b.timeout, b.expires_at, b.created_at, b.started_at, clock_timestamp(), b.attempt, b.crashes, b.redriven, b.origin,
      finish.worker,
      case when b.state = 'cancelled' then coalesce(b.reason, (
        select c.reason from pgeverything.cancellations c where c.job = b.id)) end,
      b.result::jsonb, b.transaction_id
    from body b)
  select array(select d.job from done d),
         coalesce((
           select sum(pgeverything.release(k.queue, k.ordering_key, k.n))
           from (select b.queue, b.ordering_key, count(*)::integer as n from body b where b.ordering_key is not null
                 group by 1, 2 order by b.queue collate "C", b.ordering_key collate "C") k), 0)
         + (select count(pgeverything.wake(l.queue)::text) from (select distinct d.queue from done d where d.limited) l)
  into accepted, freed;
end $$;
