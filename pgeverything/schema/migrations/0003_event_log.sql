-- The event log.
--
-- One append-only table, ordered by a position that a sequence gives out. Positions are given out in one order and
-- committed in another, so who reads "everything above the last one I saw" loses what commits late. The publisher fence
-- closes that: see `fence` and `horizon`.

create sequence pgeverything.event_seq cache 1;  -- positions. CACHE must stay 1: the fence relies on increasing order
create sequence pgeverything.topic_seq;

-- A topic may have several rows: who cannot see one adds one, because waiting for another transaction's uncommitted row
-- would make two publishers wait for each other. An event has the id of any of them.
create table pgeverything.topics (
  id   integer primary key,
  name text collate "C" not null
       check (octet_length(name) <= 200 and name ~ '^[^.*>\s]+(\.[^.*>\s]+)*$')
);
create index topics_name on pgeverything.topics (name, id);

create table pgeverything.events (
  position       bigint primary key,
  transaction_id bigint not null,
  recorded_at    timestamptz not null,
  version        bigint,
  topic_id       integer not null,
  type           text not null,
  key            text collate "C",
  data           jsonb not null,
  headers        jsonb
) partition by range (position);
comment on column pgeverything.events.version is 'counts the events of one topic and key from 1; null without a key';
create index events_topic on pgeverything.events (topic_id, position);
create index events_transaction on pgeverything.events using brin (transaction_id);  -- they come in order, near enough: an insert pays next to nothing
create index events_key on pgeverything.events (topic_id, key, position) where key is not null;

-- How many events each topic and key has: its version. The row is locked until the publisher commits, so that the order
-- of one key's events is the order in which they were committed.
create table pgeverything.streams (
  topic   text collate "C" not null,
  key     text collate "C" not null,
  version bigint not null,
  primary key (topic, key)
) with (fillfactor = 80);

-- What was appended under an idempotency key.
create table pgeverything.event_receipts (
  topic           text collate "C" not null,
  idempotency_key text collate "C" not null,
  recorded_at     timestamptz not null,
  positions       bigint[] not null,
  primary key (topic, idempotency_key)
) with (fillfactor = 80);
create index event_receipts_age on pgeverything.event_receipts (recorded_at);

-- Processes that wait for events with nothing to do, until when they want to be told. Publishers read it and never write
-- it: a notifying commit takes a lock of the whole cluster, and under load nobody sleeps.
create table pgeverything.event_sleepers (
  id         bigint primary key,
  expires_at timestamptz not null
) with (fillfactor = 50);

-- One row. `dropped` is the highest position that retention has dropped.
create table pgeverything.event_retention (
  single  boolean primary key default true check (single),
  keep    interval,
  dropped bigint not null default 0
);
insert into pgeverything.event_retention default values;

-- What each complete partition holds of each topic, so that topics are counted without reading the whole log.
create table pgeverything.event_totals (
  first    bigint not null,
  topic_id integer not null,
  events   bigint not null,
  bytes    bigint not null,
  last     bigint not null,
  primary key (first, topic_id)
);
comment on column pgeverything.event_totals.first is 'the first position of the partition; beside the topics it has one row of topic 0, which holds nothing';

create table pgeverything.events_default partition of pgeverything.events default;

alter table pgeverything.streams        set (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 5000);
alter table pgeverything.event_sleepers set (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 200, autovacuum_vacuum_cost_delay = 0);


-- The publisher fence --------------------------------------------------------------------------------------------

-- Raises the fence of this transaction, once: reads the sequence, takes a shared advisory lock that carries that number
-- until the transaction ends, and only then may a position be taken. Keep this order. A reader that does not see the lock
-- yet has read the sequence before we take our position, so ours is above what it reads to.
--
-- The lock is of the one-key kind: 24 bits of the sequence's oid, so that each schema has a fence of its own, and 40 bits
-- of position. That it was taken is noted in a setting, with the transaction's number: a rollback to a savepoint undoes
-- both.
create function pgeverything.fence() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  note constant text := 'pgeverything_fence.log_' || 'pgeverything.event_seq'::regclass::oid;
begin
  if current_setting(note, true) is distinct from pg_current_xact_id()::text then
    perform pg_advisory_xact_lock_shared(
      ('pgeverything.event_seq'::regclass::oid::bigint << 40)
      | (coalesce(pg_sequence_last_value('pgeverything.event_seq'), 0) & 1099511627775));
    perform set_config(note, pg_current_xact_id()::text, true);
  end if;
