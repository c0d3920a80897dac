-- Pub/sub: durable subscriptions to the event log.
--
-- A subscription is a cursor, `claimed`, and a row in `deliveries` for each event at or below it that is not done yet. So
-- its cost depends on what is in flight and what has failed, and not on the log. Whoever moves the cursor or hands a
-- delivery out holds the row of the subscription; whoever ends a delivery holds only that delivery.

create sequence pgeverything.pubsub_seq cache 1;  -- subscriptions, members, and tokens, of which each claim has one

create table pgeverything.subscriptions (
  id             bigint primary key,
  name           text collate "C" not null unique,
  pattern        text not null,
  topic          text collate "C",
  low            text collate "C",
  high           text collate "C",
  regex          text,
  ordered        boolean not null,
  max_deliveries integer not null check (max_deliveries > 0),
  on_dead        text not null check (on_dead in ('skip', 'hold', 'stop')),
  created_at     timestamptz not null,
  claimed        bigint not null,
  paused         boolean not null default false,
  stopped        text
) with (fillfactor = 50);
comment on column pgeverything.subscriptions.topic is 'the pattern in the terms of a statement: one topic, or names from low up to high that match regex';
comment on column pgeverything.subscriptions.claimed is 'every event at or below it is done or has a row in deliveries';
comment on column pgeverything.subscriptions.stopped is 'why on_dead = stop has stopped it';

-- Processes that take deliveries. One that does not renew its heartbeat within its lease loses them to the others.
create table pgeverything.members (
  id            bigint primary key,
  name          text not null,
  subscriptions bigint[] not null,
  started_at    timestamptz not null,
  heartbeat_at  timestamptz not null,
  lease         interval not null,
  lost          boolean not null default false
) with (fillfactor = 50);

-- In flight: `member` and `token` are set. To be delivered from `due_at` on. Dead: `dead_id` is set, a number from the same
-- sequence as jobs, so that one id names one dead letter. Else it is behind an earlier one of its lane, which is the key's
-- hash: deliveries of a lane are handed out in the order of positions, and all that are in flight to one member.
create table pgeverything.deliveries (
  subscription bigint not null,
  position     bigint not null,
  lane         bigint,
  member       bigint,
  token        bigint,
  due_at       timestamptz,
  delivered    integer not null default 0,
  failures     integer not null default 0,
  crashes      integer not null default 0,
  redriven     integer not null default 0,
  dead_id      bigint,
  died_at      timestamptz,
  reason       text,
  fingerprint  text,
  error        jsonb,
  primary key (subscription, position)
) with (fillfactor = 90);
comment on column pgeverything.deliveries.delivered is 'how often a handler has begun with it, what is in flight not counted';
comment on column pgeverything.deliveries.lane is 'null without a key, without ordering, and when dead and not holding up what comes after it';
create index deliveries_lane on pgeverything.deliveries (subscription, lane, position) where lane is not null;
create index deliveries_due on pgeverything.deliveries (subscription, due_at, position) where due_at is not null;
create index deliveries_behind on pgeverything.deliveries (subscription, lane, position)
  where member is null and due_at is null and dead_id is null;
create index deliveries_dead on pgeverything.deliveries (dead_id) where dead_id is not null;

alter table pgeverything.subscriptions set (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);
alter table pgeverything.members       set (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);
alter table pgeverything.deliveries    set (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);


-- Tells those who wait that there may be something for them, if anybody waits.
create function pgeverything.wake_readers() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  if exists (select from pgeverything.event_sleepers s where s.expires_at > clock_timestamp()) then
    perform pg_notify('pgeverything', E'\tevents:');
  end if;
end $$;


-- Claim ----------------------------------------------------------------------------------------------------------

