-- name: get
-- The value of a key.
select c.value, c.data
from pgeverything.cache c
where c.key = %(key)s::text and c.expires_at > clock_timestamp()
  and (c.generations is null or pgeverything.cache_current(c.generations));

-- name: get_many
-- The values of those of these keys that have one.
select k.key, e.value, e.data
from unnest(%(keys)s::text[]) k(key)
cross join lateral (
  select c.value, c.data
  from pgeverything.cache c
  where c.key = k.key and c.expires_at > clock_timestamp()
    and (c.generations is null or pgeverything.cache_current(c.generations))
  limit 1) e;

-- name: look
-- What is known of a key: its last value, the seconds until it expires, what computing it took, and for how many seconds
-- somebody who computes it now may go on.
select c.value, c.data, date_part('epoch', c.expires_at) - date_part('epoch', clock_timestamp()), c.took,
       date_part('epoch', c.lease_until) - date_part('epoch', clock_timestamp())
from pgeverything.cache c
where c.key = %(key)s::text and (c.generations is null or pgeverything.cache_current(c.generations));

-- name: set
-- Store a value, whatever was there.
insert into pgeverything.cache as c (key, stored_at, expires_at, generations, value, data)
values (%(key)s::text, clock_timestamp(),
        coalesce(clock_timestamp() + make_interval(secs => %(ttl)s::double precision), 'infinity'),
        case when %(tags)s::text[] is not null then pgeverything.cache_generations(%(tags)s::text[]) end,
        %(value)s::text, %(data)s::bytea)
on conflict (key) do update
set stored_at = excluded.stored_at, expires_at = excluded.expires_at, kept_until = null, lease = null, lease_until = null,
    took = null, error = null, error_until = null, generations = excluded.generations, value = excluded.value,
    data = excluded.data;

-- name: set_many
-- Store many values, in the order of their keys, so that two of these statements wait for each other and do not deadlock.
insert into pgeverything.cache as c (key, stored_at, expires_at, generations, value, data)
select e.key, clock_timestamp(),
       coalesce(clock_timestamp() + make_interval(secs => %(ttl)s::double precision), 'infinity'),
       t.generations, e.value, e.data
from unnest(%(keys)s::text[], %(values)s::text[], %(datas)s::bytea[]) e(key, value, data)
cross join (
  select case when %(tags)s::text[] is not null then pgeverything.cache_generations(%(tags)s::text[]) end as generations
  offset 0) t
order by e.key collate "C"
on conflict (key) do update
set stored_at = excluded.stored_at, expires_at = excluded.expires_at, kept_until = null, lease = null, lease_until = null,
    took = null, error = null, error_until = null, generations = excluded.generations, value = excluded.value,
    data = excluded.data;

-- name: add
-- Store a value where there is none. In the row that is to be inserted, `lease` is a number that a tag of the entry had
-- which is there and invalid. A number never comes back: an entry that has it is invalid, whoever wrote it meanwhile.
insert into pgeverything.cache as c (key, stored_at, expires_at, lease, value, data)
values (%(key)s::text, clock_timestamp(),
        coalesce(clock_timestamp() + make_interval(secs => %(ttl)s::double precision), 'infinity'),
        (select g.generation from pgeverything.cache o cross join lateral unnest(o.generations) g(generation)
         where o.key = %(key)s::text and not pgeverything.cache_current(array[g.generation]) limit 1),
        %(value)s::text, %(data)s::bytea)
on conflict (key) do update
set stored_at = excluded.stored_at, expires_at = excluded.expires_at, kept_until = null, lease = null, lease_until = null,
    took = null, error = null, error_until = null, generations = null, value = excluded.value, data = excluded.data
where c.expires_at <= excluded.stored_at or excluded.lease = any (c.generations)
returning true;

-- name: increment
-- Add to a whole number. Where there is none it begins at 0, and that is when it gets its expiry; no row comes back where
-- there is a value of another kind. `lease` as in `add`.
insert into pgeverything.cache as c (key, stored_at, expires_at, lease, value)
values (%(key)s::text, clock_timestamp(),
        coalesce(clock_timestamp() + make_interval(secs => %(ttl)s::double precision), 'infinity'),
        (select g.generation from pgeverything.cache o cross join lateral unnest(o.generations) g(generation)
         where o.key = %(key)s::text and not pgeverything.cache_current(array[g.generation]) limit 1),
        %(by)s::bigint::text)
on conflict (key) do update
set stored_at = excluded.stored_at, kept_until = null, lease = null, lease_until = null, took = null, error = null,
    error_until = null, data = null,
    expires_at =
      case when c.expires_at > excluded.stored_at and (excluded.lease = any (c.generations)) is not true
      then c.expires_at else excluded.expires_at end,
    generations =
      case when c.expires_at > excluded.stored_at and (excluded.lease = any (c.generations)) is not true
      then c.generations end,
    value =
      case when c.expires_at > excluded.stored_at and (excluded.lease = any (c.generations)) is not true
      then (c.value::bigint + excluded.value::bigint)::text else excluded.value end
where c.expires_at <= excluded.stored_at or excluded.lease = any (c.generations) or c.value ~ '^-?[0-9]{1,18}$'
returning c.value;

