-- Locks: leases on names, their fencing tokens, and the line of those who wait for one.
--
-- A name has a row for each lease that it had at once: one for a lock, up to n for a semaphore, one for each reader that
-- shares. Rows outlive their leases. Three strengths of row lock are used:
--   FOR KEY SHARE      a guard: this lease must not pass to somebody else before my transaction ends
--   FOR NO KEY UPDATE  of slot 1, by whoever changes anything about the name; with guards it does not interfere, so an open
--                      guarded transaction holds up no renewal and no release
--   FOR UPDATE         of a free slot, by who takes it over: it waits for guards, as nothing else does. Because it goes before,
--                      the update that follows counts as one of the key, and a guard that saw the row before does not pass

create table pgeverything.locks (
  name        text collate "C" not null,
  slot        integer not null,
  token       bigint not null,
  holder      bigint,
  shared      boolean not null,
  slots       integer not null,
  owner       text not null,
  note        text,
  acquired_at timestamptz not null,
  expires_at  timestamptz not null,
  least_until timestamptz,
  many        boolean not null default false,
  line        boolean not null default false,
  primary key (name, slot)
) with (fillfactor = 50);
comment on column pgeverything.locks.holder is 'the number of the call that got it; null since it was released or broken';
comment on column pgeverything.locks.slots is 'how many leases its holder bears, its own included; the least of all holders counts';
comment on column pgeverything.locks.least_until is 'a release does not free it before this time';
comment on column pgeverything.locks.many is 'of slot 1: there may be rows of other slots';
comment on column pgeverything.locks.line is 'of slot 1: somebody may stand in line';

-- Who waits. Nothing here has to survive a crash: who waits looks again, and stands in line again with its old ticket.
create unlogged table pgeverything.lock_waiters (
  name    text collate "C" not null,
  ticket  bigint not null,
  waiter  bigint not null,
  channel text,
  shared  boolean not null,
  slots   integer not null,
  since   timestamptz not null,
  seen_at timestamptz not null,
  primary key (name, ticket)
) with (fillfactor = 70);
comment on column pgeverything.lock_waiters.waiter is 'the number of its call';
comment on column pgeverything.lock_waiters.channel is 'where its process listens; null: it only looks by itself';
create sequence pgeverything.lock_ticket_seq;

alter table pgeverything.locks set (
  autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);
alter table pgeverything.lock_waiters set (
  autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);

-- `force_generic_plan` in the functions below: the planner would rather plan anew with the values at hand, which takes longer
-- than to run the plan.

-- Wakes the first in line, if it listens. A channel of its process alone: each notification wakes all who listen to its
-- channel, which with a hundred waiters would cost more than the locked sections.
create function pgeverything.lock_wake(name text, at timestamptz) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off set plan_cache_mode = force_generic_plan
as $$
declare
  first record;
begin
  select w.waiter, w.channel into first from pgeverything.lock_waiters w
  where w.name = lock_wake.name and w.seen_at > lock_wake.at - interval '3 seconds'
  order by w.ticket
  limit 1;
  if first.channel is not null then
    perform pg_notify(first.channel, E'\tlocks:' || first.waiter);
  end if;
end $$;

-- Gets a lease, or says why not. Always a transaction of its own: every other call for that name waits for what it locks.
-- `line` is 'none' for a try, 'join' to stand in line, 'leave' for the last look of one who stands there; `ticket` is the
-- place there, once it is known.
--
-- A lease is to be had when
--   * it goes with those that are held: shared with shared, else fewer than the `slots` of each holder and its own; and
--   * it is its turn: those who came before have theirs, or had 300 ms in which it was to be had and did not take it; or it
--     has just come, and they have waited for less than `patience`: a process that runs is faster than one to be woken.
-- The state is 'held'; 'busy', to be asked again in `retry_in` seconds; or 'isolation'.
create function pgeverything.lock_acquire(
  name text, holder bigint, ttl double precision, slots integer, shared boolean, owner text, note text,
  min_hold double precision, patience double precision, line text, channel text, inout ticket bigint,
  out state text, out slot integer, out token bigint, out expires_at timestamptz, out retry_in double precision,
  out by_owner text, out by_note text, out by_left double precision)
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off set plan_cache_mode = force_generic_plan
as $$
declare
  turn   constant interval := '300 milliseconds';
  silent constant interval := '3 seconds';
  alone  constant boolean := slots = 1 and not shared;
  at     timestamptz;
  first  pgeverything.locks;  -- the row of slot 1; while it is locked, nobody else changes anything about the name
  free   integer[];           -- slots that nobody has, and on which no open transaction is guarded
  simple boolean := false;    -- it is free, has but one slot, and nobody else wants it: as most of the time
  held   record;
  queue  record;
  room   integer;             -- how many more leases like this one go with those that are held
  due    timestamptz := '-infinity';
  last   bigint;              -- the highest token so far
  kept_until timestamptz;     -- a release does not free it before
