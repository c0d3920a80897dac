-- name: acquire
-- Get a lease, or learn why not: see lock_acquire in the migration.
select a.state, a.slot, a.token, a.expires_at, a.ticket, a.retry_in, a.by_owner, a.by_note, a.by_left
from pgeverything.lock_acquire(
  %(name)s::text, %(holder)s::bigint, %(ttl)s::double precision, %(slots)s::integer, %(shared)s::boolean, %(owner)s::text,
  %(note)s::text, %(min_hold)s::double precision, %(patience)s::double precision, %(line)s::text,
  %(channel)s::text, %(ticket)s::bigint) a;

-- name: release
-- Give a lease back; false when it was lost before.
select pgeverything.lock_release(%(name)s::text, %(slot)s::integer, %(token)s::bigint);

-- name: withdraw
-- Undo an acquire whose answer nobody waits for any more.
select pgeverything.lock_withdraw(%(name)s::text, %(holder)s::bigint)::text;

-- name: renew
-- Renew leases: when each ends now, or null; and whether it is still ours.
select r.name, r.token, r.expires_at, r.ours
from pgeverything.lock_renew(
  %(names)s::text[], %(slots)s::integer[], %(tokens)s::bigint[], %(ttls)s::double precision[]) r;

-- name: guard
-- Whether a lease is ours, which stays so until this transaction ends; and the transaction's isolation.
-- runs: inside
select g.ours, g.isolation from pgeverything.lock_guard(%(name)s::text, %(slot)s::integer, %(token)s::bigint) g;

-- name: break
-- Take the leases of a name from their holders; how many there were.
select pgeverything.lock_break(%(name)s::text);

-- name: list
-- Leases that are held, by name, and how many wait for each name.
-- plan: fresh
select l.name, l.token, l.owner, l.note, l.shared, l.slots, l.acquired_at, l.expires_at, l.holder is null,
       (select count(*) from pgeverything.lock_waiters w
        where w.name = l.name and w.seen_at > clock_timestamp() - interval '3 seconds')
from pgeverything.locks l
where l.expires_at > (select clock_timestamp()) and starts_with(l.name, %(prefix)s::text)
order by l.name, l.token
limit %(limit)s::integer;

-- name: get
-- Leases that are held of one name, and how many wait for it.
-- plan: fresh
select l.name, l.token, l.owner, l.note, l.shared, l.slots, l.acquired_at, l.expires_at, l.holder is null,
       (select count(*) from pgeverything.lock_waiters w
        where w.name = l.name and w.seen_at > clock_timestamp() - interval '3 seconds')
from pgeverything.locks l
where l.name = %(name)s::text and l.expires_at > (select clock_timestamp())
order by l.token;

-- name: sweep
-- Delete the rows of leases that ended long ago, in one stretch of the table.
select pgeverything.lock_sweep(make_interval(secs => %(keep)s::double precision), %(pages)s::integer);