-- The next events above `after` and up to `upto`, of these topics or of all, and how far it has looked. It looks at a
-- bounded part of the log: who finds nothing and has not come to `upto` calls again.
create function pgeverything.next_events(topics integer[], after bigint, upto bigint, most integer,
  out positions bigint[], out passed bigint)
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set enable_incremental_sort = off set jit = off
as $$
declare
  wanted integer;
  last   bigint;
  more   bigint[];
  span   bigint := 4 * most;
  share  integer;
begin
  positions := '{}';
  passed := after;
  if cardinality(topics) = 0 then
    passed := upto;
    return;
  end if;
  for round in 1 .. 20 loop
    exit when passed >= upto or cardinality(positions) >= most;
    wanted := most - cardinality(positions);
    last := least(upto, ((passed + 1) / 5000000 + 1) * 5000000 - 1);  -- a partition at a time
    if topics is null or last - passed <= span then
      last := least(last, passed + span);
      more := array(
        select e.position from pgeverything.events e
        where e.position > passed and e.position <= last and (topics is null or e.topic_id = any (topics))
        order by e.position limit wanted);
      if cardinality(more) = 0 then
        span := least(span * 4, 100000);  -- a gap
      end if;
    else  -- a few of each topic, and of those what lies below the end of the shortest list: above it a list may lack some
      share := greatest(16, least(wanted::bigint, 4 * wanted::bigint / cardinality(topics)));
      with found as materialized (
        select f.topic_id, f.position from pgeverything.find_events(topics, null, passed, last, share) f),
      complete as (
        select min(f.last) as upto
        from (select max(f.position) as last from found f group by f.topic_id having count(*) = share) f)
      select coalesce(c.upto, last), array(
        select f.position from found f where f.position <= coalesce(c.upto, last) order by f.position limit wanted)
      into last, more
      from complete c;
    end if;
    passed := case when cardinality(more) = wanted then more[wanted] else last end;
    positions := positions || more;
  end loop;
end $$;

-- The numbers of the topics that a pattern chooses, in the terms of a statement; null when it chooses all.
create function pgeverything.subscribed_topics(topic text, low text, high text, regex text) returns integer[]
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off
as $$
begin
  return case
    when topic is not null then array(select t.id from pgeverything.topics t where t.name = topic)
    when low is not null and regex is null then array(
      select t.id from pgeverything.topics t where t.name >= low and t.name < high)
    when low is not null then array(
      select t.id from pgeverything.topics t where t.name >= low and t.name < high and t.name ~ regex)
    when regex is not null then array(select t.id from pgeverything.topics t where t.name ~ regex) end;
end $$;

-- Takes deliveries that are due, each with those behind it in its lane. The caller holds the subscription's row.
-- `waiting` is whether something is behind what a member has in hand.
create function pgeverything.claim_due(subscription bigint, member bigint, token bigint, most integer, at timestamptz,
  out taken bigint[], out waiting boolean)
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
declare
  start bigint := -9223372036854775808;
  seen  integer;
  heads bigint[];
  lanes bigint[];
  mates bigint[];
