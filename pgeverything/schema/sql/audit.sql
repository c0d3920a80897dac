-- name: track
-- Begin to track a table, or change how; no row when there is no such table.
select pgeverything.audit_track(g.relation, %(exclude)s::text[], %(mask)s::text[], %(personal)s::text[], %(require_actor)s::boolean,
                                %(bulk)s::boolean)
from (select to_regclass(%(table)s::text)::oid as relation) g
where g.relation is not null;

-- name: untrack
-- End tracking; whether it was. No row when there is no such table.
select pgeverything.audit_untrack(g.relation)
from (select to_regclass(%(table)s::text)::oid as relation) g
where g.relation is not null;

-- name: tracked
-- The tables that are tracked, with what was said when tracking began and what became of the columns since.
-- plan: fresh
select t.name, t.subject, t.required, pgeverything.audit_key_names(t.relation, t.key_numbers, t.key_names),
       pgeverything.audit_hidden(t.relation, t.excluded), pgeverything.audit_hidden(t.relation, t.masked),
       pgeverything.audit_hidden(t.relation, t.personal), t.key_names, cardinality(t.key_numbers),
       (select n.new::text from pgeverything.audit_entries n
        where n.subject = t.subject and n.key is null and n.action = 'track' order by n.id desc limit 1),
       (select jsonb_object_agg(a.attnum, a.attname)::text from pg_attribute a
        where a.attrelid = t.relation and a.attname = any (pgeverything.audit_hidden(t.relation, t.excluded || t.masked || t.personal))),
       (select array_agg(a.attname::text order by k.place) from pg_index i
        cross join lateral unnest(i.indkey) with ordinality k (number, place)
        join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.number
        where i.indrelid = t.relation and i.indisprimary and k.place <= i.indnkeyatts),
       t.relation::bigint, t.bulk, t.enabled, t.truncates,
       t.bulk and exists (select from pg_inherits i where i.inhrelid = t.relation),
       exists (select from pg_inherits i join pg_class c on c.oid = i.inhrelid
               where i.inhparent = t.relation and not c.relispartition
                 and not exists (select from pgeverything.audit_tables(c.oid) h where h.tracked))
from pgeverything.audit_tables() t;

-- name: resolve
-- What the trail calls a table and one of its keys; no row when there is no such table, or none that this role may look at.
-- plan: fresh
select t.subject, t.tracked, t.relation::bigint,
       case when %(key)s::jsonb is not null then
         pgeverything.audit_key_of(t.relation, case when t.tracked then pgeverything.audit_key_names(t.relation, t.key_numbers, t.key_names) end,
                                   %(key)s::jsonb) end
from (select case when cardinality(i.parts) = 1 or exists (
                    select from pg_namespace n where n.nspname = i.parts[1] and has_schema_privilege(n.oid, 'usage'))
                  then to_regclass(%(table)s::text)::oid end as relation
      from (select parse_ident(%(table)s::text) as parts) i) g
cross join lateral pgeverything.audit_tables(g.relation) t
where g.relation is not null;

-- name: context
-- Say who acts and why, until the transaction ends.
select set_config('pgeverything_audit.actor',
                  coalesce(%(actor)s::text, current_setting('pgeverything_audit.actor', true), ''), true),
       set_config('pgeverything_audit.reason',
                  coalesce(%(reason)s::text, current_setting('pgeverything_audit.reason', true), ''), true),
       set_config('pgeverything_audit.context',
                  (coalesce(nullif(current_setting('pgeverything_audit.context', true), ''), '{}')::jsonb
                   || %(more)s::jsonb)::text, true);

-- name: context_holds
-- Whether it is still known in the next statement: in autocommit it is not.
select coalesce(current_setting('pgeverything_audit.context', true), '') <> '';

-- name: record
-- Add an entry about what is no row.
select e.id, e.at, e.transaction_id, e.action, e.subject, e.key, e.other_key, e.old::text, e.new::text, e.masked,
       e.digests::text, e.personal::text, e.actor, e.reason, e.context::text, e.session_role, e.role
from pgeverything.audit_record(%(action)s::text, %(subject)s::text, %(data)s::jsonb) e;

-- name: get
-- One entry.
select e.id, e.at, e.transaction_id, e.action, e.subject, e.key, e.other_key, e.old::text, e.new::text, e.masked,
       e.digests::text, e.personal::text, e.actor, e.reason, e.context::text, e.session_role, e.role
from pgeverything.audit_entries e
where e.id = %(id)s::bigint;

