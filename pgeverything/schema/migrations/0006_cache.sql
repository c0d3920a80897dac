-- The cache: values with an expiry, tags, and leases that keep a slow computation from storing what is out of date.
--
-- The tables are unlogged: they are not in the write-ahead log, so a write of theirs waits for no disk, and a crash of the
-- server empties them. Nothing else depends on what is in them. `cache_settings`, which is somebody's choice, is logged.

create sequence pgeverything.cache_seq;    -- generations of tags; logged, so that none is given twice, not after a crash

-- No index but the key's: what every write changes may not be indexed, or no update could stay on its page (HOT).
create unlogged table pgeverything.cache (
  key         text collate "C" primary key,
  stored_at   timestamptz not null,
  expires_at  timestamptz not null,
  kept_until  timestamptz,
  lease       bigint,
  lease_until timestamptz,
  awaited     boolean not null default false,
  took        real,
  error       text,
  error_until timestamptz,
  generations bigint[],
  value       text,
  data        bytea
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05, toast.autovacuum_vacuum_scale_factor = 0.05);
comment on column pgeverything.cache.expires_at is '-infinity where there is no value: somebody computes one, or it was invalidated';
comment on column pgeverything.cache.kept_until is 'how long it may be given out stale; null is until it expires';
comment on column pgeverything.cache.lease is 'who computes the value now: the only one whose result will be stored';
comment on column pgeverything.cache.awaited is 'somebody sleeps until the lease is settled';
comment on column pgeverything.cache.took is 'seconds that computing the value took';
comment on column pgeverything.cache.generations is 'what the numbers of its tags were before it was computed; it is valid while they all still are';
comment on column pgeverything.cache.value is 'JSON; bytes are in data';

-- The number of a tag changes when the tag is invalidated. A tag without a row is like one with another number.
create unlogged table pgeverything.cache_tags (
  name       text collate "C" primary key,
  generation bigint not null unique,
  changed_at timestamptz not null
) with (fillfactor = 70);

create table pgeverything.cache_settings (
  one         boolean primary key check (one),
  max_entries bigint check (max_entries > 0),
  max_bytes   bigint check (max_bytes > 0)
);

-- How far the sweep is, and what it found the last time round.
create unlogged table pgeverything.cache_sweeps (
  one           boolean primary key check (one),
  next_block    bigint not null default 0,
  seen_entries  bigint not null default 0,
  seen_bytes    bigint not null default 0,
  entries       bigint not null default 0,
  bytes         bigint not null default 0,
  evict_before  timestamptz,
  tags_swept_at timestamptz not null default '-infinity'
) with (fillfactor = 10);

create unlogged table pgeverything.cache_counts (
  slot   integer primary key,
  hits   bigint not null,
  misses bigint not null,
  fills  bigint not null,
  waits  bigint not null
) with (fillfactor = 10);

-- Until when processes keep entries in their own memory and want to hear of invalidations.
create unlogged table pgeverything.cache_near (
  one   boolean primary key check (one),
  until timestamptz not null
) with (fillfactor = 10);


-- Whether all these are still the numbers of tags.
-- The cost is not measured but meant: a statement that has this condition is never planned to try it on every row.
create function pgeverything.cache_current(generations bigint[]) returns boolean
language plpgsql stable cost 10000
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off
as $$
begin
  return (
    select count(*)
    from unnest(cache_current.generations) g(generation)
    cross join lateral (select from pgeverything.cache_tags t where t.generation = g.generation limit 1) found)
    = cardinality(cache_current.generations);
end $$;


-- Returns the numbers of these tags, which are sorted; tags that are new get one.
create function pgeverything.cache_generations(tags text[]) returns bigint[]
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off
as $$
declare
  found_ bigint[];
begin
  for attempt in 1..3 loop
    found_ := array(
      select t.generation
      from unnest(cache_generations.tags) w(name)
      cross join lateral (select t.generation from pgeverything.cache_tags t where t.name = w.name limit 1) t);
    if cardinality(found_) = cardinality(cache_generations.tags) then
      return found_;
    end if;
    insert into pgeverything.cache_tags (name, generation, changed_at)
    select w.name, nextval('pgeverything.cache_seq'), clock_timestamp()
    from unnest(cache_generations.tags) w(name)
    where (select t.name from pgeverything.cache_tags t where t.name = w.name limit 1) is null  -- a join may read them all
    order by w.name collate "C"
    on conflict (name) do nothing;
  end loop;
  return array[0];  -- they are there, and not to be seen in this transaction: no tag has this number, so it is never valid
end $$;


-- Asks for the lease of a key: the right to compute its value and to store it.
--   hit     there is a value            held    somebody else computes it
--   taken   the lease is the caller's   stale   somebody else computes it, and this is the last one
--   failed  computing it failed         busy    a transaction that has not ended holds the key or one of its tags
-- The numbers of the tags are those before the computation: what is invalidated while it runs makes its result invalid.
-- A transaction that has invalidated the key holds its row, or the promise of one, until it ends, so no lease is given
-- between the invalidation and the commit; whoever gets it afterwards reads what was committed.
create function pgeverything.cache_lease(
  key text, lease bigint, hold double precision, stale double precision, refresh boolean, tags text[],
  out state text, out value text, out data bytea, out error text, out generations bigint[])
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off set lock_timeout = '20ms'
as $$
declare
  entry pgeverything.cache;
  at timestamptz;
  until timestamptz;
  current_ boolean;