begin
  -- Lanes that nobody holds up any more. Who ends a delivery passes the turn on, but does not see what another claim puts
  -- behind it at the same moment. A hundred lanes, and where there are more another hundred from anywhere.
  waiting := false;
  loop
    with recursive line as (
      (select w.lane, 1 as number from pgeverything.deliveries w
       where w.subscription = claim_due.subscription and w.member is null and w.due_at is null and w.dead_id is null
         and w.lane >= start
       order by w.lane limit 1)
      union all
      select n.lane, l.number + 1
      from line l cross join lateral (
        select w.lane from pgeverything.deliveries w
        where w.subscription = claim_due.subscription and w.member is null and w.due_at is null and w.dead_id is null
          and w.lane > l.lane
        order by w.lane limit 1) n
      where l.number < 100)
    select count(*), coalesce(bool_or(f.member is not null), false) or waiting,
           array_agg(f.position) filter (where f.member is null and f.due_at is null and f.dead_id is null)
    into seen, waiting, heads
    from line l cross join lateral (
      select d.position, d.member, d.due_at, d.dead_id from pgeverything.deliveries d
      where d.subscription = claim_due.subscription and d.lane = l.lane
      order by d.position limit 1) f;
    if heads is not null then
      update pgeverything.deliveries d set due_at = claim_due.at  -- nobody else can have taken them
      where d.subscription = claim_due.subscription and d.position = any (heads);
    end if;
    exit when seen < 100 or start > -9223372036854775808;
    start := ((random() - 0.5) * 18446744073709551614)::numeric::bigint;
  end loop;

  select array_agg(h.position), array_agg(h.lane) filter (where h.lane is not null) into heads, lanes
  from (
    select d.position, d.lane
    from pgeverything.deliveries d
    where d.subscription = claim_due.subscription and d.due_at <= claim_due.at
      and (d.lane is null or not exists (
        select from pgeverything.deliveries e
        where e.subscription = d.subscription and e.lane = d.lane and e.position < d.position))
    order by d.due_at, d.position
    limit most) h;
  if heads is null then
    taken := '{}';
    return;
  end if;
  mates := array(
    select m.position
    from unnest(lanes) l (lane) cross join lateral (
      select w.position from pgeverything.deliveries w
      where w.subscription = claim_due.subscription and w.lane = l.lane
        and w.member is null and w.due_at is null and w.dead_id is null
        and not exists (  -- one in between that waits for its time
          select from pgeverything.deliveries x
          where x.subscription = w.subscription and x.lane = w.lane and x.position < w.position
            and x.position <> all (heads) and (x.due_at is not null or x.dead_id is not null or x.member is not null))
      order by w.position
      limit most - cardinality(heads)) m
    order by m.position
    limit most - cardinality(heads));
  heads := heads || mates;
  with handed as (
    update pgeverything.deliveries d
    set member = claim_due.member, token = claim_due.token, due_at = null
    where d.subscription = claim_due.subscription and d.position = any (heads)
      and d.member is null and d.dead_id is null
    returning d.position)
  select coalesce(array_agg(h.position order by h.position), '{}') into taken from handed h;
end $$;

-- Takes up to `most` deliveries of each subscription for a member: a row for each, and a row without a position for each
-- subscription, which says how it is: 'idle'; 'more', there is more than was taken; 'busy', somebody else is claiming;
-- 'paused'; 'stopped'; 'gap', retention has dropped events above its cursor; 'gone'; and 'lost', the member is no member.
-- `next_due` is in how many seconds the next delivery is due that waits for its time; `token` how far the log can be read.
-- Where `most` is 0 it only looks, for anybody: 'more', there may be something to take.
create function pgeverything.claim_deliveries(member bigint, subscriptions bigint[], most integer[])
returns table (subscription bigint, state text, next_due double precision, "position" bigint, token bigint,
               delivery integer, lane bigint, topic text, key text, version bigint, type text, data text, headers text,
               recorded_at timestamptz)
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
declare
  at      timestamptz := clock_timestamp();
  safe    bigint;
  wrote   boolean := false;
  keyed   boolean := false;
  present boolean;
  each    record;
  s       pgeverything.subscriptions;
  ticket  bigint;
  again   bigint[];
  topics  integer[];
  fresh   bigint[];
  lanes   bigint[];
  passed  bigint;
  closed  bigint[];
  behind  boolean;