begin
  if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
    state := 'isolation';  -- what is read after a wait for a lock has to be what was waited for
    return;
  end if;
  if line = 'join' and ticket is null then
    at := clock_timestamp();
    if exists (
        select from pgeverything.locks l
        where l.name = lock_acquire.name and l.slot = 1 and l.line
          and l.expires_at between at - interval '2 milliseconds' and at
          and exists (select from pgeverything.lock_waiters w
                      where w.name = l.name and w.since <= at - make_interval(secs => patience))) then
      state := 'busy';  -- the first in line has just been woken: whatever we lock now, it would have to wait for
      retry_in := 0.002;
      return;
    end if;
  end if;
  select l.* into first from pgeverything.locks l
  where l.name = lock_acquire.name and l.slot = 1 and l.expires_at <= clock_timestamp()
  for update skip locked;
  if found then
    free := '{1}';
    simple := alone and not first.many and not first.line;
  elsif alone then
    -- Who has it is all that most calls need to know.
    select l.* into first from pgeverything.locks l where l.name = lock_acquire.name and l.slot = 1;
    at := clock_timestamp();
    if first.expires_at > at and first.holder is distinct from lock_acquire.holder and (
        line = 'none'
        or line = 'join' and exists (
          select from pgeverything.lock_waiters w
          where w.name = lock_acquire.name and w.ticket = lock_acquire.ticket and w.seen_at > at - silent / 3
            and w.channel is not distinct from lock_acquire.channel)) then
      state := 'busy';
      by_owner := first.owner;
      by_note := first.note;
      retry_in := extract(epoch from first.expires_at - at);
      by_left := retry_in;
      return;
    end if;
  end if;

  while free is null loop
    select l.* into first from pgeverything.locks l
    where l.name = lock_acquire.name and l.slot = 1 for no key update skip locked;
    if not found then
      if alone and line = 'none' and first.name is not null then
        state := 'busy';  -- somebody is just getting it, or giving it back: a try does not wait for that
        return;
      end if;
      perform set_config('lock_timeout', case when line = 'join' then '200ms' else '50ms' end, true);
      select l.* into first from pgeverything.locks l
      where l.name = lock_acquire.name and l.slot = 1 for no key update;
    end if;
    if not found then
      insert into pgeverything.locks as l (name, slot, token, shared, slots, owner, acquired_at, expires_at, many)
      values (name, 1, 0, false, 1, '', '-infinity', '-infinity', exists (
        select from pgeverything.locks o where o.name = lock_acquire.name))
      on conflict on constraint locks_pkey do nothing
      returning l.* into first;
    end if;
    if found then
      free := '{}';
    end if;
  end loop;

  at := clock_timestamp();
  if current_setting('synchronous_commit') = 'off' then
    perform set_config('synchronous_commit', 'local', true);  -- or a crash of the server would give it to somebody else
  end if;
  last := first.token;
  if not simple then
    if first.many or first.expires_at <= at and free = '{}' then
      -- Takes the locks that show which slots are free.
      free := array(
        select l.slot from pgeverything.locks l
        where l.name = lock_acquire.name and l.expires_at <= at
        order by l.slot
        for update skip locked);
    end if;
    if first.many then
      select count(*) filter (where h.held)::integer as leases,
             min(h.slots) filter (where h.held) as slots,
             coalesce(bool_or(h.shared) filter (where h.held), false) as shared,
             coalesce(bool_or(not h.shared) filter (where h.held), false) as exclusive,
             min(h.expires_at) filter (where h.held) as until,
             max(h.expires_at) filter (where not h.held) as free_since,
             max(h.token) as token,
             max(h.slot) as slot,
             min(h.slot) filter (where h.held and h.holder = lock_acquire.holder) as ours
      into held
      from (select l.*, l.slot <> all (free) as held from pgeverything.locks l where l.name = lock_acquire.name) h;
    elsif free = '{1}' then
      select 0 as leases, null::integer as slots, false as shared, false as exclusive, null::timestamptz as until,
             first.expires_at as free_since, first.token as token, 1 as slot, null::integer as ours
      into held;
    else
      select 1 as leases, first.slots as slots, first.shared as shared, not first.shared as exclusive,
             first.expires_at as until, null::timestamptz as free_since, first.token as token, 1 as slot,
             case when first.holder = lock_acquire.holder then 1 end as ours
      into held;
    end if;
    if held.ours is not null then
      -- The answer to the call that got it was lost. It lasts from now on: that is what the caller counts from.
      state := 'held';
      update pgeverything.locks l set expires_at = at + make_interval(secs => ttl)
      where l.name = lock_acquire.name and l.slot = held.ours
      returning l.slot, l.token, l.expires_at into slot, token, expires_at;
      return;
    end if;
    room := case when shared then (not held.exclusive)::integer
                 when held.shared then 0
                 else greatest(least(slots, held.slots) - held.leases, 0) end;
    if first.line then
      -- Who stands before us: `next` go with those that are held now, `stuck` need more of them to be gone.
      select count(*) filter (where w.fits) as next, count(*) filter (where not w.fits) as stuck, min(w.since) as since
      into queue
      from (select q.since,
                   case when q.shared then not held.exclusive
                        else not held.shared and held.leases < least(q.slots, held.slots) end as fits
            from pgeverything.lock_waiters q
            where q.name = lock_acquire.name and q.ticket < coalesce(lock_acquire.ticket, 9223372036854775807)
              and q.seen_at > at - silent and not (q.shared and lock_acquire.shared)) w;
      due := case when ticket is null and queue.since > at - make_interval(secs => patience) then '-infinity'
                  when queue.stuck > 0 then 'infinity'
                  when queue.next < room then '-infinity'
                  else held.free_since + turn * (queue.next - room + 1) end;
    end if;

    if room = 0 or at < due then
      perform set_config('synchronous_commit', 'off', true);
      if line = 'join' then
        insert into pgeverything.lock_waiters as w (name, ticket, waiter, channel, shared, slots, since, seen_at)
        values (name, coalesce(ticket, nextval('pgeverything.lock_ticket_seq')), holder, channel, shared, slots, at, at)
        on conflict on constraint lock_waiters_pkey do update set channel = excluded.channel, seen_at = excluded.seen_at
        returning w.ticket into ticket;
        if not first.line then
          update pgeverything.locks l set line = true where l.name = lock_acquire.name and l.slot = 1;
        end if;
      elsif ticket is not null then
        delete from pgeverything.lock_waiters w where w.name = lock_acquire.name and w.ticket = lock_acquire.ticket;
      end if;
      state := 'busy';
      retry_in := case when room = 0 then extract(epoch from held.until - at)
                       when due < 'infinity' then extract(epoch from due - at) end;
      select l.owner, l.note, extract(epoch from l.expires_at - at) into by_owner, by_note, by_left
      from pgeverything.locks l
      where l.name = lock_acquire.name and l.expires_at > at
      order by l.expires_at
      limit 1;
      return;
    end if;
    last := held.token;
  end if;

  state := 'held';
  -- A token goes up by one, and at least to the microseconds since the epoch: so none comes twice when its row was swept
  -- long ago, or when a failover or a restore has lost the commit that gave it.
  token := greatest(last + 1, (extract(epoch from at) * 1000000)::bigint);
  expires_at := at + make_interval(secs => ttl);
  kept_until := at + make_interval(secs => min_hold);
  if first.line then
    -- We leave the line, and so does who did not take its turn: if it lives, it comes back to its place by its ticket.
    delete from pgeverything.lock_waiters w
    where w.name = lock_acquire.name
      and (w.ticket = lock_acquire.ticket or w.seen_at <= at - silent
           or due > '-infinity' and w.ticket < coalesce(lock_acquire.ticket, 9223372036854775807)
              and not (w.shared and lock_acquire.shared));
    first.line := exists (select from pgeverything.lock_waiters w where w.name = lock_acquire.name);
  end if;
  slot := free[1];
  if slot is not null then
    update pgeverything.locks l
    set token = lock_acquire.token, holder = lock_acquire.holder, shared = lock_acquire.shared,
        slots = lock_acquire.slots, owner = lock_acquire.owner, note = lock_acquire.note, acquired_at = at,
        expires_at = lock_acquire.expires_at, least_until = kept_until, line = first.line
    where l.name = lock_acquire.name and l.slot = lock_acquire.slot;
  else
    slot := held.slot + 1;
    insert into pgeverything.locks (name, slot, token, holder, shared, slots, owner, note, acquired_at, expires_at, least_until)
    values (name, slot, token, holder, shared, slots, owner, note, at, expires_at, kept_until);
    update pgeverything.locks l set many = true where l.name = lock_acquire.name and l.slot = 1 and not l.many;
  end if;
  if first.line and (shared or room > 1) then
    perform pgeverything.lock_wake(name, at);  -- the next one may go with us
  end if;
