-- name: bounds
-- An examination waits for nobody for long: what it would wait for is what it is to find out.
select set_config('lock_timeout', '2s', true), set_config('statement_timeout', '30s', true);

-- name: settings
-- What these settings are for this role in this database.
select s.name, s.setting from pg_settings s where s.name = any (%(names)s::text[]);

-- name: connections
-- How many connections there are of how many that may be: in the server, the database and for this role.
with client as materialized (
  select a.datname, a.usename from pg_stat_activity a
  where a.usesysid is not null and coalesce(a.backend_type, 'client backend') = 'client backend')
select 'the server', (select count(*) from client),
       current_setting('max_connections')::bigint - current_setting('superuser_reserved_connections')::bigint
       - coalesce(current_setting('reserved_connections', true)::bigint, 0)
union all
select 'database ' || d.datname, (select count(*) from client c where c.datname = d.datname), d.datconnlimit
from pg_database d where d.datname = current_database() and d.datconnlimit >= 0
union all
select 'role ' || r.rolname, (select count(*) from client c where c.usename = r.rolname), r.rolconnlimit
from pg_roles r where r.rolname = current_user and r.rolconnlimit >= 0;

-- name: ages
-- The database that is nearest to running out of transaction ids, and how many its oldest rows are behind.
select d.datname::text, age(d.datfrozenxid)::bigint, mxid_age(d.datminmxid)::bigint
from pg_database d
order by greatest(age(d.datfrozenxid), mxid_age(d.datminmxid)) desc
limit 1;

-- name: holders
-- What keeps vacuum from removing dead rows here, or holds locks while it does nothing: kind, name, owner, application,
-- state, for how many seconds, for how many transactions, and what it is about. Sessions and prepared transactions
-- count from an age on; replication when it is that many transactions behind, and slots that nobody uses at once.
-- plan: fresh
select 'session', a.pid::text, a.usename::text, a.application_name, a.state,
       extract(epoch from clock_timestamp() - a.xact_start)::double precision,
       age(coalesce(a.backend_xmin, a.backend_xid))::bigint, left(a.query, 200)
from pg_stat_activity a
where a.datname = current_database() and a.pid <> pg_backend_pid() and a.backend_type = 'client backend'
  and a.xact_start < clock_timestamp() - make_interval(secs => %(patience)s::double precision)
  and (a.backend_xmin is not null or a.backend_xid is not null or starts_with(a.state, 'idle in transaction'))
union all
select 'prepared', x.gid, x.owner::text, '', 'prepared',
       extract(epoch from clock_timestamp() - x.prepared)::double precision, age(x.transaction)::bigint, ''
from pg_prepared_xacts x
where x.database = current_database()
  and x.prepared < clock_timestamp() - make_interval(secs => %(patience)s::double precision)
union all
select 'slot', s.slot_name::text, '', coalesce(s.plugin::text, s.slot_type), case when s.active then 'active' else 'inactive' end,
       null, greatest(age(s.xmin), age(s.catalog_xmin))::bigint,
       pg_size_pretty(pg_wal_lsn_diff(
         case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end, s.restart_lsn))
from pg_replication_slots s
where (s.database is null or s.database = current_database()) and s.restart_lsn is not null
  and (not s.active or greatest(age(s.xmin), age(s.catalog_xmin)) > %(transactions)s::bigint)
union all
select 'standby', r.pid::text, r.usename::text, r.application_name, r.state, null, age(r.backend_xmin)::bigint, ''
from pg_stat_replication r
where age(r.backend_xmin) > %(transactions)s::bigint
order by 6 desc nulls last, 7 desc nulls last;

-- name: hidden
-- How many sessions of this database this role is not shown.
select count(*) from pg_stat_activity a where a.datname = current_database() and a.query = '<insufficient privilege>';

-- name: blocked
-- Statements that touch our tables and have waited for a lock for so many seconds, and who is in their way.
-- plan: fresh
select a.pid, a.usename::text, extract(epoch from clock_timestamp() - a.query_start)::double precision, left(a.query, 200),
       b.pid, b.usename::text, b.state, left(b.query, 200)
from pg_stat_activity a
cross join lateral unnest(pg_blocking_pids(a.pid)) as by(pid)
left join pg_stat_activity b on b.pid = by.pid
where a.datname = current_database() and a.wait_event_type = 'Lock'
  and a.query_start < clock_timestamp() - make_interval(secs => %(patience)s::double precision)
  and exists (
    select from pg_locks l join pg_class c on c.oid = l.relation join pg_namespace n on n.oid = c.relnamespace
    where l.pid = a.pid and n.nspname = 'pgeverything')
order by 3 desc
limit 20;