begin
  select min(c.claimed) into safe from pgeverything.subscriptions c where c.id = any (claim_deliveries.subscriptions);
  safe := pgeverything.horizon(coalesce(safe, 0), own => true);  -- what this transaction has published is undone with its claim
  for each in
    select g.id, g.most from unnest(claim_deliveries.subscriptions, claim_deliveries.most) g (id, most) order by g.id
  loop
    subscription := each.id;
    position := null;
    token := safe;
    next_due := null;
    behind := false;
    select c.* into s from pgeverything.subscriptions c where c.id = each.id;
    state := case when s.id is null then 'gone' when s.stopped is not null then 'stopped' when s.paused then 'paused' end;
    if state is not null then
      return next;
      continue;
    end if;
    if s.claimed < (select r.dropped from pgeverything.event_retention r) then
      state := 'gap';
    elsif s.claimed >= safe
          and not exists (select from pgeverything.deliveries d where d.subscription = each.id and d.due_at <= at)
          and not exists (select from pgeverything.deliveries d where d.subscription = each.id
                          and d.member is null and d.due_at is null and d.dead_id is null) then
      state := 'idle';
    elsif each.most = 0 then
      state := 'more';
    else
      select c.* into s from pgeverything.subscriptions c where c.id = each.id for update skip locked;
      if s.id is null or s.paused or s.stopped is not null then
        state := 'busy';
      else
        if present is null then
          -- A member that was declared dead meanwhile must not take anything: nobody would look for it again.
          perform from pgeverything.members m where m.id = claim_deliveries.member and not m.lost for share;
          present := found;
        end if;
        if not present then
          state := 'lost';
          return next;
          return;
        end if;
        ticket := nextval('pgeverything.pubsub_seq');
        select c.taken, c.waiting into again, behind
        from pgeverything.claim_due(each.id, claim_deliveries.member, ticket, each.most, at) c;
        passed := s.claimed;
        if cardinality(again) < each.most and s.claimed < safe then
          topics := pgeverything.subscribed_topics(s.topic, s.low, s.high, s.regex);
          select n.positions, n.passed into fresh, passed
          from pgeverything.next_events(topics, s.claimed, safe, each.most - cardinality(again)) n;
          if s.claimed < (select r.dropped from pgeverything.event_retention r) then  -- while it was being read
            fresh := '{}';
            passed := s.claimed;
            state := 'gap';
          end if;
          if cardinality(fresh) > 0 then
            if s.ordered then
              select array_agg(case when e.key is not null then hashtextextended(
                  (select t.name from pgeverything.topics t where t.id = e.topic_id) || chr(31) || e.key, 0) end
                order by e.position) into lanes
              from pgeverything.events e
              where e.position = any (fresh);
              closed := array(
                select l.lane
                from (select distinct u.lane from unnest(lanes) u (lane)) l cross join lateral (
                  select from pgeverything.deliveries d
                  where d.subscription = each.id and d.lane = l.lane and d.member is distinct from claim_deliveries.member
                  limit 1) d);
            else
              lanes := array_fill(null::bigint, array[cardinality(fresh)]);
              closed := '{}';
            end if;
            insert into pgeverything.deliveries (subscription, position, lane, member, token)
            select each.id, g.position, g.lane,
                   case when g.lane = any (closed) then null else claim_deliveries.member end,
                   case when g.lane = any (closed) then null else ticket end
            from unnest(fresh, lanes) g (position, lane);
          end if;
          if passed > s.claimed then
            update pgeverything.subscriptions c set claimed = passed where c.id = each.id;
            wrote := true;
          end if;
        else
          fresh := '{}';
        end if;
        if cardinality(again) > 0 then
          wrote := true;
          keyed := keyed or s.ordered;
          return query
          select each.id, null::text, null::double precision, d.position, ticket, d.delivered + 1, d.lane,
                 (select t.name from pgeverything.topics t where t.id = e.topic_id), e.key, e.version, e.type, e.data::text,
                 e.headers::text, e.recorded_at
          from pgeverything.deliveries d
          left join pgeverything.events e on e.position = d.position and e.position = any (again)
          where d.subscription = each.id and d.position = any (again)
          order by d.position;
        end if;
        if cardinality(fresh) > 0 then
          keyed := keyed or array_remove(lanes, null) <> '{}';
          return query
          select each.id, null::text, null::double precision, e.position, ticket, 1, g.lane,
                 (select t.name from pgeverything.topics t where t.id = e.topic_id), e.key, e.version, e.type, e.data::text,
                 e.headers::text, e.recorded_at
          from unnest(fresh, lanes) g (position, lane)
          join pgeverything.events e on e.position = g.position
          where e.position = any (fresh) and (g.lane is null or g.lane <> all (closed))
          order by e.position;
        end if;
        if state is null then
          state := case when passed < safe or cardinality(again) = each.most then 'more' else 'idle' end;
        end if;
      end if;
    end if;
    select extract(epoch from min(d.due_at) - at)::double precision into next_due
    from pgeverything.deliveries d where d.subscription = each.id and d.due_at > at;
    if behind then
      next_due := least(next_due, 1);  -- what is behind may be free before anybody says so
    end if;
    position := null;
    token := safe;
    return next;
  end loop;
  -- A claim need not be on disk before the handlers begin: what says that a message is done comes later in the write-ahead
  -- log, and so a crash that takes the claim back takes nothing back that was acknowledged. But the messages are handed out
  -- again then, perhaps while they are still worked on: so not where a key has an order.
  if wrote and not keyed then
    perform set_config('synchronous_commit', 'off', true);
  end if;