end $$;

-- The highest position up to which a reader may read and forget: nothing will appear at or below it that is not there.
-- At least `after`, which the caller says it has read already.
--
-- In this order, in statements of their own: the sequence (S), then the lowest fence (L), then, with a snapshot taken
-- after those, the last event up to the lower of the two. A publisher whose fence is gone has left the list of running
-- transactions before it dropped its locks, so that snapshot sees its events.
-- It is the last event and not S itself because a position whose publisher rolled back may not have reached the disk: a
-- crash would give it out again.
-- `own` leaves out this transaction's own fence.
create function pgeverything.horizon(after bigint default 0, own boolean default false) returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off
as $$
declare
  safe   bigint;
  fenced bigint;
  last   bigint;
begin
  if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
    raise exception 'the event log is read in READ COMMITTED, not in %: an older snapshot misses events below the '
      'positions it passes', upper(current_setting('transaction_isolation')) using errcode = 'PGE11';
  elsif pg_is_in_recovery() then
    raise exception 'the event log is read on the primary: a standby does not know its open publishers'
      using errcode = 'PGE11';
  end if;
  if not has_sequence_privilege('pgeverything.event_seq'::regclass::oid, 'usage, select') then
    -- From PostgreSQL 17 on the value is null then, and would look as if nothing were ever published.
    raise exception 'permission denied for sequence event_seq of schema %', 'pgeverything' using errcode = '42501';
  end if;
  safe := pg_sequence_last_value('pgeverything.event_seq');
  if safe is null or safe <= after then
    return after;
  end if;
  select min(((l.classid::bigint & 255) << 32) | l.objid::bigint) into fenced
  from pg_locks l
  where l.locktype = 'advisory' and l.objsubid = 1 and l.mode = 'ShareLock'
    and l.database = (select d.oid from pg_database d where d.datname = current_database())
    and l.classid::bigint >> 8 = 'pgeverything.event_seq'::regclass::oid::bigint & 16777215
    and not (own and l.pid is not distinct from pg_backend_pid());  -- a prepared transaction has none
  safe := least(safe, fenced);
  select max(e.position) into last from pgeverything.events e where e.position > after and e.position <= safe;
  return greatest(after, last);
end $$;


-- Where a time is in the log: all events up to `low` were recorded by then and all above `high` later. Times follow
-- positions but for publishers that took a position at the same moment, so this searches for the place as in a sorted list
-- and then looks at the 10,000 positions on either side of it, and at as many more for as long as it finds something there:
-- large batches at the same moment are mixed over many times that.
create function pgeverything.position_at(at timestamptz, out low bigint, out high bigint)
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off
as $$
declare
  place  bigint := (select r.dropped from pgeverything.event_retention r);
  above  bigint := coalesce(pg_sequence_last_value('pgeverything.event_seq'), 0);
  middle bigint;
  event  record;
begin
  while place < above loop
    middle := place + (above - place) / 2;
    select e.position, e.recorded_at into event from pgeverything.events e
    where e.position > middle and e.position <= above order by e.position limit 1;
    if event.recorded_at <= at then
      place := event.position;
    else
      above := middle;
    end if;
  end loop;
  -- `place` is an event, or where the log begins; above it may be a gap.
  select coalesce(min(e.position) - 1, place) into above from pgeverything.events e where e.position > place;
  low := above;
  middle := place;
  loop
    select min(e.position) - 1 into middle from pgeverything.events e
    where e.position > middle - 10000 and e.position <= middle and e.recorded_at > at;
    exit when middle is null;
    low := middle;
  end loop;
  high := place;
  middle := above;
  loop
    select max(e.position) into middle from pgeverything.events e
    where e.position > middle and e.position <= middle + 10000 and e.recorded_at <= at;
    exit when middle is null;
    high := middle;
  end loop;