-- name: tables
-- Our tables: dead rows, after how many autovacuum comes, whether it may, and how many seconds ago one was here.
select c.relname::text, pg_stat_get_dead_tuples(c.oid),
       coalesce(o.options ->> 'autovacuum_vacuum_threshold', current_setting('autovacuum_vacuum_threshold'))::double precision
       + coalesce(o.options ->> 'autovacuum_vacuum_scale_factor',
                  current_setting('autovacuum_vacuum_scale_factor'))::double precision * greatest(c.reltuples, 0),
       coalesce((o.options ->> 'autovacuum_enabled')::boolean, true),
       extract(epoch from clock_timestamp() - greatest(
         pg_stat_get_last_autovacuum_time(c.oid), pg_stat_get_last_vacuum_time(c.oid)))::double precision
from pg_class c
join pg_namespace n on n.oid = c.relnamespace
cross join lateral (
  select jsonb_object_agg(p.option_name, p.option_value) as options from pg_options_to_table(c.reloptions) p) o
where n.nspname = 'pgeverything' and c.relkind = 'r'
order by c.relname;

-- name: indexes
-- Indexes of ours that Postgres does not use.
select c.relname::text, t.relname::text
from pg_index i
join pg_class c on c.oid = i.indexrelid
join pg_class t on t.oid = i.indrelid
join pg_namespace n on n.oid = t.relnamespace
where n.nspname = 'pgeverything' and not (i.indisvalid and i.indisready)
order by c.relname;

-- name: usage
-- Whether the schema is there, and whether this role may use it.
select has_schema_privilege(n.oid, 'usage') from pg_namespace n where n.nspname = 'pgeverything';

-- name: lacking
-- Which rights this role lacks of those that an application needs, and on what. What audit_protect() takes it should lack.
select l.what, array_agg(l.name order by l.name)
from (
  select lower(p.what) as what, c.relname::text as name
  from pg_class c
  join pg_namespace n on n.oid = c.relnamespace
  cross join unnest(array['SELECT', 'INSERT', 'UPDATE', 'DELETE']) as p(what)
  where n.nspname = 'pgeverything' and not c.relispartition
    and (c.relkind in ('r', 'p') and (p.what = 'SELECT' or c.relname not in (
           'migrations', 'audit_entries', 'audit_blocks', 'audit_sealing'))
         or c.relkind = 'v' and p.what = 'SELECT')
    and not has_table_privilege(c.oid, p.what)
  union all
  select 'usage', c.relname::text
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
  where n.nspname = 'pgeverything' and case when c.relkind = 'S' then not has_sequence_privilege(c.oid, 'usage') end
  union all
  select distinct 'execute', p.proname || '()'
  from pg_proc p join pg_namespace n on n.oid = p.pronamespace
  where n.nspname = 'pgeverything' and not has_function_privilege(p.oid, 'execute')
    and p.proname not in ('audit_row', 'audit_update', 'audit_bulk', 'audit_truncate', 'audit_note', 'audit_erase', 'audit_drop')) l
group by l.what
order by l.what;

-- name: ahead
-- How many partitions each daily table has from tomorrow on without a gap, the event log beyond the one that it writes
-- to, and the audit trail beyond this month's.
with part as materialized (
  select p.relname::text as parent, right(c.relname::text, 8) as day
  from pg_inherits i
  join pg_class p on p.oid = i.inhparent
  join pg_class c on c.oid = i.inhrelid
  join pg_namespace n on n.oid = p.relnamespace
  where n.nspname = 'pgeverything' and p.relkind = 'p' and c.relname ~ '_[0-9]{8}$')
select t.parent, (
  select coalesce(min(d.n), 31) - 1
  from generate_series(1, 30) d(n)
  where not exists (
    select from part p
    where p.parent = t.parent
      and p.day = to_char(clock_timestamp() at time zone 'UTC' + d.n * interval '1 day', 'YYYYMMDD')))::bigint
from (select distinct p.parent from part p) t
union all
select 'events', (
  select count(*)
  from pg_inherits i
  join pg_class p on p.oid = i.inhparent
  join pg_class c on c.oid = i.inhrelid
  join pg_namespace n on n.oid = p.relnamespace
  where n.nspname = 'pgeverything' and p.relname = 'events' and c.relname ~ '^events_[0-9]+$'
    and substr(c.relname, 8)::bigint > coalesce(pg_sequence_last_value('pgeverything.event_seq'), 0) / 5000000)
union all
select 'audit_entries', (
  select count(*)
  from pg_inherits i
  join pg_class p on p.oid = i.inhparent
  join pg_class c on c.oid = i.inhrelid
  join pg_namespace n on n.oid = p.relnamespace
  where n.nspname = 'pgeverything' and p.relname = 'audit_entries' and c.relname ~ '^audit_entries_[0-9]{6}$'
    and right(c.relname, 6) > to_char(clock_timestamp() at time zone 'UTC', 'YYYYMM'))
order by 1;

-- name: strays
-- Default partitions that are not empty.
select s.name
from (
  select 'audit_entries_default' as name where exists (select from pgeverything.audit_entries_default)
  union all select 'events_default' where exists (select from pgeverything.events_default)
  union all select 'failures_default' where exists (select from pgeverything.failures_default)
  union all select 'finished_default' where exists (select from pgeverything.finished_default)
  union all select 'ticks_default' where exists (select from pgeverything.ticks_default)) s