end $$;


-- The end of a delivery ------------------------------------------------------------------------------------------

-- Lets the first delivery of each lane go, when it was behind one that has ended.
create function pgeverything.release_lanes(subscriptions bigint[], lanes bigint[], at timestamptz) returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off
as $$
declare
  owners   bigint[];
  first    bigint[];
  released integer;
begin
  select array_agg(g.subscription), array_agg(f.position) into owners, first
  from (select distinct u.subscription, u.lane
        from unnest(release_lanes.subscriptions, release_lanes.lanes) u (subscription, lane)) g cross join lateral (
    select e.position, e.member, e.due_at, e.dead_id from pgeverything.deliveries e
    where e.subscription = g.subscription and e.lane = g.lane
    order by e.position limit 1) f
  where f.member is null and f.due_at is null and f.dead_id is null;
  if owners is null then
    return 0;
  end if;
  update pgeverything.deliveries d set due_at = release_lanes.at
  from unnest(owners, first) r (subscription, position)
  where d.subscription = r.subscription and d.position = r.position
    and d.member is null and d.due_at is null;  -- a claim may have been faster
  get diagnostics released = row_count;
  return released;
end $$;

-- Ends deliveries, each by the token it was handed out with: one that somebody else has been given since has another, and
-- after a seek there is none. Returns the places in the arrays of those that were accepted, and how many others have
-- become due by it.
create function pgeverything.acknowledge(subscriptions bigint[], positions bigint[], tokens bigint[],
  out accepted integer[], out freed integer)
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off
as $$
declare
  owners bigint[];
  lanes  bigint[];
begin
  freed := 0;
  with done as (
    delete from pgeverything.deliveries d
    using (
      select u.* from unnest(acknowledge.subscriptions, acknowledge.positions, acknowledge.tokens) with ordinality
        u (subscription, position, token, place)
      order by u.subscription, u.position) g  -- as seek() and delete_subscription() do: or they deadlock
    where d.subscription = g.subscription and d.position = g.position and d.token = g.token
    returning g.place, d.subscription, d.lane)
  select coalesce(array_agg(d.place::integer), '{}'),
         array_agg(d.subscription) filter (where d.lane is not null),
         array_agg(d.lane) filter (where d.lane is not null)
  into accepted, owners, lanes
  from done d;
  if lanes is not null and exists (
      select from unnest(owners) o (subscription) cross join lateral (
        select from pgeverything.deliveries d
        where d.subscription = o.subscription and d.member is null and d.due_at is null and d.dead_id is null limit 1) d) then
    freed := pgeverything.release_lanes(owners, lanes, clock_timestamp());
  end if;
end $$;