end $$;

-- Gives a lease back; false when it was lost before. Needs not be durable: what a crash forgets runs out by itself.
create function pgeverything.lock_release(name text, slot integer, token bigint) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off set plan_cache_mode = force_generic_plan
as $$
declare
  at     timestamptz;
  queued boolean := false;  -- whether somebody may stand in line
begin
  perform set_config('synchronous_commit', 'off', true);
  -- First the lock of slot 1, so that who joins the line meanwhile either finds the lease gone or is found here.
  if slot <> 1 then
    select l.line into queued from pgeverything.locks l where l.name = lock_release.name and l.slot = 1 for no key update;
  end if;
  at := clock_timestamp();
  update pgeverything.locks l
  set holder = null, expires_at = greatest(at, l.least_until)
  where l.name = lock_release.name and l.slot = lock_release.slot and l.token = lock_release.token
    and l.holder is not null and l.expires_at > at
  returning l.line or queued into queued;
  if not found then  -- lost; or only the answer to the first call was
    return exists (
      select from pgeverything.locks l
      where l.name = lock_release.name and l.slot = lock_release.slot and l.token = lock_release.token and l.holder is null);
  end if;
  if queued then
    perform pgeverything.lock_wake(name, at);
  end if;
  return true;
end $$;

-- Whether a lease is ours; if it is, nobody takes it over before this transaction ends, also when it runs out meanwhile.
create function pgeverything.lock_guard(name text, slot integer, token bigint, out ours boolean, out isolation text)
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off set plan_cache_mode = force_generic_plan
as $$
begin
  isolation := current_setting('transaction_isolation');
  -- A transaction with one snapshot sees no renewals. Whoever took the lease over since then makes the lock fail, and its
  -- holder knows when it was renewed last.
  perform from pgeverything.locks l
  where l.name = lock_guard.name and l.slot = lock_guard.slot and l.token = lock_guard.token
    and l.holder is not null
    and (l.expires_at > clock_timestamp() or isolation in ('repeatable read', 'serializable'))
  for key share;
  ours := found;