end $$;


-- The first `most` positions of each of the topics within a range, of one key or of all. By the indexes of topics
-- and keys, whatever the planner thinks: row comparisons, because it must not walk all positions to find a rare topic.
create function pgeverything.find_events(topics integer[], key text, after bigint, upto bigint, most integer)
returns table (topic_id integer, "position" bigint)
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set enable_incremental_sort = off set jit = off
as $$
#variable_conflict use_column
begin
  if key is null then
    return query
    select t.id, e.position
    from unnest(find_events.topics) t (id) cross join lateral (
      select e.position from pgeverything.events e
      where e.position > find_events.after and e.position <= find_events.upto
        and (e.topic_id, e.position) > (t.id, find_events.after) and (e.topic_id, e.position) <= (t.id, find_events.upto)
      order by e.topic_id, e.position limit find_events.most) e;
  else
    return query
    select t.id, e.position
    from unnest(find_events.topics) t (id) cross join lateral (
      select e.position from pgeverything.events e
      where e.position > find_events.after and e.position <= find_events.upto
        and e.key is not null
        and (e.topic_id, e.key, e.position) > (t.id, find_events.key, find_events.after)
        and (e.topic_id, e.key, e.position) <= (t.id, find_events.key, find_events.upto)
      order by e.topic_id, e.key, e.position limit find_events.most) e;
  end if;
end $$;


-- Append ---------------------------------------------------------------------------------------------------------

-- The id of a topic, which is added when this transaction sees none.
create function pgeverything.topic_id(name text) returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off
as $$
declare
  id integer;
begin
  select t.id into id from pgeverything.topics t where t.name = topic_id.name order by t.id limit 1;
  if id is null then
    id := nextval('pgeverything.topic_seq');
    insert into pgeverything.topics (id, name) values (id, topic_id.name);
  end if;
  return id;
end $$;

-- Appends one event. `state` is 'appended'; 'duplicate', with the position of the first event, when the idempotency key
-- was used; or 'conflict', with the version there is, when that is not `expected_version`, and then nothing is changed.
create function pgeverything.append(
  topic text, data jsonb, type text default '', key text default null, expected_version bigint default null,
  headers jsonb default null, idempotency_key text default null,
  out "position" bigint, out version bigint, out recorded_at timestamptz, out state text)
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
declare
  first constant boolean := pg_current_xact_id_if_assigned() is null;  -- nothing is written yet, so there is no fence