-- Ends the holding of one delivery without its being done. What its member holds of the same lane and comes after it goes
-- back behind it, unless it is dead and to be skipped. Returns 'again', from `delay` seconds on; 'held', when it is dead and
-- holds up what comes after it; 'dead', when it does not; or null when the token is not the one it was handed out with.
create function pgeverything.put_back(
  subscription bigint, "position" bigint, token bigint, delay double precision default 0, failed integer default 0,
  crashed integer default 0, delivered integer default 0, reason text default null, fingerprint text default null, error jsonb default null)
returns text
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
declare
  at   timestamptz := clock_timestamp();
  s    pgeverything.subscriptions;
  d    pgeverything.deliveries;
  why  text := put_back.reason;
  dead bigint;
begin
  select c.* into s from pgeverything.subscriptions c where c.id = put_back.subscription;
  if s.on_dead = 'stop' then  -- before the delivery, as everybody does who holds both
    perform from pgeverything.subscriptions c where c.id = put_back.subscription for no key update;
  end if;
  select f.* into d from pgeverything.deliveries f
  where f.subscription = put_back.subscription and f.position = put_back.position and f.token = put_back.token
  for update;
  if not found then
    return null;
  end if;
  d.delivered := d.delivered + put_back.delivered;
  d.failures := d.failures + failed;
  d.crashes := d.crashes + crashed;
  if why is null and failed > 0 and d.failures >= s.max_deliveries then
    why := 'failed at delivery ' || d.delivered;
  elsif why is null and crashed > 0 and d.crashes > 3 then
    why := 'crashed its member ' || d.crashes || ' times';
  end if;
  if why is null or s.on_dead <> 'skip' then
    update pgeverything.deliveries m set member = null, token = null
    where m.subscription = d.subscription and m.position = any (array(
      select f.position from pgeverything.deliveries f
      where f.subscription = d.subscription and f.lane = d.lane and f.position > d.position and f.member = d.member
      for update skip locked));  -- one that is being acknowledged in a transaction, perhaps in the thread that is here
  end if;
  if why is null then
    at := at + make_interval(secs => put_back.delay);
    update pgeverything.deliveries f
    set member = null, token = null, due_at = at, delivered = d.delivered, failures = d.failures, crashes = d.crashes,
        fingerprint = coalesce(put_back.fingerprint, f.fingerprint), error = coalesce(put_back.error, f.error)
    where f.subscription = d.subscription and f.position = d.position;
    return 'again';
  end if;
  dead := nextval('pgeverything.job_seq');
  update pgeverything.deliveries f
  set member = null, token = null, due_at = null, delivered = d.delivered, failures = d.failures, crashes = d.crashes, dead_id = dead,
      died_at = at, reason = why, fingerprint = coalesce(put_back.fingerprint, f.fingerprint),
      error = coalesce(put_back.error, f.error), lane = case when s.on_dead <> 'skip' then f.lane end
  where f.subscription = d.subscription and f.position = d.position;
  if s.on_dead = 'skip' and d.lane is not null then
    perform pgeverything.release_lanes(array[d.subscription], array[d.lane], at);
  elsif s.on_dead = 'stop' then
    why := 'event ' || d.position || ' ' || why;
    update pgeverything.subscriptions c set stopped = why
    where c.id = d.subscription and c.stopped is null;
  end if;
  return case when s.on_dead = 'skip' then 'dead' else 'held' end;
end $$;

-- Puts back all that a member holds: the first of each lane is due at once, or after a crash perhaps later, the others
-- behind it. From the second crash on it is a random time, so that a message that takes its members down does not come
-- back together with the innocent ones it was held with. Then the member is no more, unless an open transaction of its
-- own still holds one of its deliveries. Returns how many it put back.
create function pgeverything.end_member(member bigint, crashed boolean) returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
as $$
#variable_conflict use_column
declare
  d      record;
  length double precision;
  back   integer := 0;