begin
  state := 'busy';
  if cache_lease.tags is not null then
    generations := pgeverything.cache_generations(cache_lease.tags);
  end if;
  for attempt in 1..3 loop
    select c.* into entry from pgeverything.cache c where c.key = cache_lease.key for update;
    at := clock_timestamp();
    until := at + make_interval(secs => cache_lease.hold);
    exit when found;
    insert into pgeverything.cache (key, stored_at, expires_at, lease, lease_until)
    values (cache_lease.key, at, '-infinity', cache_lease.lease, until)
    on conflict on constraint cache_pkey do nothing;
    if found then
      state := 'taken';
      return;
    end if;
  end loop;
  if entry.key is null then
    return;
  end if;

  current_ := entry.generations is null or pgeverything.cache_current(entry.generations);
  if current_ and entry.expires_at > at and not cache_lease.refresh then
    state := 'hit';
  elsif entry.lease_until > at then
    state := case when current_ and entry.expires_at + make_interval(secs => cache_lease.stale) > at then 'stale' else 'held' end;
    if state = 'held' and not entry.awaited then
      update pgeverything.cache c set awaited = true where c.key = cache_lease.key;
    end if;
  elsif entry.error_until > at then
    state := 'failed';
    error := entry.error;
  else
    state := 'taken';
    update pgeverything.cache c
    set lease = cache_lease.lease, lease_until = until, awaited = false, error = null,
        error_until = null, expires_at = case when current_ then c.expires_at else '-infinity' end,
        generations = case when current_ then c.generations end,
        value = case when current_ then c.value end,
        data = case when current_ then c.data end
    where c.key = cache_lease.key;
  end if;
  if state in ('hit', 'stale') then
    value := entry.value;
    data := entry.data;
  end if;
exception
  when lock_not_available then
    state := 'busy';
end $$;


-- Ends a lease: with a value, with an error that is to be remembered, or with neither. Returns whether the lease was still
-- the caller's; null when the row is held by a transaction that has not ended. It never inserts: a row that is gone was
-- invalidated.
create function pgeverything.cache_settle(
  key text, lease bigint, value text, data bytea, ttl double precision, stale double precision, took double precision,
  generations bigint[], error text, error_ttl double precision)
returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off set lock_timeout = '100ms'
as $$
declare
  at timestamptz := clock_timestamp();
  expires timestamptz := coalesce(at + make_interval(secs => cache_settle.ttl), 'infinity');
  kept timestamptz := expires + make_interval(secs => cache_settle.stale);
  error_expires timestamptz := at + make_interval(secs => cache_settle.error_ttl);
  was_awaited boolean;
begin
  select c.awaited into was_awaited
  from pgeverything.cache c where c.key = cache_settle.key and c.lease = cache_settle.lease
  for update;
  if not found then
    return false;
  end if;
  if cache_settle.value is null and cache_settle.data is null then
    update pgeverything.cache c
    set lease = null, lease_until = null, awaited = false, error = cache_settle.error, error_until = error_expires
    where c.key = cache_settle.key;
  else
    update pgeverything.cache c
    set lease = null, lease_until = null, awaited = false, error = null, error_until = null, stored_at = at,
        expires_at = expires, kept_until = kept, took = cache_settle.took,
        generations = cache_settle.generations, value = cache_settle.value, data = cache_settle.data
    where c.key = cache_settle.key;
  end if;
  if was_awaited then
    perform pg_notify('pgeverything', E'\tcache:' || cache_settle.key);
  end if;
  return true;
exception
  when lock_not_available then
    return null;
end $$;


-- Goes on through the table from where the last sweep ended, until it has looked at so many entries: deletes what has
-- expired and, where there are bounds, the oldest of what is too much. Returns how many entries it deleted, and whether it
-- came to the end of the table.
--
-- What is too much is known from the last time round: how many entries and bytes there were, and how old those may be that
-- stay. So nothing is counted for the sake of a write, and no index on the age or the expiry is needed. An entry that alone
-- has more bytes than all may have goes whatever its age, and is not counted: the others would be evicted for it.
create function pgeverything.cache_sweep(entries integer, out deleted bigint, out finished boolean)
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off
as $$
declare
  at timestamptz := clock_timestamp();
  step constant integer := 16;  -- blocks
  sweep pgeverything.cache_sweeps;
  bounds pgeverything.cache_settings;
  pages bigint;
  looked bigint := 0;
  blocks bigint := 0;
  rows_ bigint;
  live bigint;
  size bigint;
  dead text[];
  removed bigint;
  excess double precision;