-- name: touch
-- Let a value live so long from now.
with later as (
  select n.at, coalesce(n.at + make_interval(secs => %(ttl)s::double precision), 'infinity') as expires_at
  from (select clock_timestamp() as at) n)
update pgeverything.cache c
set expires_at = l.expires_at, kept_until = null
from later l
where c.key = %(key)s::text and c.expires_at > l.at
  and (c.generations is null or pgeverything.cache_current(c.generations))
returning true;

-- name: invalidate
-- Take away the values of these keys and change the numbers of these tags; returns how many keys had a value.
-- A key without a row gets one: until this transaction ends, it keeps others from taking a lease and reading what is about
-- to change. Tags come in order, then keys in order, as in what writes, so that two of these statements do not deadlock.
with before as materialized (
  select k.key
  from unnest(%(keys)s::text[]) k(key)
  cross join lateral (
    select from pgeverything.cache c
    where c.key = k.key and c.expires_at > clock_timestamp()
      and (c.generations is null or pgeverything.cache_current(c.generations))
    limit 1) e),
renumbered as (
  insert into pgeverything.cache_tags as t (name, generation, changed_at)
  select w.name, nextval('pgeverything.cache_seq'), clock_timestamp() from unnest(%(tags)s::text[]) w(name)
  order by w.name collate "C"
  on conflict (name) do update set generation = excluded.generation, changed_at = excluded.changed_at
  returning 1),
cleared as (
  insert into pgeverything.cache as c (key, stored_at, expires_at)
  select k.key, clock_timestamp(), '-infinity' from unnest(%(keys)s::text[]) k(key)
  where (select count(*) from renumbered) is not null  -- tags first
  order by k.key collate "C"
  on conflict (key) do update
  set stored_at = excluded.stored_at, expires_at = excluded.expires_at, kept_until = null, lease = null, lease_until = null,
      took = null, error = null, error_until = null, generations = null, value = null, data = null
  returning 1)
select (select count(*) from before), (select count(*) from cleared), (select count(*) from renumbered),
       case when exists (select from pgeverything.cache_near n where n.one and n.until > clock_timestamp())
       then pg_notify('pgeverything', %(hint)s::text)::text end;

-- name: clear
-- Delete the entries of the next thousand keys; returns the last of them and how many had not expired.
select c.last, c.gone from pgeverything.cache_clear(%(after)s::text) c;

-- name: lease
-- Ask for the right to compute a value.
select l.state, l.value, l.data, l.error, l.generations
from pgeverything.cache_lease(
  %(key)s::text, %(lease)s::bigint, %(hold)s::double precision, %(stale)s::double precision, %(refresh)s::boolean,
  %(tags)s::text[]) l;

-- name: settle
-- End a lease, with a value, an error or neither.
select pgeverything.cache_settle(
  %(key)s::text, %(lease)s::bigint, %(value)s::text, %(data)s::bytea, %(ttl)s::double precision,
  %(stale)s::double precision, %(took)s::double precision, %(generations)s::bigint[], %(error)s::text,
  %(error_ttl)s::double precision);

-- name: sweep
-- Sweep on, past so many entries.
select s.deleted, s.finished from pgeverything.cache_sweep(%(entries)s::integer) s;

-- name: count
-- Add what a process has counted.
insert into pgeverything.cache_counts as c (slot, hits, misses, fills, waits)
values (%(slot)s::integer, %(hits)s::bigint, %(misses)s::bigint, %(fills)s::bigint, %(waits)s::bigint)
on conflict (slot) do update
set hits = c.hits + excluded.hits, misses = c.misses + excluded.misses, fills = c.fills + excluded.fills,
    waits = c.waits + excluded.waits;

-- name: stats
-- What the last sweep found, what the processes have counted, and the bounds.
select coalesce(s.entries, 0), coalesce(s.bytes, 0), pg_total_relation_size('pgeverything.cache'), n.hits, n.misses, n.fills,
       n.waits, b.max_entries, b.max_bytes,
       (select r.relpersistence = 'p' from pg_class r where r.oid = 'pgeverything.cache'::regclass)
from (
  select coalesce(sum(c.hits), 0)::bigint as hits, coalesce(sum(c.misses), 0)::bigint as misses,
         coalesce(sum(c.fills), 0)::bigint as fills, coalesce(sum(c.waits), 0)::bigint as waits
  from pgeverything.cache_counts c) n
left join pgeverything.cache_sweeps s on s.one
left join pgeverything.cache_settings b on b.one;

-- name: configure
-- Set the bounds that are given.
insert into pgeverything.cache_settings as s (one, max_entries, max_bytes)
values (true, %(max_entries)s::bigint, %(max_bytes)s::bigint)
on conflict (one) do update
set max_entries = case when 'max_entries' = any (%(given)s::text[]) then excluded.max_entries else s.max_entries end,
    max_bytes = case when 'max_bytes' = any (%(given)s::text[]) then excluded.max_bytes else s.max_bytes end;

-- name: log
-- Make the cache survive a crash, or not.
select pgeverything.cache_log(%(logged)s::boolean)::text;

-- name: listen
-- Say that this process wants to hear of invalidations for so many seconds.
insert into pgeverything.cache_near as n (one, until)
values (true, clock_timestamp() + make_interval(secs => %(seconds)s::double precision))
on conflict (one) do update set until = excluded.until where n.until < excluded.until;