begin
  update pgeverything.members m set lost = true where m.id = end_member.member;
  if not found then
    return 0;
  end if;
  select extract(epoch from m.lease) into length from pgeverything.members m where m.id = end_member.member;
  for d in
    select f.subscription, f.position, f.token, f.crashes + 1 as crash
    from pgeverything.deliveries f where f.member = end_member.member
    order by f.subscription, f.position
    for update skip locked
  loop
    if pgeverything.put_back(
         d.subscription, d.position, d.token, crashed => crashed::integer, delivered => crashed::integer,
         delay => case when crashed and d.crash between 2 and 3 then random() * length * 3 ^ (d.crash - 1) else 0 end,
         error => case when crashed then jsonb_build_object(
           'type', 'MemberLost', 'message', 'member ' || end_member.member || ' fell silent while it held the message') end)
       is not null then
      back := back + 1;
    end if;
  end loop;
  delete from pgeverything.members m
  where m.id = end_member.member
    and not exists (select from pgeverything.deliveries f where f.member = end_member.member);
  return back;
end $$;

-- Ends the members that have not renewed their heartbeat in time; returns how many deliveries that put back.
create function pgeverything.rescue_deliveries() returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  silent bigint;
  back   integer := 0;
begin
  for silent in
    select m.id from pgeverything.members m
    where m.lost or m.heartbeat_at + m.lease < clock_timestamp()
    order by m.id
    for update skip locked
  loop
    back := back + pgeverything.end_member(silent, true);
  end loop;
  return back;
end $$;


-- Subscriptions --------------------------------------------------------------------------------------------------

-- The position after which a subscription begins: 'earliest', 'latest', a position, or a time.
create function pgeverything.start_position(start text, at timestamptz) returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  dropped bigint := (select r.dropped from pgeverything.event_retention r);
  safe    bigint;
begin
  if at is not null then  -- and not past an open publisher, whose events were perhaps recorded later
    safe := pgeverything.horizon(dropped);
    return (select least(p.low, safe) from pgeverything.position_at(at - interval '1 microsecond') p);
  end if;
  return case start when 'earliest' then dropped
                    when 'latest' then pgeverything.horizon(dropped)
                    else start::bigint end;
end $$;

-- Creates a subscription, or returns the one of that name. Its start is fixed here: what is committed later is above it.
-- Without a start none is created. Who waits is told of a new one, which may be one that was deleted under him. Settings
-- are set for all its members, unless it would hold followers back and be without an order.
create function pgeverything.create_subscription(
  name text, pattern text, topic text, low text, high text, regex text, start text, at timestamptz, ordered boolean,
  max_deliveries integer, on_dead text)
returns setof pgeverything.subscriptions
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  if (create_subscription.start is not null or create_subscription.at is not null)
     and not exists (select from pgeverything.subscriptions s where s.name = create_subscription.name) then
    insert into pgeverything.subscriptions (id, name, pattern, topic, low, high, regex, ordered, max_deliveries, on_dead,
                                            created_at, claimed)
    values (nextval('pgeverything.pubsub_seq'), create_subscription.name, create_subscription.pattern,
            create_subscription.topic, create_subscription.low, create_subscription.high, create_subscription.regex,
            coalesce(create_subscription.ordered, true), coalesce(create_subscription.max_deliveries, 5),
            coalesce(create_subscription.on_dead, 'skip'), clock_timestamp(),
            pgeverything.start_position(create_subscription.start, create_subscription.at))
    on conflict (name) do nothing;
    perform pgeverything.wake_readers();
  end if;
  update pgeverything.subscriptions s
  set ordered = coalesce(create_subscription.ordered, s.ordered),
      max_deliveries = coalesce(create_subscription.max_deliveries, s.max_deliveries),
      on_dead = coalesce(create_subscription.on_dead, s.on_dead)
  where s.name = create_subscription.name and s.pattern = create_subscription.pattern
    and (coalesce(create_subscription.ordered, s.ordered) or coalesce(create_subscription.on_dead, s.on_dead) <> 'hold')
    and (s.ordered <> create_subscription.ordered or s.max_deliveries <> create_subscription.max_deliveries
         or s.on_dead <> create_subscription.on_dead);
  return query select s.* from pgeverything.subscriptions s where s.name = create_subscription.name;