end $$;

-- Renews leases, each by its own length: when it ends now, or null; and whether it is still ours. What somebody has locked is
-- left for the next time: one name that is stuck must not cost the others their leases.
create function pgeverything.lock_renew(names text[], slots integer[], tokens bigint[], ttls double precision[])
returns table (name text, token bigint, expires_at timestamptz, ours boolean)
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off set plan_cache_mode = force_generic_plan
as $$
begin
  if current_setting('synchronous_commit') = 'off' then
    perform set_config('synchronous_commit', 'local', true);  -- what its holder relies on, a crash must not take back
  end if;
  for i in 1 .. cardinality(names) loop
    name := names[i];
    token := tokens[i];  -- which a slot does not tell: it may be another lease's already
    expires_at := null;
    perform from pgeverything.locks l
    where l.name = names[i] and l.slot = lock_renew.slots[i] and l.token = tokens[i] and l.holder is not null
      and l.expires_at > clock_timestamp()
    for no key update skip locked;
    if found then
      expires_at := clock_timestamp() + make_interval(secs => ttls[i]);
      update pgeverything.locks l set expires_at = lock_renew.expires_at where l.name = names[i] and l.slot = lock_renew.slots[i];
    end if;
    ours := expires_at is not null or exists (
      select from pgeverything.locks l
      where l.name = names[i] and l.slot = lock_renew.slots[i] and l.token = tokens[i] and l.holder is not null
        and l.expires_at > clock_timestamp());
    return next;
  end loop;