-- name: history
-- The next entries that fit, oldest first. The far bound is null where there is none: without statistics Postgres takes a
-- range for a few rows, and would read all of it to sort them.
-- plan: fresh
select e.id, e.at, e.transaction_id, e.action, e.subject, e.key, e.other_key, e.old::text, e.new::text, e.masked,
       e.digests::text, e.personal::text, e.actor, e.reason, e.context::text, e.session_role, e.role
from pgeverything.audit_entries e
where e.id > %(low)s::bigint and (%(high)s::bigint is null or e.id < %(high)s::bigint)
  and (%(subject)s::text is null or e.subject = %(subject)s::text)
  and (%(key)s::text is null or e.key = %(key)s::text)
  and (%(actor)s::text is null or e.actor = %(actor)s::text)
  and (%(action)s::text is null or e.action = %(action)s::text)
  and (%(since)s::timestamptz is null or e.at >= %(since)s::timestamptz)
  and (%(until)s::timestamptz is null or e.at < %(until)s::timestamptz)
order by e.id
limit %(limit)s::integer;

-- name: history_back
-- The same, newest first.
-- plan: fresh
select e.id, e.at, e.transaction_id, e.action, e.subject, e.key, e.other_key, e.old::text, e.new::text, e.masked,
       e.digests::text, e.personal::text, e.actor, e.reason, e.context::text, e.session_role, e.role
from pgeverything.audit_entries e
where e.id < %(high)s::bigint and (%(low)s::bigint is null or e.id > %(low)s::bigint)
  and (%(subject)s::text is null or e.subject = %(subject)s::text)
  and (%(key)s::text is null or e.key = %(key)s::text)
  and (%(actor)s::text is null or e.actor = %(actor)s::text)
  and (%(action)s::text is null or e.action = %(action)s::text)
  and (%(since)s::timestamptz is null or e.at >= %(since)s::timestamptz)
  and (%(until)s::timestamptz is null or e.at < %(until)s::timestamptz)
order by e.id desc
limit %(limit)s::integer;

-- name: id_at
-- Above which id every entry is later than a time, or nearly.
select pgeverything.audit_id_at(%(at)s::timestamptz);

-- name: gap
-- Why the rows of a table at a time cannot be told; null when they can.
select pgeverything.audit_gap(%(subject)s::text, %(at)s::timestamptz);

-- name: as_of
-- The rows of a table as they were.
-- plan: fresh
select r::text from pgeverything.audit_as_of(%(relation)s::bigint::oid, %(at)s::timestamptz, %(key)s::jsonb) r;

-- name: revert
-- Undo the change of an entry: the entry of that, or why not.
select r.made, r.problem from pgeverything.audit_revert(%(id)s::bigint) r;

-- name: seal
-- Seal what can be: how many blocks, and whether there is more.
select s.blocks, s.more from pgeverything.audit_seal(%(most)s::integer) s;

-- name: blocks
-- The next blocks.
select b.number, b.month::text, b.first_id, b.last_id, b.entries, b.root, b.hash, b.ids, b.leaves
from pgeverything.audit_blocks b
where b.number > %(after)s::bigint
order by b.number
limit %(limit)s::integer;

-- name: sealed
-- The columns of entries that are sealed, as text, and those that are not.
-- plan: fresh
select e.id, (extract(epoch from e.at) * 1000000)::bigint::text, e.transaction_id::text, e.action, e.subject, e.key,
       e.other_key, e.old::text, e.new::text, to_jsonb(e.masked)::text, e.digests::text, e.actor, e.reason, e.context::text,
       e.session_role, e.role,
       (select jsonb_object_agg(s.key, case when s.key = 'salt' then s.value else (
          select jsonb_object_agg(c.key, c.value::text) from jsonb_each(s.value) c) end)
        from jsonb_each(e.personal) s)::text
from pgeverything.audit_entries e
where e.id > %(low)s::bigint and e.id <= %(high)s::bigint
order by e.id
limit %(limit)s::integer;

-- name: unsealed
-- How many entries there are above the last block, of those how many counted at most, and the month from which on entries are kept.
select (select count(*) from (
          select from pgeverything.audit_entries e
          where e.id > coalesce((select max(b.last_id) from pgeverything.audit_blocks b), 0) limit 100000) u),
       (select s.dropped::text from pgeverything.audit_sealing s);

-- name: head
-- The last block.
select b.number, b.hash, b.last_id, b.sealed_at from pgeverything.audit_blocks b order by b.number desc limit 1;

-- name: erase
-- Erase the personal values of a row's entries.
select pgeverything.audit_erase(%(subject)s::text, %(key)s::text);

-- name: drop
-- Drop whole months of sealed entries.
select pgeverything.audit_drop(%(before)s::timestamptz);

-- name: partitions
-- Create the partitions of the next months.
select pgeverything.audit_partitions();