end $$;

-- Moves the cursor, backwards to deliver again or forwards to skip. What is in flight is nobody's from now on, nothing
-- waits and nothing is held; dead letters stay, but for those that will be delivered again. Returns the cursor, or null
-- when there is no such subscription.
create function pgeverything.seek(name text, start text, at timestamptz) returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off
set lock_timeout = '10s'  -- behind a transaction that has acknowledged and stays open; nobody could claim meanwhile
as $$
#variable_conflict use_column
declare
  s  pgeverything.subscriptions;
  to_position bigint;
begin
  select c.* into s from pgeverything.subscriptions c where c.name = seek.name for update;
  if not found then
    return null;
  end if;
  to_position := pgeverything.start_position(start, at);
  update pgeverything.subscriptions c set claimed = to_position, stopped = null where c.id = s.id;
  perform from pgeverything.deliveries d where d.subscription = s.id order by d.position for update;
  delete from pgeverything.deliveries d
  where d.subscription = s.id and (d.dead_id is null or d.position > to_position);
  update pgeverything.deliveries d set lane = null
  where d.subscription = s.id and d.lane is not null;
  perform pgeverything.wake_readers();
  return to_position;
end $$;

-- Lets a subscription go on that was paused or has stopped; returns whether there is one.
create function pgeverything.resume_subscription(name text) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
declare
  s     pgeverything.subscriptions;
  lanes bigint[];
begin
  select c.* into s from pgeverything.subscriptions c where c.name = resume_subscription.name for update;
  if not found then
    return false;
  end if;
  update pgeverything.subscriptions c set paused = false, stopped = null where c.id = s.id;
  if s.stopped is not null then  -- who resumes without redriving skips what it stopped at
    lanes := array(select d.lane from pgeverything.deliveries d
                   where d.subscription = s.id and d.dead_id is not null and d.lane is not null);
    update pgeverything.deliveries d set lane = null
    where d.subscription = s.id and d.dead_id is not null and d.lane is not null;
    perform pgeverything.release_lanes(array_fill(s.id, array[cardinality(lanes)]), lanes, clock_timestamp());
  end if;
  perform pgeverything.wake_readers();
  return true;
end $$;

-- Deletes a subscription with all it holds; returns whether there was one.
create function pgeverything.delete_subscription(name text) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off
set lock_timeout = '10s'
as $$
declare
  gone bigint;
begin
  select s.id into gone from pgeverything.subscriptions s where s.name = delete_subscription.name for update;
  perform from pgeverything.deliveries d where d.subscription = gone order by d.position for update;
  delete from pgeverything.deliveries d where d.subscription = gone;
  delete from pgeverything.subscriptions s where s.id = gone;
  return gone is not null;
end $$;

-- Forgets dead deliveries; what they hold up goes on. Returns how many there were.
create function pgeverything.discard_deliveries(ids bigint[]) returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off
as $$
declare
  owners bigint[];
  lanes  bigint[];
  gone   integer;
begin
  with gone as (
    delete from pgeverything.deliveries d where d.dead_id = any (ids) returning d.subscription, d.lane)
  select count(*), array_agg(g.subscription) filter (where g.lane is not null),
         array_agg(g.lane) filter (where g.lane is not null)
  into gone, owners, lanes
  from gone g;
  if lanes is not null then
    perform pgeverything.release_lanes(owners, lanes, clock_timestamp());
    perform pgeverything.wake_readers();
  end if;
  return gone;
end $$;
