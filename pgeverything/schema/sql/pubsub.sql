-- name: create
-- Create a subscription, or find the one of that name and bring it in line with what is said; null leaves a setting alone,
-- and without `start` and `at` it is only found.
select s.id, s.pattern, s.ordered, s.on_dead
from pgeverything.create_subscription(
  name => %(name)s::text, pattern => %(pattern)s::text, topic => %(topic)s::text, low => %(low)s::text,
  high => %(high)s::text, regex => %(regex)s::text, start => %(start)s::text, at => %(at)s::timestamptz,
  ordered => %(ordered)s::boolean, max_deliveries => %(max_deliveries)s::integer, on_dead => %(on_dead)s::text) s;

-- name: register
-- Become a member, which may take deliveries.
insert into pgeverything.members (id, name, subscriptions, started_at, heartbeat_at, lease)
values (nextval('pgeverything.pubsub_seq'), %(name)s::text, %(subscriptions)s::bigint[], clock_timestamp(),
        clock_timestamp(), make_interval(secs => %(lease)s::double precision))
returning id;

-- name: take_up
-- Note what a member takes deliveries of from now on.
update pgeverything.members m set subscriptions = %(subscriptions)s::bigint[] where m.id = %(member)s::bigint;

-- name: beat
-- Renew the leases of members; returns those that still had one, and whether others have fallen silent.
with now as (select clock_timestamp() as at),
beat as (
  update pgeverything.members m set heartbeat_at = now.at
  from (select b.id from pgeverything.members b where b.id = any (%(members)s::bigint[]) order by b.id for update) b, now
  where m.id = b.id and not m.lost
  returning m.id)
select coalesce(array_agg(b.id), '{}'),
       exists (select from pgeverything.members m, now
               where m.id <> all (%(members)s::bigint[]) and (m.lost or m.heartbeat_at + m.lease < now.at))
from beat b;

-- name: rescue
-- End members that have fallen silent, and put back what they hold.
select pgeverything.rescue_deliveries();

-- name: leave
-- End a member and put back what it holds; whoever waits is told.
select pgeverything.end_member(%(member)s::bigint, false), pgeverything.wake_readers()::text;

-- name: claim
-- Take deliveries; see the function.
select c.subscription, c.state, c.next_due, c.position, c.token, c.delivery, c.lane, c.topic, c.key, c.version, c.type,
       c.data, c.headers, c.recorded_at
from pgeverything.claim_deliveries(%(member)s::bigint, %(subscriptions)s::bigint[], %(most)s::integer[]) c;

-- name: acknowledge
-- End deliveries; returns the places of the accepted ones, and how many others have become due by it.
select a.accepted, a.freed
from pgeverything.acknowledge(%(subscriptions)s::bigint[], %(positions)s::bigint[], %(tokens)s::bigint[]) a;

-- name: touch
-- Fail when somebody is changing a delivery.
select from pgeverything.deliveries d
where d.subscription = %(subscription)s::bigint and d.position = %(position)s::bigint
for update nowait;

-- name: put_back
-- End the holding of one delivery without its being done.
select pgeverything.put_back(
  subscription => %(subscription)s::bigint, "position" => %(position)s::bigint, token => %(token)s::bigint,
  delay => %(delay)s::double precision, failed => %(failed)s::integer, delivered => %(delivered)s::integer, reason => %(reason)s::text,
  fingerprint => %(fingerprint)s::text, error => %(error)s::text::jsonb);

-- name: gap
-- What retention has dropped above the cursor of a subscription.
select s.name, s.claimed, r.dropped
from pgeverything.subscriptions s, pgeverything.event_retention r
where s.id = %(subscription)s::bigint;

-- name: open
-- Whether these subscriptions hold a delivery that is in flight, due, or behind one that is.
-- plan: fresh
select exists (
  select from pgeverything.deliveries d
  join pgeverything.subscriptions s on s.id = d.subscription
  where d.subscription = any (%(subscriptions)s::bigint[]) and d.dead_id is null
    and (d.member is not null or not s.paused and s.stopped is null and d.due_at <= clock_timestamp()));

-- name: list
-- Subscriptions by name, with what they hold.
-- plan: fresh
select s.id, s.name, s.pattern, s.claimed, s.ordered, s.max_deliveries, s.on_dead, s.paused, s.stopped, s.created_at,
       h.in_flight, h.retrying, h.waiting, h.dead,
       (select count(*) from pgeverything.members m where s.id = any (m.subscriptions) and not m.lost),
       s.claimed < (select r.dropped from pgeverything.event_retention r)
from pgeverything.subscriptions s
cross join lateral (
  select count(d.member) as in_flight, count(d.due_at) as retrying, count(d.dead_id) as dead,
         count(*) - count(d.member) - count(d.due_at) - count(d.dead_id) as waiting
  from pgeverything.deliveries d where d.subscription = s.id) h
where %(name)s::text is null or s.name = %(name)s::text
order by s.name;

-- name: backlog
-- How many events of a subscription are above its cursor and up to a position, and when the oldest of what is not done
-- was recorded, in seconds ago.
-- plan: fresh
with s as materialized (select c.* from pgeverything.subscriptions c where c.id = %(subscription)s::bigint),
topic as materialized (
  select pgeverything.subscribed_topics(s.topic, s.low, s.high, s.regex) as ids from s),
ahead as (
  select count(*) as events, min(e.position) as first
  from pgeverything.events e
  where e.position > (select s.claimed from s) and e.position <= %(upto)s::bigint
    and ((select t.ids from topic t) is null or e.topic_id = any ((select t.ids from topic t)::integer[]))),
oldest as (
  select least((select a.first from ahead a), (
    select d.position from pgeverything.deliveries d
    where d.subscription = %(subscription)s::bigint and d.dead_id is null order by d.position limit 1)) as position)
select a.events, (
  select extract(epoch from clock_timestamp() - e.recorded_at)::double precision
  from pgeverything.events e where e.position = (select o.position from oldest o))
from ahead a;

-- name: seek
-- Move the cursor of a subscription; returns it, or null.
select pgeverything.seek(%(name)s::text, %(start)s::text, %(at)s::timestamptz);

-- name: pause
-- Hand out nothing more.
update pgeverything.subscriptions s set paused = true where s.name = %(name)s::text returning s.id;

-- name: resume
-- Go on.
select pgeverything.resume_subscription(%(name)s::text);

-- name: delete
-- Delete a subscription with all it holds; returns whether there was one.
select pgeverything.delete_subscription(%(name)s::text);

-- name: orphans
-- Put back what a member holds and is not among these: the answer to its claim was lost with its connection. Not what is
-- being acknowledged in a transaction, which may be open in the thread that asks.
-- plan: fresh
select count(pgeverything.put_back(o.subscription, o.position, o.token))
from (
  select d.subscription, d.position, d.token from pgeverything.deliveries d
  where d.member = %(member)s::bigint and not exists (
    select from unnest(%(subscriptions)s::bigint[], %(positions)s::bigint[], %(tokens)s::bigint[])
      g (subscription, position, token)
    where g.subscription = d.subscription and g.position = d.position and g.token = d.token)
  order by d.subscription, d.position
  for update of d skip locked) o;