begin
  if idempotency_key is not null then
    loop
      -- Waits for another transaction that holds the key and has not committed.
      insert into pgeverything.event_receipts (topic, idempotency_key, recorded_at, positions)
      values (append.topic, append.idempotency_key, clock_timestamp(), '{}')
      on conflict on constraint event_receipts_pkey do nothing;
      exit when found;
      select r.positions[1] into append."position" from pgeverything.event_receipts r
      where r.topic = append.topic and r.idempotency_key = append.idempotency_key;
      if append."position" is not null then
        state := 'duplicate';
        return;
      end if;
    end loop;
  end if;

  -- Before the fence: who waits here for another publisher of the key must not hold readers up.
  if key is not null then
    if expected_version is null then
      insert into pgeverything.streams as s (topic, key, version) values (append.topic, append.key, 1)
      on conflict on constraint streams_pkey do update set version = s.version + 1
      returning s.version into append.version;
    elsif expected_version = 0 then
      insert into pgeverything.streams as s (topic, key, version) values (append.topic, append.key, 1)
      on conflict on constraint streams_pkey do nothing
      returning s.version into append.version;
    else
      update pgeverything.streams s set version = s.version + 1
      where s.topic = append.topic and s.key = append.key and s.version = append.expected_version
      returning s.version into append.version;
    end if;
    if append.version is null then
      select coalesce(max(s.version), 0) into append.version from pgeverything.streams s
      where s.topic = append.topic and s.key = append.key;
      delete from pgeverything.event_receipts r
      where r.topic = append.topic and r.idempotency_key = append.idempotency_key;
      state := 'conflict';
      return;
    end if;
  end if;

  if first then
    -- The fence, without the question whether it is there and the note that it is: a call and both cost more than the
    -- lock. A second append of this transaction asks, finds no note, and raises one more.
    perform pg_advisory_xact_lock_shared(
      ('pgeverything.event_seq'::regclass::oid::bigint << 40)
      | (coalesce(pg_sequence_last_value('pgeverything.event_seq'), 0) & 1099511627775));
  else
    perform pgeverything.fence();
  end if;
  loop
    insert into pgeverything.events as e (position, transaction_id, recorded_at, version, topic_id, type, key, data, headers)
    select nextval('pgeverything.event_seq'), pg_current_xact_id()::text::bigint, clock_timestamp(), append.version, t.id, append.type,
           append.key, append.data, append.headers
    from pgeverything.topics t where t.name = append.topic
    order by t.id limit 1
    returning e.position, e.recorded_at into append."position", append.recorded_at;
    exit when found;
    perform pgeverything.topic_id(topic);
  end loop;
  state := 'appended';
  if idempotency_key is not null then
    update pgeverything.event_receipts r set positions = array[append."position"]
    where r.topic = append.topic and r.idempotency_key = append.idempotency_key;
  end if;
  if exists (select from pgeverything.event_sleepers s where s.expires_at > append.recorded_at) then
    perform pg_notify('pgeverything', E'\tevents:');
  end if;
end $$;

-- Appends one event for each element of the JSON array `data`, with positions in that order. `types` and `keys` have one
-- value for all of them or one for each. `state` is as for append(); `expected_version` is for batches of one key.
create function pgeverything.append_many(
  topic text, data jsonb, types text[] default '{""}', keys text[] default null, expected_version bigint default null,
  headers jsonb default null, idempotency_key text default null,
  out positions bigint[], out versions bigint[], out recorded_at timestamptz, out state text)
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
declare
  about  integer;  -- the topic's id
  writer bigint;   -- this transaction
  newest bigint;