begin
  deleted := 0;
  finished := false;
  insert into pgeverything.cache_sweeps (one) values (true) on conflict (one) do nothing;
  select s.* into sweep from pgeverything.cache_sweeps s where s.one for update skip locked;
  if not found then
    return;  -- somebody else sweeps
  end if;
  select s.* into bounds from pgeverything.cache_settings s where s.one;
  pages := pg_relation_size('pgeverything.cache') / current_setting('block_size')::integer;

  while not finished and looked < cache_sweep.entries and blocks < 2 * cache_sweep.entries loop
    select count(*), count(*) filter (where not d.dead and c.expires_at > at),
           coalesce(sum(b.bytes) filter (where not d.dead and c.expires_at > at), 0),
           array_agg(c.key) filter (where d.dead)
    into rows_, live, size, dead
    from pgeverything.cache c
    cross join lateral (
      select octet_length(c.key) + coalesce(pg_column_size(c.value), 0) + coalesce(pg_column_size(c.data), 0) as bytes
      offset 0) b
    cross join lateral (
      select coalesce(
        (coalesce(c.kept_until, c.expires_at) < at
         or c.stored_at <= sweep.evict_before
         or b.bytes > bounds.max_bytes
         or (c.expires_at = 'infinity' and c.generations is not null and not pgeverything.cache_current(c.generations)))
        and coalesce(c.lease_until < at, true) and coalesce(c.error_until < at, true), false) as dead
      offset 0) d
    where c.ctid >= format('(%s,0)', sweep.next_block)::tid and c.ctid < format('(%s,0)', sweep.next_block + step)::tid;

    if dead is not null then
      -- Looked at again under its lock: somebody may have written it meanwhile. Who holds it now keeps it until next time.
      delete from pgeverything.cache g
      where g.key = any (array(
        select c.key from pgeverything.cache c
        where c.key = any (dead) and c.stored_at < at and coalesce(c.lease_until < at, true)
          and (coalesce(c.kept_until, c.expires_at) < at or c.stored_at <= sweep.evict_before
               or octet_length(c.key) + coalesce(pg_column_size(c.value), 0) + coalesce(pg_column_size(c.data), 0)
                  > bounds.max_bytes
               or c.generations is not null)
        for update skip locked));
      get diagnostics removed = row_count;
      deleted := deleted + removed;
    end if;
    looked := looked + rows_;
    blocks := blocks + step;
    sweep.next_block := sweep.next_block + step;
    sweep.seen_entries := sweep.seen_entries + live;
    sweep.seen_bytes := sweep.seen_bytes + size;
    -- Where the rows are on another node, as Citus has it, the table has no pages here; its end is where nothing is found.
    finished := sweep.next_block >= pages and (pages > 0 or rows_ = 0);
  end loop;

  if finished then
    sweep.entries := sweep.seen_entries;
    sweep.bytes := sweep.seen_bytes;
    sweep.next_block := 0;
    sweep.seen_entries := 0;
    sweep.seen_bytes := 0;
    sweep.evict_before := null;
    excess := greatest(
      1 - bounds.max_entries / nullif(sweep.entries, 0)::double precision,
      1 - bounds.max_bytes / nullif(sweep.bytes, 0)::double precision);
    if excess > 0 then
      sweep.evict_before := (
        select percentile_disc(excess) within group (order by c.stored_at)
        from pgeverything.cache c tablesample system (least(100, 100 * 2000.0 / sweep.entries))
        where c.expires_at > at);
    end if;
    if sweep.tags_swept_at < at - interval '1 hour' then
      sweep.tags_swept_at := at;
      -- An entry of a tag that is forgotten counts as missing: always right, and once a month a little dear.
      delete from pgeverything.cache_tags g
      where g.name = any (array(
        select t.name from pgeverything.cache_tags t where t.changed_at < at - interval '30 days' limit 10000
        for update skip locked));
    end if;
  end if;
  update pgeverything.cache_sweeps s
  set next_block = sweep.next_block, seen_entries = sweep.seen_entries, seen_bytes = sweep.seen_bytes,
      entries = sweep.entries, bytes = sweep.bytes, evict_before = sweep.evict_before, tags_swept_at = sweep.tags_swept_at
  where s.one;
end $$;


-- Deletes the entries of the next thousand keys. Returns the last of the keys, and how many entries had not expired.
create function pgeverything.cache_clear(after text, out last text, out gone bigint)
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set jit = off
as $$
declare
  batch text[] := array(
    select c.key from pgeverything.cache c where c.key > cache_clear.after order by c.key limit 1000);
  at timestamptz := clock_timestamp();
begin
  last := batch[cardinality(batch)];
  with cleared as (
    delete from pgeverything.cache c where c.key = any (batch) returning c.expires_at)
  select count(*) filter (where d.expires_at > at) into gone from cleared d;
end $$;


-- Logged entries survive a crash and are on standbys; writing them waits for the disk. Copies the table; its owner may.
create function pgeverything.cache_log(logged boolean) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  now_ boolean := (select c.relpersistence = 'p' from pg_class c where c.oid = 'pgeverything.cache'::regclass);
begin
  if cache_log.logged and not now_ then
    alter table pgeverything.cache set logged;
    alter table pgeverything.cache_tags set logged;
  elsif now_ and not cache_log.logged then
    alter table pgeverything.cache set unlogged;
    alter table pgeverything.cache_tags set unlogged;
  end if;
end $$;