end $$;

-- Undoes a call of lock_acquire whose answer nobody waits for any more.
create function pgeverything.lock_withdraw(name text, holder bigint) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off set plan_cache_mode = force_generic_plan
as $$
declare
  at timestamptz;
begin
  perform set_config('synchronous_commit', 'off', true);
  perform from pgeverything.locks l where l.name = lock_withdraw.name and l.slot = 1 for no key update;
  at := clock_timestamp();
  delete from pgeverything.lock_waiters w where w.name = lock_withdraw.name and w.waiter = lock_withdraw.holder;
  update pgeverything.locks l set holder = null, expires_at = at
  where l.name = lock_withdraw.name and l.holder = lock_withdraw.holder and l.expires_at > at;
  perform pgeverything.lock_wake(name, at);
end $$;

-- Takes the leases of a name from their holders; returns how many there were. Their tokens are worth nothing any more: guards
-- fail from now on, and who is guarded already may still commit before anybody else gets the lock.
create function pgeverything.lock_break(name text) returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off set plan_cache_mode = force_generic_plan
as $$
declare
  at     timestamptz;
  raised bigint;
  broken integer;
begin
  perform from pgeverything.locks l where l.name = lock_break.name and l.slot = 1 for no key update;
  at := clock_timestamp();
  select greatest(max(l.token) + 1, (extract(epoch from at) * 1000000)::bigint) into raised
  from pgeverything.locks l where l.name = lock_break.name;
  update pgeverything.locks l set token = raised, holder = null, expires_at = at, least_until = null
  where l.name = lock_break.name and l.expires_at > at;
  get diagnostics broken = row_count;
  if broken > 0 then
    perform pgeverything.lock_wake(name, at);
  end if;
  return broken;
end $$;

-- Deletes the rows of leases that ended longer than `keep` ago, in one stretch of the table of at most `pages`, another one
-- each minute; returns how many. A name that comes back begins with a token above all that it ever had, unless the server's
-- clock is set back by more than `keep`.
create function pgeverything.lock_sweep(keep interval, pages integer) returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off
as $$
declare
  old     timestamptz := clock_timestamp() - keep;
  size    bigint := pg_relation_size('pgeverything.locks') / current_setting('block_size')::integer;
  stretch bigint := (extract(epoch from clock_timestamp())::bigint / 60) % (size / pages + 1) * pages;
  swept   integer;
begin
  perform set_config('synchronous_commit', 'off', true);
  delete from pgeverything.lock_waiters w where w.seen_at < clock_timestamp() - interval '1 minute';
  delete from pgeverything.locks d
  where d.ctid = any (array(
    select l.ctid from pgeverything.locks l
    where l.ctid >= format('(%s,0)', stretch)::tid and l.ctid < format('(%s,0)', stretch + pages)::tid
      and l.expires_at < old and l.token < (extract(epoch from old) * 1000000)::bigint
      and (not l.many or not exists (select from pgeverything.locks o where o.name = l.name and o.slot > 1))
    for update skip locked));
  get diagnostics swept = row_count;
  return swept;
end $$;