begin
  if jsonb_array_length(data) = 0 then
    positions := '{}';
    versions := '{}';
    recorded_at := clock_timestamp();
    state := 'appended';
    return;
  end if;
  if idempotency_key is not null then
    loop
      insert into pgeverything.event_receipts (topic, idempotency_key, recorded_at, positions)
      values (append_many.topic, append_many.idempotency_key, clock_timestamp(), '{}')
      on conflict on constraint event_receipts_pkey do nothing;
      exit when found;
      select r.positions into append_many.positions from pgeverything.event_receipts r
      where r.topic = append_many.topic and r.idempotency_key = append_many.idempotency_key;
      if append_many.positions is not null then
        state := 'duplicate';
        return;
      end if;
    end loop;
  end if;

  if expected_version is not null then
    if expected_version = 0 then
      insert into pgeverything.streams as s (topic, key, version)
      values (append_many.topic, append_many.keys[1], jsonb_array_length(append_many.data))
      on conflict on constraint streams_pkey do nothing
      returning s.version into newest;
    else
      update pgeverything.streams s set version = s.version + jsonb_array_length(append_many.data)
      where s.topic = append_many.topic and s.key = append_many.keys[1] and s.version = append_many.expected_version
      returning s.version into newest;
    end if;
    if newest is null then
      select array[coalesce(max(s.version), 0)] into append_many.versions from pgeverything.streams s
      where s.topic = append_many.topic and s.key = append_many.keys[1];
      delete from pgeverything.event_receipts r
      where r.topic = append_many.topic and r.idempotency_key = append_many.idempotency_key;
      state := 'conflict';
      return;
    end if;
    select array_agg(v order by v) into append_many.versions
    from generate_series(expected_version + 1, newest) v;
  elsif keys is not null then
    -- Keys in sorted order, so that two batches of the same keys do not deadlock.
    with item as materialized (
      select d.ord, case when cardinality(append_many.keys) = 1 then append_many.keys[1] else append_many.keys[d.ord] end as key
      from generate_series(1, jsonb_array_length(append_many.data)) d (ord)),
    bumped as (
      insert into pgeverything.streams as s (topic, key, version)
      select append_many.topic, i.key, count(*) from item i where i.key is not null group by i.key order by i.key
      on conflict on constraint streams_pkey do update set version = s.version + excluded.version
      returning s.key, s.version)
    select array_agg(b.version - count.below order by count.ord) into append_many.versions
    from (select i.ord, i.key, count(*) over (partition by i.key order by i.ord desc) - 1 as below from item i) count
    left join bumped b on b.key = count.key collate "C";
  end if;

  about := pgeverything.topic_id(topic);
  perform pgeverything.fence();
  recorded_at := clock_timestamp();
  writer := pg_current_xact_id()::text::bigint;
  if versions is null and cardinality(types) = 1 then  -- the same without what most batches do not have, in two thirds of the time
    with placed as (
      insert into pgeverything.events as e (position, transaction_id, recorded_at, topic_id, type, data, headers)
      select nextval('pgeverything.event_seq'), writer, append_many.recorded_at, about, append_many.types[1], d.value,
             append_many.headers
      from jsonb_array_elements(append_many.data) d (value)
      returning e.position)
    select array_agg(p.position) into append_many.positions from placed p;
  else
    with placed as (
      insert into pgeverything.events as e (position, transaction_id, recorded_at, version, topic_id, type, key, data, headers)
      select nextval('pgeverything.event_seq'), writer, append_many.recorded_at, append_many.versions[d.ord], about,
             case when cardinality(append_many.types) = 1 then append_many.types[1] else append_many.types[d.ord] end,
             case when cardinality(append_many.keys) = 1 then append_many.keys[1] else append_many.keys[d.ord] end,
             d.value, append_many.headers
      from jsonb_array_elements(append_many.data) with ordinality d (value, ord)
      returning e.position)
    select array_agg(p.position) into append_many.positions from placed p;
  end if;
  state := 'appended';
  if idempotency_key is not null then
    update pgeverything.event_receipts r set positions = append_many.positions
    where r.topic = append_many.topic and r.idempotency_key = append_many.idempotency_key;
  end if;
  if exists (select from pgeverything.event_sleepers s where s.expires_at > append_many.recorded_at) then
    perform pg_notify('pgeverything', E'\tevents:');
  end if;
end $$;

-- For psql, triggers and other languages: appends one event and returns its position, or that of the first event when
-- the idempotency key was used.
create function pgeverything.publish(
  topic text, data jsonb, type text default '', key text default null, expected_version bigint default null,
  headers jsonb default null, idempotency_key text default null)
returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  done record;
begin
  if expected_version is not null and key is null then
    raise exception 'expected_version needs a key: versions count the events of one topic and key'
      using errcode = 'invalid_parameter_value';
  end if;
  select * into done from pgeverything.append(topic, data, type, key, expected_version, headers, idempotency_key);
  if done.state = 'conflict' then
    raise exception 'topic % key % is at version %, not %', topic, key, done.version, expected_version
      using errcode = 'PGE10', hint = 'Read the newer events, decide again, and append with that version.';
  end if;
  return done.position;
end $$;


-- Partitions -----------------------------------------------------------------------------------------------------

-- A partition holds 5,000,000 positions: a gigabyte or so, small enough to vacuum and to drop in steps, large enough that a
-- log of 10^9 events has 200. The default partition takes what has none of its own, so an append never fails for lack of
-- one; it stays empty while somebody extends the log in time.
create function pgeverything.event_partition(number bigint) returns text
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  return 'events_' || lpad(number::text, 6, '0');
end $$;

