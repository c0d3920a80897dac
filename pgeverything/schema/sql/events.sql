-- name: append
-- Append one event through the function that strangers call too.
select a.position, a.version, a.recorded_at, a.state
from pgeverything.append(
  topic => %(topic)s::text, data => %(data)s::text::jsonb, type => %(type)s::text, key => %(key)s::text,
  expected_version => %(expected_version)s::bigint, headers => %(headers)s::text::jsonb,
  idempotency_key => %(idempotency_key)s::text) a;

-- name: append_many
-- Append an event for each element of a JSON array, in one round trip.
select a.positions, a.versions, a.recorded_at, a.state
from pgeverything.append_many(
  topic => %(topic)s::text, data => %(data)s::text::jsonb, types => %(types)s::text[], keys => %(keys)s::text[],
  expected_version => %(expected_version)s::bigint, headers => %(headers)s::text::jsonb,
  idempotency_key => %(idempotency_key)s::text) a;

-- name: horizon
-- How far a reader may read and forget, why it may not read here at all, and how far retention has dropped the log.
select case when current_setting('transaction_isolation') in ('read committed', 'read uncommitted')
             and not pg_is_in_recovery()
            then pgeverything.horizon(%(after)s::bigint, %(own)s::boolean) end,
       current_setting('transaction_isolation'), pg_is_in_recovery();

-- name: near
-- Events of a range that is not much larger than a batch, by position; topics that do not match are read and left out.
-- plan: fresh
select e.position, (select t.name from pgeverything.topics t where t.id = e.topic_id), e.key, e.version, e.type,
       e.data::text, e.headers::text, e.recorded_at
from pgeverything.events e
where e.position > %(after)s::bigint and e.position <= %(upto)s::bigint
  and (%(everything)s::boolean or e.topic_id = any (array(
    select t.id from pgeverything.topics t
    where (%(topic)s::text is null or t.name = %(topic)s::text)
      and (%(low)s::text is null or t.name >= %(low)s::text and t.name < %(high)s::text)
      and (%(regex)s::text is null or t.name ~ %(regex)s::text))))
  and (%(key)s::text is null or e.key = %(key)s::text)
  and (%(type)s::text is null or e.type = %(type)s::text)
order by e.position
limit %(limit)s::integer;

-- name: far
-- The same for a range much larger than a batch: the next few positions of each topic, from the index that has them, and
-- of those what lies below the end of the shortest list, because above it a list may lack some. The first column is how
-- far that is complete. The type is no index's business, and a statement that looks for one stays a small one.
-- plan: fresh
with topic as materialized (
  select t.id from pgeverything.topics t
  where (%(topic)s::text is null or t.name = %(topic)s::text)
    and (%(low)s::text is null or t.name >= %(low)s::text and t.name < %(high)s::text)
    and (%(regex)s::text is null or t.name ~ %(regex)s::text)),
share as materialized (
  select greatest(16, least(%(limit)s::bigint, 4 * %(limit)s::bigint / greatest(1, count(*))))::integer as most from topic),
found as materialized (
  select f.topic_id, f.position
  from pgeverything.find_events(array(select t.id from topic t), %(key)s::text, %(after)s::bigint, %(upto)s::bigint,
                                (select s.most from share s)) f),
complete as materialized (
  select coalesce(min(f.last), %(upto)s::bigint) as upto
  from (select max(f.position) as last, count(*) as number from found f group by f.topic_id) f
  where f.number = (select s.most from share s)),
page as materialized (
  select f.position from found f where f.position <= (select c.upto from complete c) order by f.position)
select c.upto, e.position, (select t.name from pgeverything.topics t where t.id = e.topic_id), e.key, e.version, e.type,
       e.data::text, e.headers::text, e.recorded_at
from complete c
left join (
  page p cross join lateral (  -- limit 1: each by its position, never the whole range
    select e.* from pgeverything.events e
    where e.position = p.position and e.position > %(after)s::bigint and e.position <= %(upto)s::bigint limit 1) e) on
  %(type)s::text is null or e.type = %(type)s::text
order by e.position
limit %(limit)s::integer;

-- name: own
-- What this transaction has appended itself, above a position.
-- plan: fresh
select e.position, (select t.name from pgeverything.topics t where t.id = e.topic_id), e.key, e.version, e.type,
       e.data::text, e.headers::text, e.recorded_at
from pgeverything.events e
where e.position > %(after)s::bigint and e.position <= %(upto)s::bigint
  and e.transaction_id = pg_current_xact_id_if_assigned()::text::bigint
  and (%(everything)s::boolean or e.topic_id = any (array(
    select t.id from pgeverything.topics t
    where (%(topic)s::text is null or t.name = %(topic)s::text)
      and (%(low)s::text is null or t.name >= %(low)s::text and t.name < %(high)s::text)
      and (%(regex)s::text is null or t.name ~ %(regex)s::text))))
  and (%(key)s::text is null or e.key = %(key)s::text)
  and (%(type)s::text is null or e.type = %(type)s::text)
order by e.position
limit %(limit)s::integer;

-- name: dropped
-- The highest position that retention has dropped.
select r.dropped from pgeverything.event_retention r;

-- name: get
-- Events by their positions.
select e.position, (select t.name from pgeverything.topics t where t.id = e.topic_id), e.key, e.version, e.type,
       e.data::text, e.headers::text, e.recorded_at
from pgeverything.events e
where e.position = any (%(positions)s::bigint[])
order by e.position;

-- name: sleep
-- Ask publishers to notify for so many seconds. A reader must look once more after this: who published before it was
-- committed did not see it.
with now as (select clock_timestamp() as at)
insert into pgeverything.event_sleepers (id, expires_at)
select %(id)s::bigint, now.at + make_interval(secs => %(seconds)s::double precision) from now
on conflict (id) do update set expires_at = excluded.expires_at;