order by s.name;

-- name: workers
-- Every worker that is registered, with its age and the jobs in its name; ages are in seconds.
-- plan: fresh
select w.id, w.name, w.queues, w.concurrency, w.started_at,
       extract(epoch from clock_timestamp() - w.heartbeat_at)::double precision,
       extract(epoch from w.lease)::double precision,
       w.heartbeat_at + w.lease > clock_timestamp(), w.asleep,
       coalesce(h.jobs, 0), w.finished, w.failed, w.refused
from pgeverything.workers w
left join (select r.worker, count(*) as jobs from pgeverything.running r group by r.worker) h on h.worker = w.id
order by w.id;

-- name: crashing
-- Jobs that their worker did not survive: those that will run again, and those that died of it in the last day.
-- plan: fresh
select c.job, (select j.task from pgeverything.jobs j where j.id = c.job), c.crashes, c.dead
from (
  select r.job, r.crashes, false as dead from pgeverything.running r where r.crashes > 0
  union all
  select s.job, s.crashes, false from pgeverything.scheduled s where s.crashes > 0
  union all
  select j.id, j.crashes, true from pgeverything.jobs j
  where j.dead and j.died_at > clock_timestamp() - interval '1 day' and j.fingerprint = 'crash') c
order by c.crashes desc, c.job
limit 20;

-- name: sweeps
-- What workers do now and then, and how many seconds overdue each is.
select s.name, extract(epoch from clock_timestamp() - s.next_at)::double precision from pgeverything.sweeps s order by s.name;

-- name: oldest
-- Queues with work: for how many seconds the oldest of it has lain, and of what was ready at once; whether a live worker
-- serves the queue; and whether it is paused.
-- plan: fresh
select o.queue, extract(epoch from clock_timestamp() - min(o.since))::double precision,
       extract(epoch from clock_timestamp() - min(o.since) filter (where o.at_once))::double precision,
       exists (select from pgeverything.workers w
               where o.queue = any (w.queues) and w.heartbeat_at + w.lease > clock_timestamp()),
       exists (select from pgeverything.queues q where q.name = o.queue and q.paused)
from (
  select r.queue, (select j.created_at from pgeverything.jobs j where j.id = r.job) as since, r.at_once
  from (select queue, job = seq as at_once, min(job) as job from pgeverything.ready group by 1, 2) r
  union all
  select w.queue, (select j.created_at from pgeverything.jobs j where j.id = w.job), false
  from (select queue, min(job) as job from pgeverything.waiting group by queue) w
  union all
  select s.queue, min(s.due_at), false from pgeverything.scheduled s group by s.queue) o
group by o.queue
order by o.queue;

-- name: dead
-- How many jobs are dead, how many died in the last so many seconds, and what most of those are.
-- plan: fresh
with late as materialized (
  select j.queue, j.task, coalesce(j.error ->> 'type', j.reason) as why from pgeverything.jobs j
  where j.dead and j.died_at > clock_timestamp() - make_interval(secs => %(recent)s::double precision)),
most as (
  select l.task, l.why, count(*) as number from late l group by l.task, l.why order by number desc limit 1)
select (select count(*) from pgeverything.jobs j where j.dead), (select count(*) from late), m.task, m.why, m.number
from (values (0)) v(x) left join most m on true;

-- name: fence
-- How many positions a session takes from the sequence at once.
select s.seqcache
from pg_sequence s
join pg_class c on c.oid = s.seqrelid
join pg_namespace n on n.oid = c.relnamespace
where n.nspname = 'pgeverything' and c.relname = 'event_seq';

-- name: backlogs
-- Subscriptions that have not taken the next event of theirs, with its age in seconds; of each, one look at the log.
-- plan: fresh
with sub as materialized (
  select s.name, s.claimed, array(
    select t.id from pgeverything.topics t
    where (s.topic is null or t.name = s.topic) and (s.low is null or t.name >= s.low and t.name < s.high)
      and (s.regex is null or t.name ~ s.regex)) as topics
  from pgeverything.subscriptions s
  where not s.paused and s.stopped is null),
head as materialized (
  select pgeverything.horizon(coalesce(min(s.claimed), 0)) as upto from sub s)
select s.name, extract(epoch from clock_timestamp() - e.recorded_at)::double precision
from sub s
cross join head h
cross join lateral pgeverything.next_events(s.topics, s.claimed, h.upto, 1) n
cross join lateral (
  select v.recorded_at from pgeverything.events v where v.position = n.positions[1] limit 1) e
order by 2 desc;

-- name: unsealed
-- How old the oldest entry of the audit trail is that is not sealed, in seconds; null when all are.
-- plan: fresh
select extract(epoch from clock_timestamp() - e.at)::double precision
from pgeverything.audit_entries e
where e.id > coalesce((select max(b.last_id) from pgeverything.audit_blocks b), 0)
order by e.id
limit 1;