-- Creates the partitions of the next positions; returns how many. Runs as the schema's owner.
-- An attach takes SHARE UPDATE EXCLUSIVE on the parent, which blocks no publisher and no reader, and ACCESS EXCLUSIVE on
-- the default partition, which nobody uses but who reads the log in one statement; it gives up after 100 ms behind one.
-- That is why no publisher does this in its own transaction: it would hold that lock until it commits.
-- Rows that came to be in the default partition move when the log has passed on: the range that is being written to cannot
-- be moved without holding publishers up.
create function pgeverything.extend_events(ahead integer default 8) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '100ms'
as $$
declare
  home    text := quote_ident('pgeverything');
  size    bigint := 5000000;
  current bigint := coalesce(pg_sequence_last_value('pgeverything.event_seq'), 0) / size;
  dropped bigint := (select r.dropped from pgeverything.event_retention r);
  made    integer := 0;
  number  bigint;
  name    text;
begin
  for number in
    select n from generate_series(current, current + ahead) n
    where n > current or not exists (select from pgeverything.events_default e where e.position >= current * size)
    union
    select e.position / size from pgeverything.events_default e
    where e.position > dropped and e.position < current * size group by 1
    order by 1
  loop
    name := pgeverything.event_partition(number);
    continue when to_regclass(format('%s.%I', home, name)) is not null;
    begin
      execute format('create table %s.%I (like %s.events including all)', home, name, home);
      if number < current then
        execute format('with moved as (delete from %s.events_default where position >= %s and position < %s returning *)
                        insert into %s.%I select * from moved', home, number * size, (number + 1) * size, home, name);
      end if;
      execute format('alter table %s.events attach partition %s.%I for values from (%s) to (%s)',
                     home, home, name, number * size, (number + 1) * size);
      made := made + 1;
    exception when lock_not_available or duplicate_table or check_violation then
      null;  -- somebody else does it, or it is done next time
    end;
  end loop;
  return made;
end $$;

-- Drops the events of the oldest partition that is left, when all of them are at or below `upto`; returns whether it did.
-- Runs as the schema's owner. Never the partition that is being written to. A TRUNCATE, because a DROP takes its lock on
-- the parent, which publishers would wait for; the empty table goes when nobody is there: see discard_events().
create function pgeverything.drop_events(upto bigint) returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '100ms'
as $$
declare
  home   text := quote_ident('pgeverything');
  size   bigint := 5000000;
  number bigint;
  name   text;
begin
  select (r.dropped + 1) / size into number from pgeverything.event_retention r for update;
  if (number + 1) * size - 1 > upto
     or number >= coalesce(pg_sequence_last_value('pgeverything.event_seq'), 0) / size then
    return false;
  end if;
  name := pgeverything.event_partition(number);
  if to_regclass(format('%s.%I', home, name)) is not null then
    execute format('truncate %s.%I', home, name);
  end if;
  delete from pgeverything.events_default e where e.position < (number + 1) * size;
  delete from pgeverything.event_totals t where t.first <= number * size;
  update pgeverything.event_retention r set dropped = (number + 1) * size - 1;
  return true;
exception when lock_not_available then
  return false;  -- a reader is there
end $$;

-- Drops one table that drop_events() has emptied; returns whether it did. Takes its locks at once or not at all.
create function pgeverything.discard_events() returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  home text := quote_ident('pgeverything');
  name text;
begin
  select c.relname into name
  from pg_inherits i
  join pg_class c on c.oid = i.inhrelid
  where i.inhparent = 'pgeverything.events'::regclass and c.relname ~ '^events_[0-9]+$'
    and (substr(c.relname, 8)::bigint + 1) * 5000000 - 1 <= (select r.dropped from pgeverything.event_retention r)
  order by c.relname limit 1;
  if name is null then
    return false;
  end if;
  execute format('lock table only %s.events, only %s.events_default, only %s.%I in access exclusive mode nowait',
                 home, home, home, name);
  execute format('drop table %s.%I', home, name);
  return true;
exception when lock_not_available then
  return false;
end $$;

-- They change tables with their owner's rights, so only roles that are told may run them.
revoke execute on function pgeverything.extend_events(integer) from public;
revoke execute on function pgeverything.drop_events(bigint) from public;
revoke execute on function pgeverything.discard_events() from public;

select pgeverything.extend_events();