-- name: awake
-- Ask no more.
delete from pgeverything.event_sleepers s where s.id = %(id)s::bigint;

-- name: position_at
-- Between which positions a time is.
select p.low, p.high from pgeverything.position_at(%(at)s::timestamptz) p;

-- name: version
-- How many events a topic and key have had.
select s.version from pgeverything.streams s where s.topic = %(topic)s::text and s.key = %(key)s::text;

-- name: stalled_by
-- The open publishers and prepared transactions, the one that holds readers back first.
-- plan: fresh
select (((l.classid::bigint & 255) << 32) | l.objid::bigint) as position, l.pid, x.gid,
       coalesce(a.usename, x.owner)::text, coalesce(a.application_name, ''), coalesce(a.state, 'prepared'),
       extract(epoch from clock_timestamp() - coalesce(a.xact_start, x.prepared))::double precision,
       coalesce(a.query, '')
from pg_locks l
left join pg_stat_activity a on a.pid = l.pid
left join pg_prepared_xacts x on l.pid is null and x.transaction::text = split_part(l.virtualtransaction, '/', 2)
where l.locktype = 'advisory' and l.objsubid = 1 and l.mode = 'ShareLock'
  and l.database = (select d.oid from pg_database d where d.datname = current_database())
  and l.classid::bigint >> 8 = 'pgeverything.event_seq'::regclass::oid::bigint & 16777215
order by 1, 7 desc;

-- name: topics
-- Every topic with what it holds: complete partitions as they were counted, and the rest read through.
-- plan: fresh
with counted as materialized (
  select t.topic_id, t.events, t.bytes, t.last, t.first from pgeverything.event_totals t),
held as (
  select c.topic_id, c.events, c.bytes, c.last from counted c
  union all
  select e.topic_id, count(*), sum(pg_column_size(e.data)), max(e.position)
  from pgeverything.events e
  where e.position >= greatest((select max(c.first) + 5000000 from counted c),
                               (select r.dropped + 1 from pgeverything.event_retention r))
  group by e.topic_id)
select t.name, coalesce(sum(h.events), 0)::bigint, coalesce(sum(h.bytes), 0)::bigint, max(h.last)
from pgeverything.topics t
left join held h on h.topic_id = t.id
where (%(topic)s::text is null or t.name = %(topic)s::text)
  and (%(low)s::text is null or t.name >= %(low)s::text and t.name < %(high)s::text)
  and (%(regex)s::text is null or t.name ~ %(regex)s::text)
group by t.name
order by t.name;

-- name: uncounted
-- The first position of the oldest partition whose topics are not counted yet.
select greatest((select max(t.first) + 5000000 from pgeverything.event_totals t),
                (select (r.dropped + 1) / 5000000 * 5000000 from pgeverything.event_retention r));

-- name: count
-- Count the topics of a complete partition.
-- plan: fresh
insert into pgeverything.event_totals (first, topic_id, events, bytes, last)
select %(first)s::bigint, h.topic_id, h.events, h.bytes, h.last
from (
  select e.topic_id, count(*) as events, sum(pg_column_size(e.data)) as bytes, max(e.position) as last
  from pgeverything.events e
  where e.position >= %(first)s::bigint and e.position < %(first)s::bigint + 5000000
  group by e.topic_id
  union all
  select 0, 0, 0, 0) h
on conflict (first, topic_id) do nothing;

-- name: may_extend
-- Whether this role may create partitions.
select has_function_privilege(p.oid, 'execute')
from pg_proc p join pg_namespace n on n.oid = p.pronamespace
where n.nspname = 'pgeverything' and p.proname = 'extend_events';

-- name: extend
-- Create the partitions of the next positions.
select pgeverything.extend_events(%(ahead)s::integer);

-- name: drop
-- Drop the oldest partition when all of it is at or below a position.
select pgeverything.drop_events(%(upto)s::bigint);

-- name: discard
-- Drop a table that is empty since its events were dropped, if nobody is in the way.
select pgeverything.discard_events();

-- name: keep
-- Set how long events are kept; null is for ever.
with given as (select make_interval(secs => %(seconds)s::double precision) as keep)
update pgeverything.event_retention r set keep = g.keep from given g;

-- name: kept
-- How long events are kept, in seconds and as the time before which they may go; null when for ever.
select extract(epoch from r.keep)::double precision, clock_timestamp() - r.keep from pgeverything.event_retention r;

-- name: forget
-- Forget idempotency keys after a time, some at once, and sleepers that never woke.
-- plan: fresh
with now as (select clock_timestamp() as at),
woken as (
  delete from pgeverything.event_sleepers s using now where s.expires_at < now.at - interval '1 hour'),
old as materialized (
  select r.topic, r.idempotency_key
  from pgeverything.event_receipts r, now
  where r.recorded_at < now.at - make_interval(secs => %(seconds)s::double precision)
  order by r.recorded_at
  limit %(limit)s::integer
  for update of r skip locked)
delete from pgeverything.event_receipts r using old o where r.topic = o.topic and r.idempotency_key = o.idempotency_key
returning r.topic;

-- name: discardable
-- Whether there are empty tables to drop.
select exists (
  select from pg_inherits i join pg_class c on c.oid = i.inhrelid
  where i.inhparent = 'pgeverything.events'::regclass and c.relname ~ '^events_[0-9]+$'
    and (substr(c.relname, 8)::bigint + 1) * 5000000 - 1 <= (select r.dropped from pgeverything.event_retention r));
