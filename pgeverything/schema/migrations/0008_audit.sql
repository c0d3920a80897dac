-- The audit trail: who changed what, when and why, for any table.
--
-- A trigger writes an entry for every change of a tracked table, whoever makes it and however. Entries are only ever
-- added, by functions with the rights of the schema's owner; nobody else may write the table. What the owner himself
-- changes behind that is what the seal is for: see `audit_seal`.

create sequence pgeverything.audit_seq cache 1;  -- CACHE must stay 1: the order of one row's entries is that of their ids

create table pgeverything.audit_entries (
  id             bigint not null,
  at             timestamptz not null default clock_timestamp(),
  transaction_id bigint not null default pg_current_xact_id()::text::bigint,
  action         text not null,
  subject        text collate "C" not null,
  key            text collate "C",
  other_key      text collate "C",
  old            jsonb,
  new            jsonb,
  masked         text[],
  digests        jsonb,
  personal       jsonb,
  actor          text default nullif(current_setting('pgeverything_audit.actor', true), ''),
  reason         text default nullif(current_setting('pgeverything_audit.reason', true), ''),
  context        jsonb default nullif(current_setting('pgeverything_audit.context', true), '')::jsonb,
  session_role   text not null default session_user,
  role           text not null default case current_setting('role') when 'none' then session_user else current_setting('role') end
) partition by range (at);
comment on column pgeverything.audit_entries.action is 'insert, update, delete or truncate of a row; anything else was recorded by the application';
comment on column pgeverything.audit_entries.subject is 'the table, as it was called when tracking began; or what a record is about';
comment on column pgeverything.audit_entries.key is 'the primary key''s values as a JSON array';
comment on column pgeverything.audit_entries.other_key is 'set where an update changed the key: it has an entry for each of the two';
comment on column pgeverything.audit_entries.old is 'of an update only the columns that it changed; null where the row began';
comment on column pgeverything.audit_entries.new is 'null where the row ended; of a record, its data';
comment on column pgeverything.audit_entries.masked is 'columns that changed and whose values are not told';
comment on column pgeverything.audit_entries.digests is 'of the values in `personal`, which can be erased while these stay';
comment on column pgeverything.audit_entries.session_role is 'who logged in';
comment on column pgeverything.audit_entries.role is 'whom SET ROLE made of it';
create index audit_entries_id on pgeverything.audit_entries (id);
create index audit_entries_key on pgeverything.audit_entries (subject, key, id);
-- Transactions come in order, near enough: a few pages of ranges find one, and an insert pays next to nothing.
create index audit_entries_transaction on pgeverything.audit_entries using brin (transaction_id);

-- Entries of months without a partition of their own; stays empty while a worker runs at least once a quarter.
create table pgeverything.audit_entries_default partition of pgeverything.audit_entries default;

-- Entries that are sealed: `root` is the Merkle root of their hashes, and each block's hash covers the one before it.
create table pgeverything.audit_blocks (
  number   bigint primary key,
  month    date not null,
  first_id bigint not null,
  last_id  bigint not null,
  entries  integer not null,
  sealed_at timestamptz not null,
  root     bytea not null,
  hash     bytea not null,
  ids      bigint[],
  leaves   bytea
);
comment on column pgeverything.audit_blocks.month is 'of all its entries: they are dropped together';
comment on column pgeverything.audit_blocks.leaves is 'the hash of each of `ids`, 32 bytes each, to tell which one was changed; null when they were dropped';

-- One row: how far entries can be sealed, and where they will be able to be once older transactions have ended.
create table pgeverything.audit_sealing (
  single      boolean primary key default true check (single),
  horizon     bigint not null default 0,
  pending_id  bigint,
  pending_xid bigint,
  dropped     date
);
comment on column pgeverything.audit_sealing.horizon is 'no entry will appear at or below it';
comment on column pgeverything.audit_sealing.dropped is 'months before this one were dropped by retention';
insert into pgeverything.audit_sealing default values;


-- Write ----------------------------------------------------------------------------------------------------------

-- Values are written as JSON, and what JSON has no form for as text. The settings that decide about that text are the
-- same for every session here, so that a key has one spelling.

-- The table that `track` was told of: of a partition, the first above it that has a trigger of its own, which is the
-- partition itself when it was tracked before it became one. The numbers of its columns are those in the arguments.
create function pgeverything.audit_home(relation oid) returns oid
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if pg_partition_root(relation) is null then
    return relation;
  end if;
  return (
    select p.relid
    from pg_partition_ancestors(relation) with ordinality p (relid, place)
    where exists (
      select from pg_trigger t
      where t.tgrelid = p.relid and t.tgfoid in ('pgeverything.audit_row'::regproc, 'pgeverything.audit_bulk'::regproc)
        and t.tgparentid = 0)
    order by p.place limit 1);
end $$;

-- The names of the key's columns: those that it had, while there are columns of these names, else by their numbers, which a
-- rename does not change.
create function pgeverything.audit_key_names(relation oid, numbers smallint[], names text[]) returns text[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  home constant oid := pgeverything.audit_home(relation);
begin
  if not exists (
      select from unnest(names) n (name)
      where not exists (select from pg_attribute a where a.attrelid = home and a.attname = n.name and not a.attisdropped)) then
    return names;
  end if;
  return array(
    select a.attname::text from pg_attribute a
    where a.attrelid = home and a.attnum = any (numbers) and not a.attisdropped
    order by array_position(numbers, a.attnum));
end $$;

-- The names of columns that are hidden, of which `columns` has the name that each had and its number: whatever has the one or
-- the other. A rename changes the name. A dump changes the number, where a column before it had been dropped.
create function pgeverything.audit_hidden(relation oid, columns jsonb) returns text[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  home oid;
begin
  if columns = '{}' then
    return '{}';
  end if;
  home := pgeverything.audit_home(relation);
  return array(
    select a.attname::text from pg_attribute a
    where a.attrelid = home and a.attnum > 0 and not a.attisdropped
      and (columns ? a.attname or exists (select from jsonb_each_text(columns) c where c.value::smallint = a.attnum))
    order by a.attnum);
end $$;

-- The key of a row: its values as a JSON array.
create function pgeverything.audit_key("row" jsonb, names text[]) returns text
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  return (select jsonb_agg("row" -> n order by place) from unnest(names) with ordinality k (n, place));
end $$;

-- Salted hashes of {"old": {column: value}, "new": {...}}, which tell nothing once the salt is gone.
create function pgeverything.audit_digests(given jsonb, salt text) returns jsonb
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  return (
    select jsonb_object_agg(side.key, (
      select jsonb_object_agg(c.key, encode(sha256(convert_to(
        concat_ws(':', salt, side.key, c.key, c.value::text), 'UTF8')), 'hex'))
      from jsonb_each(side.value) c))
    from jsonb_each(given) side);
end $$;

-- Adds one entry and returns its id. `masked` and `personal` are columns that are taken out of `old` and `new`: of the
-- first only the names are kept, the second are put where they can be erased.
create function pgeverything.audit_write(
  action text, subject text, key text, other_key text, old jsonb, new jsonb,
  masked text[] default '{}', personal text[] default '{}')
returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  writer constant xid8 := pg_current_xact_id();  -- before the id, which audit_horizon() relies on
  id     constant bigint := nextval('pgeverything.audit_seq');
  salt   constant text := gen_random_uuid();
  apart  jsonb;
begin
  if cardinality(personal) > 0 then
    select jsonb_object_agg(side.name, side.found) into apart
    from (select s.name, (select jsonb_object_agg(p, s.found -> p) from unnest(personal) p where s.found ? p) as found
          from (values ('old', old), ('new', new)) s (name, found)) side
    where side.found is not null;
  end if;
  insert into pgeverything.audit_entries (id, transaction_id, action, subject, key, other_key, old, new, masked, digests, personal)
  values (id, writer::text::bigint, action, subject, key, other_key, old - (masked || personal), new - (masked || personal),
          (select array_agg(m order by m) from unnest(masked) m where old ? m or new ? m),
          pgeverything.audit_digests(apart, salt), apart || jsonb_build_object('salt', salt));
  return id;
end $$;

-- Refuses a change without an actor.
create function pgeverything.audit_require(subject text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  if coalesce(current_setting('pgeverything_audit.actor', true), '') = '' then
    raise exception 'a change of % needs an actor', subject using errcode = 'PGE20',
      hint = 'Say who it is: tx.audit.context(actor=...), or set_config(''pgeverything_audit.actor'', ..., true).';
  end if;
end $$;

-- The triggers of tracked tables. Their arguments are the name of the table in the trail, 'required' when changes need an
-- actor, the columns that are excluded, masked and personal, each with its number, and the numbers and the names of the key's.
--
-- By row: they see what is written to a partition by its name, and run before other triggers change the same rows again,
-- because they are named so.
-- They have the rights of the schema's owner, who alone may write the trail. `session_user` and `role` still tell who
-- it is: nobody can set `role` to a role that he may not take on.
--
-- A table with a key of one column, under its old name, and with nothing to hide goes the short way, which costs half.
create function pgeverything.audit_row() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC' set datestyle = 'ISO, YMD' set intervalstyle = 'postgres' set bytea_output = 'hex' set extra_float_digits = 1
as $$
declare
  found jsonb;
  names text[];
begin
  if tg_argv[1] = 'required' then
    perform pgeverything.audit_require(tg_argv[0]);
  end if;
  found := case tg_op when 'INSERT' then to_jsonb(new) else to_jsonb(old) end;
  if tg_nargs = 7 and tg_argv[2:4] = array['{}', '{}', '{}'] and found ? tg_argv[6] then
    insert into pgeverything.audit_entries (id, action, subject, key, old, new)
    values (nextval('pgeverything.audit_seq'), lower(tg_op), tg_argv[0], jsonb_build_array(found -> tg_argv[6])::text,
            case tg_op when 'DELETE' then found end, case tg_op when 'INSERT' then found end);
    return null;
  end if;
  names := tg_argv[6:];
  if not found ?& names then  -- renamed
    names := pgeverything.audit_key_names(tg_relid, tg_argv[5]::smallint[], names);
  end if;
  found := found - pgeverything.audit_hidden(tg_relid, tg_argv[2]::jsonb);
  perform pgeverything.audit_write(
    lower(tg_op), tg_argv[0], pgeverything.audit_key(found, names), null,
    case tg_op when 'DELETE' then found end, case tg_op when 'INSERT' then found end,
    pgeverything.audit_hidden(tg_relid, tg_argv[3]::jsonb), pgeverything.audit_hidden(tg_relid, tg_argv[4]::jsonb));
  return null;
end $$;

create function pgeverything.audit_update() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC' set datestyle = 'ISO, YMD' set intervalstyle = 'postgres' set bytea_output = 'hex' set extra_float_digits = 1
as $$
declare
  before   jsonb;
  after    jsonb;
  same     text[];
  names    text[];
  was      text;
  becomes  text;
  masked   text[];
  personal text[];
begin
  if tg_argv[1] = 'required' then
    perform pgeverything.audit_require(tg_argv[0]);
  end if;
  before := to_jsonb(old);
  after := to_jsonb(new);
  same := array(select c.name from (select jsonb_object_keys(after) as name) c where before -> c.name = after -> c.name);
  if tg_nargs = 7 and tg_argv[2:4] = array['{}', '{}', '{}'] and tg_argv[6] = any (same) and before <> after then
    insert into pgeverything.audit_entries (id, action, subject, key, old, new)
    values (nextval('pgeverything.audit_seq'), 'update', tg_argv[0], jsonb_build_array(after -> tg_argv[6])::text,
            before - same, after - same);
    return null;
  end if;
  names := tg_argv[6:];
  if not after ?& names then  -- renamed
    names := pgeverything.audit_key_names(tg_relid, tg_argv[5]::smallint[], names);
  end if;
  was := pgeverything.audit_key(before, names);
  becomes := pgeverything.audit_key(after, names);
  masked := pgeverything.audit_hidden(tg_relid, tg_argv[3]::jsonb);
  personal := pgeverything.audit_hidden(tg_relid, tg_argv[4]::jsonb);
  names := pgeverything.audit_hidden(tg_relid, tg_argv[2]::jsonb);
  if was <> becomes then  -- the row ends under one key and begins under the other
    names := names || array(select m from unnest(masked) m where m = any (same));
    perform pgeverything.audit_write('update', tg_argv[0], was, becomes, before - names, null, masked, personal);
    perform pgeverything.audit_write('update', tg_argv[0], becomes, was, null, after - names, masked, personal);
  elsif after - (same || names) <> '{}' then
    names := same || names;
    perform pgeverything.audit_write('update', tg_argv[0], becomes, null, before - names, after - names, masked, personal);
  end if;
  return null;
end $$;

-- By which operator columns of a table are equal: that of its primary key, which is not always to be found by its name alone.
create function pgeverything.audit_equals(relation oid, names text[]) returns table (name text, operator text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return query
  select n.name, format('operator(%I.%s)', coalesce(o.home, 'pg_catalog'), coalesce(o.operator, '='))
  from unnest(names) n (name)
  left join (
    select a.attname as name, h.nspname as home, p.oprname as operator
    from pg_index i
    cross join lateral unnest(i.indkey::smallint[], i.indclass::oid[]) k (number, class)
    join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.number
    join pg_opclass c on c.oid = k.class
    join pg_amop m on m.amopfamily = c.opcfamily and m.amoplefttype = c.opcintype and m.amoprighttype = c.opcintype
                   and m.amopstrategy = 3
    join pg_operator p on p.oid = m.amopopr
    join pg_namespace h on h.oid = p.oprnamespace
    where i.indrelid = relation and i.indisprimary) o on o.name = n.name;
end $$;

-- How a bulk trigger compares a column of before_rows o with that of after_rows n: as what it is where equal values are the
-- same value, else as JSON.
create function pgeverything.audit_compares(type oid, name text) returns text
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  if type in ('text'::regtype, 'varchar'::regtype) then
    return format('o.%1$I collate "C" is distinct from n.%1$I collate "C"', name);
  elsif type in ('smallint'::regtype, 'integer'::regtype, 'bigint'::regtype, 'numeric'::regtype, 'real'::regtype,
                 'double precision'::regtype, 'boolean'::regtype, 'uuid'::regtype, 'date'::regtype, 'timestamp'::regtype,
                 'timestamptz'::regtype, 'bytea'::regtype, 'jsonb'::regtype) then
    return format('o.%1$I is distinct from n.%1$I', name);
  end if;
  return format('to_jsonb(o.%1$I) is distinct from to_jsonb(n.%1$I)', name);
end $$;

-- The same by statement, for tables that are changed by thousands of rows at a time; nothing can be masked there. What it
-- runs is made from the columns that the table has at that moment, which costs half a millisecond, and compares them as
-- what they are, which makes a row three times as cheap as above.
-- Rows are paired by their key. A key that is gone and one that is new are told as a row that changed its key; which
-- belongs to which is taken from their order.
create function pgeverything.audit_bulk() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC' set datestyle = 'ISO, YMD' set intervalstyle = 'postgres' set bytea_output = 'hex' set extra_float_digits = 1
set jit = off
as $$
declare
  excluded constant text[] := pgeverything.audit_hidden(tg_relid, tg_argv[2]::jsonb);
  keys     constant text[] := pgeverything.audit_key_names(tg_relid, tg_argv[5]::smallint[], tg_argv[6:]);
  was      text;  -- SQL: the key of o, the key of n, and whether they are one
  becomes  text;
  same     text;
  changes  text;
  old_part text;
  new_part text;
  part_of  constant text := 'case when %1$s then jsonb_build_object(%2$L, %3$s.%2$I) else ''{}''::jsonb end';
  moved    boolean := false;
  changed  boolean;
  parts    text[];
  part     text;
begin
  if tg_op = 'DELETE' then
    changed := exists (select from before_rows);
  else
    changed := exists (select from after_rows);
  end if;
  if not changed then
    return null;
  end if;
  if tg_argv[1] = 'required' then
    perform pgeverything.audit_require(tg_argv[0]);
  end if;
  select format('jsonb_build_array(%s)::text', string_agg(format('o.%I', k), ', ')),
         format('jsonb_build_array(%s)::text', string_agg(format('n.%I', k), ', ')),
         (select coalesce(string_agg(format('o.%1$I %2$s n.%1$I', e.name, e.operator), ' and '), 'false')
          from pgeverything.audit_equals(tg_relid, keys) e)
  into was, becomes, same from unnest(keys) k;

  if tg_op = 'INSERT' then
    parts := array[format('select %s, null, null::jsonb, to_jsonb(n.*) - $3 from after_rows n', becomes)];
  elsif tg_op = 'DELETE' then
    parts := array[format('select %s, null, to_jsonb(o.*) - $3, null::jsonb from before_rows o', was)];
  else
    select coalesce(string_agg(c.differs, ' or '), 'false'),
           coalesce(string_agg(format(part_of, c.differs, c.name, 'o'), ' || '), 'null::jsonb'),
           coalesce(string_agg(format(part_of, c.differs, c.name, 'n'), ' || '), 'null::jsonb')
    into changes, old_part, new_part
    from (select a.attname as name, pgeverything.audit_compares(a.atttypid, a.attname) as differs
          from pg_attribute a
          where a.attrelid = tg_relid and a.attnum > 0 and not a.attisdropped and a.attgenerated <> 'v'
            and a.attname <> all (excluded)
          order by a.attnum) c;
    execute format('select exists (select from after_rows n where not exists (select from before_rows o where %s))', same)
    into moved;
    parts := array[format('select %s, null, %s, %s from before_rows o join after_rows n on %s where %s',
                          becomes, old_part, new_part, same, changes)];
    if moved then
      parts := parts || format(
        'with gone as (select row_number() over () as place, %1$s as key, to_jsonb(o.*) - $3 as found from before_rows o
                       where not exists (select from after_rows n where %3$s)),
              came as (select row_number() over () as place, %2$s as key, to_jsonb(n.*) - $3 as found from after_rows n
                       where not exists (select from before_rows o where %3$s))
         select g.key, c.key, g.found, null::jsonb from gone g join came c on c.place = g.place
         union all
         select c.key, g.key, null, c.found from gone g join came c on c.place = g.place', was, becomes, same);
    end if;
  end if;

  foreach part in array parts loop
    execute format(
      'insert into %s.audit_entries (id, action, subject, key, other_key, old, new)
       select nextval($4), $1, $2, p.key, p.other_key, p.old, p.new
       from (%s) p (key, other_key, old, new)', quote_ident('pgeverything'), part)
    using lower(tg_op), tg_argv[0], excluded, 'pgeverything.audit_seq'::regclass;
  end loop;
  return null;
end $$;

-- Before a TRUNCATE: an entry for every row, and one for the statement. Of a partitioned table the trigger is on the
-- root and on each partition; the root's sees to partitions that were attached later and have none.
-- It reads the table as the schema's owner, with whom row security must not interfere.
create function pgeverything.audit_truncate() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC' set datestyle = 'ISO, YMD' set intervalstyle = 'postgres' set bytea_output = 'hex' set extra_float_digits = 1
set row_security = off
as $$
declare
  home   text := quote_ident('pgeverything');
  tables regclass[] := array[tg_relid];
  one    regclass;
  most   bigint;
begin
  if tg_argv[1] = 'required' then
    perform pgeverything.audit_require(tg_argv[0]);
  end if;
  if exists (select from pg_class c where c.oid = tg_relid and c.relkind = 'p') then
    tables := array(
      select t.relid from pg_partition_tree(tg_relid) t
      where t.isleaf and not exists (
        select from pg_trigger g where g.tgrelid = t.relid and g.tgfoid = 'pgeverything.audit_truncate'::regproc));
  end if;
  foreach one in array tables loop
    execute format(
      'select count(%s.audit_write(''truncate'', $1, %s.audit_key(r.r, $2), null, r.r - $3, null, $4, $5))
       from (select to_jsonb(t.*) as r from only %s t) r', home, home, one)
    into most
    using tg_argv[0], pgeverything.audit_key_names(tg_relid, tg_argv[5]::smallint[], tg_argv[6:]),
          pgeverything.audit_hidden(tg_relid, tg_argv[2]::jsonb), pgeverything.audit_hidden(tg_relid, tg_argv[3]::jsonb),
          pgeverything.audit_hidden(tg_relid, tg_argv[4]::jsonb);
    perform pgeverything.audit_write('truncate', tg_argv[0], null, null, null,
                                     jsonb_build_object('table', one::text, 'rows', most));
  end loop;
  return null;
end $$;

-- Records what is no row: a login, an export. `data` is any JSON. Returns the entry.
create function pgeverything.audit_record(action text, subject text, data jsonb default null)
returns pgeverything.audit_entries
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  made  bigint;
  entry pgeverything.audit_entries;
begin
  if action in ('insert', 'update', 'delete', 'truncate', 'track', 'untrack', 'erase', 'drop') then
    raise exception 'the action % is written by the trail itself', action using errcode = 'invalid_parameter_value';
  end if;
  made := pgeverything.audit_write(action, subject, null, null, null, data);
  select e.* into entry from pgeverything.audit_entries e where e.id = made;
  return entry;
end $$;


-- Track ------------------------------------------------------------------------------------------------------------

-- The arguments of a trigger, from the catalog, which keeps them with a zero byte after each; in hexadecimal.
create function pgeverything.audit_arguments(given text) returns text[]
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  return array(
    select convert_from(decode(a, 'hex'), getdatabaseencoding())
    from regexp_matches(given, '((?:(?!00)..)*)00', 'g') with ordinality m (found, place), unnest(m.found) a
    order by m.place);
end $$;

-- What tracking there is: of one table, or of all. `subject` is what the trail calls a table; of one that is not
-- tracked, what it would.
create function pgeverything.audit_tables(only_this oid default null)
returns table (relation oid, subject text, name text, tracked boolean, required boolean, excluded jsonb, masked jsonb,
               personal jsonb, key_numbers smallint[], key_names text[], bulk boolean, enabled boolean, truncates boolean)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return query
  select c.oid, coalesce(a.args[1], format('%I.%I', n.nspname, c.relname)), format('%I.%I', n.nspname, c.relname),
         a.args is not null, a.args[2] = 'required', a.args[3]::jsonb, a.args[4]::jsonb, a.args[5]::jsonb,
         a.args[6]::smallint[], a.args[7:], a.bulk,
         a.triggers = case when a.bulk then 3 else 2 end
         and exists (
           select from pg_trigger t where t.tgrelid = c.oid and t.tgfoid = 'pgeverything.audit_truncate'::regproc)
         and not exists (  -- one of its own that is disabled, or one of a partition
           select from pg_trigger t
           where t.tgrelid in (select c.oid union select p.relid from pg_partition_tree(c.oid) p)
             and t.tgfoid in ('pgeverything.audit_row'::regproc, 'pgeverything.audit_update'::regproc,
                              'pgeverything.audit_bulk'::regproc, 'pgeverything.audit_truncate'::regproc)
             and t.tgenabled not in ('O', 'A')),
         not exists (  -- a partition that was attached later
           select from pg_partition_tree(c.oid) p
           where p.isleaf and not exists (
             select from pg_trigger t where t.tgrelid = p.relid and t.tgfoid = 'pgeverything.audit_truncate'::regproc))
  from pg_class c
  join pg_namespace n on n.oid = c.relnamespace
  left join (
    select t.tgrelid, pgeverything.audit_arguments(min(encode(t.tgargs, 'hex'))) as args,
           bool_and(t.tgfoid = 'pgeverything.audit_bulk'::regproc) as bulk, count(*) as triggers
    from pg_trigger t
    where t.tgfoid in ('pgeverything.audit_row'::regproc, 'pgeverything.audit_update'::regproc, 'pgeverything.audit_bulk'::regproc) and t.tgparentid = 0
    group by t.tgrelid) a on a.tgrelid = c.oid
  where c.oid = only_this or (only_this is null and a.args is not null)
  order by 2;
end $$;

-- Adds an entry about tracking. In SQL of its own because it has the owner's rights, which the rest must not have.
create function pgeverything.audit_note(action text, subject text, data jsonb) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if action not in ('track', 'untrack') then
    raise exception 'a note is about tracking, not about %', action using errcode = 'invalid_parameter_value';
  end if;
  return pgeverything.audit_write(action, subject, null, null, null, data);
end $$;

-- Begins to track a table, or changes how; returns what the trail calls it. Runs with the caller's rights: he has to own
-- the table.
create function pgeverything.audit_track(
  relation oid, exclude text[] default '{}', mask text[] default '{}', personal text[] default '{}',
  require_actor boolean default false, bulk boolean default false)
returns text
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  home    text := quote_ident('pgeverything');
  keeper  constant oid := (select c.relowner from pg_class c where c.oid = 'pgeverything.audit_entries'::regclass);
  target  record;
  keys    smallint[];
  names   text[];
  unknown text;
  args    text;
  leaf    regclass;
begin
  select t.*, c.relkind, c.relnamespace, c.relispartition, c.relpersistence into target
  from pgeverything.audit_tables(relation) t join pg_class c on c.oid = t.relation;
  if not found or target.relkind not in ('r', 'p') then
    raise exception 'what is to be tracked must be a table' using errcode = 'PGE21';
  elsif target.relispartition then
    raise exception '% is a partition', target.name using errcode = 'PGE21', hint = 'Track the table that it is a part of.';
  elsif target.relnamespace = 'pgeverything'::regnamespace or target.relnamespace = 'pg_catalog'::regnamespace then
    raise exception '% is not a table of yours', target.name using errcode = 'PGE21';
  elsif bulk and (target.relkind = 'p' or cardinality(mask || personal) > 0) then
    raise exception '% cannot be tracked in bulk: that is for tables without partitions, and nothing can be masked or personal',
      target.name using errcode = 'PGE21';
  elsif target.relpersistence = 't' then
    raise exception '% is temporary: nobody could look up later what its rows were', target.name using errcode = 'PGE21';
  end if;
  select array_agg(k.number order by k.place), array_agg(a.attname::text order by k.place) into keys, names
  from pg_index i cross join lateral unnest(i.indkey) with ordinality k (number, place)
  join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.number
  where i.indrelid = target.relation and i.indisprimary and k.place <= i.indnkeyatts;
  if keys is null then
    raise exception '% has no primary key, so its rows have no names', target.name using errcode = 'PGE21',
      hint = 'Add one: alter table ... add column id bigint generated always as identity primary key.';
  end if;
  select c into unknown from unnest(exclude || mask || personal) c
  where not exists (select from pg_attribute a where a.attrelid = target.relation and a.attname = c and a.attnum > 0 and not a.attisdropped);
  if found then
    raise exception '% has no column %', target.name, quote_ident(unknown) using errcode = 'PGE21';
  end if;
  select c into unknown from unnest(exclude || mask || personal) c where c = any (names);
  if found then
    raise exception 'column % belongs to the key of %, which every entry has', quote_ident(unknown), target.name
      using errcode = 'PGE21', hint = 'Use a key that may be told.';
  end if;
  select c into unknown from unnest(exclude || mask || personal) c group by c having count(*) > 1;
  if found then
    raise exception 'column % can be one of excluded, masked and personal, once', quote_ident(unknown) using errcode = 'PGE21';
  end if;
  select t.name into unknown from pgeverything.audit_tables() t
  where t.subject = target.subject and t.relation <> target.relation;
  if found then
    raise exception '% is in the trail under this name', unknown using errcode = 'PGE21',
      hint = 'A table that is tracked keeps its name there when it is renamed. Untrack it first.';
  end if;
  -- To note what a TRUNCATE removes, the trail's owner reads the table.
  if not has_schema_privilege(keeper, target.relnamespace, 'usage') then
    raise exception '% owns the trail and may not use the schema of %', keeper::regrole, target.name using errcode = 'PGE21',
      hint = format('grant usage on schema %s to %s', target.relnamespace::regnamespace, keeper::regrole);
  elsif not has_table_privilege(keeper, target.relation, 'select') then
    execute format('grant select on %s to %s', target.name, keeper::regrole);
  end if;

  perform pgeverything.audit_untrigger(target.relation);
  args := format('%L, %L, %L, %L, %L, %L', target.subject, case when require_actor then 'required' else '' end,
                 pgeverything.audit_numbered(target.relation, exclude), pgeverything.audit_numbered(target.relation, mask),
                 pgeverything.audit_numbered(target.relation, personal), keys)
          || (select string_agg(format(', %L', n), '' order by place) from unnest(names) with ordinality k (n, place));
  if bulk then
    execute format('create trigger "00_pgeverything_audit_insert" after insert on %s referencing new table as after_rows
                    for each statement execute function %s.audit_bulk(%s)', target.name, home, args);
    execute format('create trigger "00_pgeverything_audit_update" after update on %s
                    referencing old table as before_rows new table as after_rows
                    for each statement execute function %s.audit_bulk(%s)', target.name, home, args);
    execute format('create trigger "00_pgeverything_audit_delete" after delete on %s referencing old table as before_rows
                    for each statement execute function %s.audit_bulk(%s)', target.name, home, args);
  else
    execute format('create trigger "00_pgeverything_audit" after insert or delete on %s for each row execute function %s.audit_row(%s)',
                   target.name, home, args);
    execute format('create trigger "00_pgeverything_audit_update" after update on %s for each row
                    when (old.* operator(pg_catalog.*<>) new.*) execute function %s.audit_update(%s)', target.name, home, args);
  end if;
  for leaf in select target.relation union select t.relid from pg_partition_tree(target.relation) t where t.isleaf loop
    execute format('create trigger "00_pgeverything_audit_truncate" before truncate on %s for each statement
                    execute function %s.audit_truncate(%s)', leaf, home, args);
  end loop;
  perform pgeverything.audit_note('track', target.subject, jsonb_build_object(
    'table', target.name, 'key', names, 'exclude', pgeverything.audit_numbered(relation, exclude),
    'mask', pgeverything.audit_numbered(relation, mask), 'personal', pgeverything.audit_numbered(relation, personal),
    'require_actor', require_actor, 'bulk', bulk, 'relation', relation::bigint, 'columns', pgeverything.audit_numbered(relation, array(
      select a.attname::text from pg_attribute a where a.attrelid = relation and a.attnum > 0 and not a.attisdropped)),
    -- whether the trail had everything about this table and by this key: see audit_gap()
    'again', target.tracked and target.enabled and target.key_numbers = keys));
  return target.subject;
end $$;

-- Columns with their numbers, as triggers and notes keep them.
create function pgeverything.audit_numbered(relation oid, names text[]) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return (
    select coalesce(jsonb_object_agg(a.attname, a.attnum), '{}')
    from pg_attribute a where a.attrelid = relation and a.attname = any (names) and not a.attisdropped);
end $$;

-- Drops our triggers on a table and its partitions.
create function pgeverything.audit_untrigger(relation oid) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  trigger record;
begin
  for trigger in
    select t.tgname, t.tgrelid::regclass as on_table
    from pg_trigger t
    where t.tgrelid in (select relation union select p.relid from pg_partition_tree(relation) p) and t.tgparentid = 0
      and t.tgfoid in ('pgeverything.audit_row'::regproc, 'pgeverything.audit_update'::regproc,
                       'pgeverything.audit_bulk'::regproc, 'pgeverything.audit_truncate'::regproc)
  loop
    execute format('drop trigger %I on %s', trigger.tgname, trigger.on_table);
  end loop;
end $$;

-- Ends tracking; returns whether the table was tracked. What the trail has stays.
create function pgeverything.audit_untrack(relation oid) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  target record;
begin
  select t.* into target from pgeverything.audit_tables(relation) t;
  if target.tracked is not true then
    return false;
  end if;
  perform pgeverything.audit_untrigger(relation);
  perform pgeverything.audit_note('untrack', target.subject, jsonb_build_object('table', target.name));
  return true;
end $$;


-- Look back --------------------------------------------------------------------------------------------------------

-- The key of given values, a JSON array or object, in the spelling of the trail; of a table that is gone, as it is.
create function pgeverything.audit_key_of(relation oid, names text[], given jsonb) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC' set datestyle = 'ISO, YMD' set intervalstyle = 'postgres' set bytea_output = 'hex' set extra_float_digits = 1
as $$
declare
  found text;
begin
  if names is null or given is null then
    return given::text;
  end if;
  if jsonb_typeof(given) = 'array' then
    given := (select jsonb_object_agg(coalesce(names[place], '?'), v) from jsonb_array_elements(given) with ordinality g (v, place));
  end if;
  if array(select jsonb_object_keys(given) k order by k) <> array(select n from unnest(names) n order by n) then
    raise exception 'the key is (%)', array_to_string(names, ', ') using errcode = 'invalid_parameter_value';
  end if;
  execute format('select %s.audit_key(to_jsonb(k.*), $2) from jsonb_populate_record(null::%s, $1) k',
                 quote_ident('pgeverything'), relation::regclass)
  into found using given, names;
  return found;
end $$;

-- The condition that a row t of a table has the key that is in a parameter, as an index can look it up.
create function pgeverything.audit_at_key(relation oid, names text[], parameter text) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return (
    select string_agg(format('t.%1$I %2$s (select k.%1$I from jsonb_populate_record(null::%3$s, %4$s) k)',
                             e.name, e.operator, relation::regclass, parameter), ' and ')
    from pgeverything.audit_equals(relation, names) e);
end $$;

-- An id such that every entry above it was made later than `at`, or nearly at the same time. Ids follow times but for
-- writers at the same moment, so this searches as in a sorted list and then steps 10,000 ids back.
create function pgeverything.audit_id_at(at timestamptz) returns bigint
language plpgsql stable
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set jit = off
as $$
declare
  place  bigint := 0;
  above  bigint := coalesce(pg_sequence_last_value('pgeverything.audit_seq'), 0);
  middle bigint;
  entry  record;
begin
  while place < above loop
    middle := place + (above - place) / 2;
    select e.id, e.at into entry from pgeverything.audit_entries e
    where e.id > middle and e.id <= above order by e.id limit 1;
    if entry.at <= audit_id_at.at then
      place := entry.id;
    else
      above := middle;
    end if;
  end loop;
  return greatest(place - 10000, 0);
end $$;

-- Why the rows of a table at a time cannot be told, or null when they can: it was not tracked all the time since, or
-- entries from after it were dropped. To track a table again, with other columns hidden, leaves no gap; to track one that
-- was dropped and created again does, and so does another key.
create function pgeverything.audit_gap(subject text, at timestamptz) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off
as $$
declare
  floor  constant timestamptz := (select s.dropped::timestamp at time zone 'UTC' from pgeverything.audit_sealing s);
  before text;
  since  record;
begin
  if floor > audit_gap.at then
    return format('entries before %s were dropped', floor);
  end if;
  select e.action into before from pgeverything.audit_entries e
  where e.subject = audit_gap.subject and e.key is null and e.action in ('track', 'untrack') and e.at <= audit_gap.at
  order by e.id desc limit 1;
  select e.action, e.at into since from pgeverything.audit_entries e
  where e.subject = audit_gap.subject and e.key is null and e.action in ('track', 'untrack') and e.at > audit_gap.at
    and (e.new ->> 'again' is distinct from 'true' or before is null)
  order by e.id limit 1;
  if since.action = 'untrack' then
    return format('it was not tracked from %s on', since.at);
  elsif before = 'untrack' or since.action = 'track' or (before is null and floor is null) then
    return coalesce(format('it is tracked since %s', since.at), 'it is not tracked');
  end if;
  return null;
end $$;

-- A row as the trail tells it, if all its columns are of today: a value under a name that has gone may be that of a column
-- which has another name now, and whose value of that time would be told wrong.
create function pgeverything.audit_today("row" jsonb, columns text[]) returns jsonb
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  if "row" - columns <> '{}' then
    raise exception 'a column % was renamed or dropped since',
      (select quote_ident(k) from jsonb_object_keys("row" - columns) k order by k limit 1) using errcode = 'PGE23',
      hint = 'history() has what was written under that name.';
  end if;
  return "row";
end $$;

-- Whether a key of the trail is spelled as it would be today: it is not when the type of a key's column has changed.
create function pgeverything.audit_key_fits(relation oid, names text[], key text) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return key = pgeverything.audit_key_of(relation, names, key::jsonb);
exception when data_exception then
  return false;
end $$;

-- The columns of a table whose values are computed when it is read: a trigger does not see them.
create function pgeverything.audit_virtual(relation oid) returns text[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return array(select a.attname::text from pg_attribute a where a.attrelid = relation and a.attnum > 0 and a.attgenerated = 'v');
end $$;

-- The rows of a table as they were, as JSON without the columns that are excluded or masked, or were at some time since.
-- Reads the table with the caller's rights and in his snapshot. `key` asks for one row.
--
-- From each row as it is now, or was when it ended, back through the old values of the updates since: of each column the
-- first old value after that time is the one it had.
create function pgeverything.audit_as_of(relation oid, at timestamptz, key jsonb default null) returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC' set datestyle = 'ISO, YMD' set intervalstyle = 'postgres' set bytea_output = 'hex' set extra_float_digits = 1
as $$
declare
  home    constant text := quote_ident('pgeverything');
  target  record;
  names   text[];
  columns text[];
  hidden  text[];
  said    jsonb;
  only_at text;
  wanted  jsonb;
begin
  select t.*, c.relkind into target
  from pgeverything.audit_tables(relation) t join pg_class c on c.oid = t.relation;
  names := pgeverything.audit_key_names(relation, target.key_numbers, target.key_names);
  columns := array(
    select a.attname::text from pg_attribute a where a.attrelid = relation and a.attnum > 0 and not a.attisdropped);
  hidden := pgeverything.audit_hidden(relation, target.excluded || target.masked)
            || pgeverything.audit_virtual(relation);
  -- What was said to `track` since, and before that time last: columns that were hidden, and those that are gone for sure.
  for said in
    select e.new from pgeverything.audit_entries e
    where e.subject = target.subject and e.key is null and e.action = 'track' and e.id >= coalesce((
      select max(b.id) from pgeverything.audit_entries b
      where b.subject = target.subject and b.key is null and b.action = 'track' and b.at <= audit_as_of.at), 0)
  loop
    hidden := hidden || array(
      select unnest(array[h.key, a.attname::text])
      from jsonb_each_text((said -> 'exclude') || (said -> 'mask')) h
      left join pg_attribute a on a.attrelid = relation and a.attnum = h.value::smallint and not a.attisdropped
      union all
      select c.key from jsonb_each_text(said -> 'columns') c
      join pg_attribute a on a.attrelid = relation and a.attnum = c.value::smallint and a.attisdropped
      where c.key <> all (columns));
  end loop;
  if exists (
    select from (
      select min(e.key) as lowest, max(e.key) as highest from pgeverything.audit_entries e
      where e.subject = target.subject and e.key is not null) k
    where not pgeverything.audit_key_fits(relation, names, k.lowest)
       or not pgeverything.audit_key_fits(relation, names, k.highest))
  and exists (
    select from pgeverything.audit_entries e
    where e.subject = target.subject and e.key is not null and e.at > audit_as_of.at
      and e.id > pgeverything.audit_id_at(audit_as_of.at) and not pgeverything.audit_key_fits(relation, names, e.key))
  then
    raise exception 'the type of its key was changed since' using errcode = 'PGE23',
      hint = 'history() has what was written under the keys of that time.';
  end if;
  only_at := pgeverything.audit_key_of(relation, names, key);
  wanted := (select jsonb_object_agg(names[place], v) from jsonb_array_elements(only_at::jsonb) with ordinality k (v, place));
  return query execute format($q$
    with later as materialized (
      select e.key, e.id, e.old, e.new, e.digests, e.personal
      from %1$s.audit_entries e
      where e.subject = $1 and e.key is not null and ($4 is null or e.key = $4) and e.at > $2
        and ($4 is not null or e.id > %1$s.audit_id_at($2))),
    first as (
      select l.key, min(l.id) as id, min(l.id) filter (where l.new is null) as ended,
             (array_agg(l.old is null order by l.id))[1] as began
      from later l group by l.key),
    ended as (
      select l.key, l.old || coalesce(l.personal -> 'old', '{}') as "row"
      from first f join later l on l.id = f.ended where not f.began),
    undone as (
      select l.key, jsonb_object_agg(c.key, c.value order by l.id desc) as "row"
      from first f
      join later l on l.key = f.key and (f.ended is null or l.id < f.ended)
      cross join lateral jsonb_each(l.old || coalesce(l.personal -> 'old', '{}')) c
      where not f.began
      group by l.key),
    erased as (  -- what it was nobody knows any more
      select l.key, array_agg(distinct d) as columns
      from first f
      join later l on l.key = f.key and (f.ended is null or l.id <= f.ended)
      cross join lateral jsonb_object_keys(l.digests -> 'old') d
      where l.digests is not null and l.personal is null
      group by l.key),
    present as (
      select %1$s.audit_key(r.r, $3) as key, r.r - $5 as "row" from (select to_jsonb(t.*) as r from %2$s t %3$s) r)
    select %1$s.audit_today((coalesce(e."row", p."row") || coalesce(u."row", '{}')) - coalesce(x.columns, '{}') - $5, $7)
    from present p
    full join first f on f.key = p.key
    left join ended e on e.key = f.key
    left join undone u on u.key = f.key
    left join erased x on x.key = f.key
    where f.began is not true and coalesce(e."row", p."row") is not null
      and ($4 is null or coalesce(f.key, p.key) = $4)
    $q$, home, case target.relkind when 'p' then '' else 'only ' end || relation::regclass,
    case when key is not null then 'where ' || pgeverything.audit_at_key(relation, names, '$6') end)
  using target.subject, at, names, only_at, hidden, wanted, columns;
end $$;

-- Undoes the change of an entry, as a change of its own, with the caller's rights. Returns the entry of that, or why it
-- cannot be done: it never overwrites what came later.
create function pgeverything.audit_revert(entry bigint, out made bigint, out problem text)
language plpgsql
set search_path = pg_catalog, pg_temp
set timezone = 'UTC' set datestyle = 'ISO, YMD' set intervalstyle = 'postgres' set bytea_output = 'hex' set extra_float_digits = 1
as $$
declare
  e        record;
  other    record;
  target   record;
  names    text[];
  hidden   text[];
  columns  text[];
  place    jsonb;  -- the key of the row now
  expected jsonb;  -- what the row has to be; null when there must be none
  wanted   jsonb;  -- what it becomes; null when it goes
  present  jsonb;
  at_key   text;
  changed  bigint;
  missing  text;
  context  constant text := coalesce(current_setting('pgeverything_audit.context', true), '');
begin
  select * into e from pgeverything.audit_entries a where a.id = entry;
  if e.id is null then
    problem := 'there is no such entry';
    return;
  elsif e.key is null then
    problem := format('it is no change of a row, it is a record of %s', e.action);
    return;
  end if;
  select t.* into target from pgeverything.audit_tables() t where t.subject = e.subject;
  if target.relation is null then
    problem := format('%s is not tracked any more, so that the change would leave no entry', e.subject);
    return;
  elsif not target.enabled then
    problem := format('a trigger of %s is disabled, so that the change would leave no entry', target.name);
    return;
  end if;
  if e.masked is not null and (e.old is not null or e.other_key is not null) then
    problem := format('the values of %s are masked', array_to_string(e.masked, ', '));
    return;
  elsif e.digests is not null and e.personal is null then
    problem := 'its personal values were erased';
    return;
  end if;
  expected := e.new || coalesce(e.personal -> 'new', '{}');
  wanted := e.old || coalesce(e.personal -> 'old', '{}');
  place := e.key::jsonb;
  if e.other_key is not null then  -- the two entries of a changed key are undone together
    select * into other from pgeverything.audit_entries a
    where a.subject = e.subject and a.key = e.other_key and a.other_key = e.key and a.transaction_id = e.transaction_id
      and (a.new is null) <> (e.new is null)
    order by abs(a.id - e.id) limit 1;
    expected := coalesce(expected, other.new || coalesce(other.personal -> 'new', '{}'));
    wanted := coalesce(wanted, other.old || coalesce(other.personal -> 'old', '{}'));
    if e.new is null then
      place := e.other_key::jsonb;
    end if;
  end if;
  expected := expected - pgeverything.audit_virtual(target.relation);
  names := pgeverything.audit_key_names(target.relation, target.key_numbers, target.key_names);
  hidden := pgeverything.audit_hidden(target.relation, target.excluded || target.masked);
  place := (select jsonb_object_agg(names[n], v) from jsonb_array_elements(place) with ordinality k (v, n));

  -- The columns to write: those of today that the entry tells. One that it does not tell, because it is left out of the
  -- trail, cannot be put back with a row that is gone.
  select array_agg(a.attname::text) filter (where wanted ? a.attname and a.attgenerated = ''),
         min(quote_ident(a.attname)) filter (where not wanted ? a.attname and a.attname = any (hidden))
  into columns, missing
  from pg_attribute a where a.attrelid = target.relation and a.attnum > 0 and not a.attisdropped;
  if expected is null and missing is not null then
    problem := format('the value of %s is not in the trail', missing);
    return;
  end if;
  select quote_ident(c) into missing from jsonb_object_keys(coalesce(wanted, expected)) c
  where not exists (select from pg_attribute a where a.attrelid = target.relation and a.attname = c and not a.attisdropped) limit 1;
  if missing is not null then
    problem := format('the table has no column %s any more', missing);
    return;
  end if;

  at_key := pgeverything.audit_at_key(target.relation, names, '$1');
  execute format('select to_jsonb(t.*) from %s t where %s for update', target.name, at_key)
  into present using place;
  if wanted is null then  -- of what the entry does not tell, because it is masked or came later, the trail has to
    select format('%s was changed since', (
             select string_agg(quote_ident(c), ', ') from (
               select unnest(a.masked) union select jsonb_object_keys(a.new) except select jsonb_object_keys(expected)) c (c)))
    into problem
    from pgeverything.audit_entries a
    where a.subject = e.subject and a.key = e.key and a.id > e.id
      and (a.masked is not null or a.new - array(select jsonb_object_keys(expected)) <> '{}') limit 1;
    if found then
      return;
    end if;
  end if;
  if expected is null and present is not null then
    problem := 'there is a row of this key again';
    return;
  elsif expected is not null and present is null then
    problem := 'the row is gone';
    return;
  elsif exists (select from jsonb_each(expected) c where c.value is distinct from present -> c.key) then
    problem := format('%s was changed since', (
      select string_agg(quote_ident(c.key), ', ') from jsonb_each(expected) c where c.value is distinct from present -> c.key));
    return;
  end if;

  columns := case when expected is null then columns
                  else array(select c from unnest(columns) c where wanted -> c is distinct from expected -> c) end;
  if wanted is not null and columns = '{}' then
    problem := 'it changed nothing but what the table computes by itself';
    return;
  elsif wanted is not null and expected is not null then
    select quote_ident(n) into missing from unnest(pgeverything.audit_hidden(target.relation, target.excluded)) n
    where n = any (columns) limit 1;
    if found then
      problem := format('%s is excluded now, so that its change would leave no entry', missing);
      return;
    end if;
  end if;
  perform set_config('pgeverything_audit.context', (coalesce(nullif(context, ''), '{}')::jsonb || jsonb_build_object('reverts', entry))::text, true);
  if expected is null then
    execute format('insert into %s (%s) overriding system value select %2$s from jsonb_populate_record(null::%1$s, $1) on conflict do nothing',
                   target.name, (select string_agg(quote_ident(c), ', ') from unnest(columns) c))
    using wanted;
  elsif wanted is null then
    execute format('delete from %s t where %s', target.name, at_key)
    using place;
  else
    execute format('update %s t set %s from jsonb_populate_record(null::%1$s, $2) w where %3$s', target.name,
                   (select string_agg(format('%1$I = w.%1$I', c), ', ') from unnest(columns) c), at_key)
    using place, wanted;
  end if;
  get diagnostics changed = row_count;
  perform set_config('pgeverything_audit.context', context, true);
  if changed = 0 then
    problem := case when expected is null then 'there is a row of this key again'
                    else 'a trigger or a policy of the table did not let it' end;
    return;
  end if;
  select max(a.id) into made from pgeverything.audit_entries a
  where a.subject = e.subject and a.key in (e.key, e.other_key) and a.transaction_id = pg_current_xact_id()::text::bigint;
end $$;


-- Seal -------------------------------------------------------------------------------------------------------------

-- The Merkle root of RFC 9162 over hashes of 32 bytes each: two neighbours make one of the next level, the last without a
-- neighbour moves up as it is.
create function pgeverything.audit_root(leaves bytea) returns bytea
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
declare
  level bytea := leaves;
begin
  while length(level) > 32 loop
    level := (
      select string_agg(case when length(p.pair) = 64 then sha256('\x01'::bytea || p.pair) else p.pair end, '' order by p.place)
      from (select g as place, substring(level from g for 64) as pair from generate_series(1, length(level), 64) g) p);
  end loop;
  return level;
end $$;

-- What is sealed of an entry: the SHA-256 of a zero byte and its columns, but for `personal`, each as its length in
-- characters, a colon, its text and a semicolon, or as "-;" when it is null; the time in microseconds since 1970.
create function pgeverything.audit_leaf(e pgeverything.audit_entries) returns bytea
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  return sha256('\x00'::bytea || convert_to((
    select string_agg(coalesce(length(f.value) || ':' || f.value || ';', '-;'), '' order by f.place)
    from unnest(array[
      e.id::text, (extract(epoch from e.at) * 1000000)::bigint::text, e.transaction_id::text, e.action, e.subject, e.key,
      e.other_key, e.old::text, e.new::text, to_jsonb(e.masked)::text, e.digests::text, e.actor, e.reason, e.context::text,
      e.session_role, e.role]) with ordinality f (value, place)), 'UTF8'));
end $$;

-- How far entries can be sealed: none will appear at or below it.
--
-- Ids are given out in one order and committed in another. So in this order: the sequence (S), then a transaction id of our
-- own (X). Whoever has taken an id up to S had a transaction id before that, a lower one than X; when all those have
-- ended, nothing can appear at or below S any more. While one is still open, S and X are remembered for the next time.
-- An unrelated transaction that stays open delays the seal, and nobody else.
create function pgeverything.audit_horizon() returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  last   bigint;
  own    bigint;
  oldest bigint;
  state  record;
begin
  if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
    raise exception 'the trail is sealed in READ COMMITTED, not in %', upper(current_setting('transaction_isolation'))
      using errcode = 'PGE22';
  elsif pg_current_xact_id_if_assigned() is not null then
    raise exception 'the trail is sealed in a transaction of its own, which has written nothing' using errcode = 'PGE22';
  end if;
  last := coalesce(pg_sequence_last_value('pgeverything.audit_seq'), 0);
  own := pg_current_xact_id()::text::bigint;
  select s.* into state from pgeverything.audit_sealing s for update;  -- one at a time
  oldest := pg_snapshot_xmin(pg_current_snapshot())::text::bigint;
  if oldest >= own then
    state.horizon := greatest(state.horizon, last);
    state.pending_id := null;
  elsif state.pending_id is not null and oldest >= state.pending_xid then
    state.horizon := greatest(state.horizon, state.pending_id);
    state.pending_id := null;
  end if;
  if state.pending_id is null or state.pending_xid > own then  -- or it was restored into another cluster
    state.pending_id := last;
    state.pending_xid := own;
  end if;
  update pgeverything.audit_sealing s
  set horizon = state.horizon, pending_id = state.pending_id, pending_xid = state.pending_xid;
  return state.horizon;
end $$;

-- Adds up to `most` blocks of entries up to an id, each of one month and of at most `size` entries; returns how many, and
-- whether there are entries left.
create function pgeverything.audit_chain(upto bigint, most integer, size integer, out blocks integer, out more boolean)
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off
as $$
declare
  before record;
  block  record;
begin
  blocks := 0;
  select b.number, b.last_id, b.hash into before from pgeverything.audit_blocks b order by b.number desc limit 1;
  if not found then
    select 0::bigint as number, 0::bigint as last_id, ''::bytea as hash into before;
  end if;
  loop
    with page as materialized (
      select e.id, date_trunc('month', e.at at time zone 'UTC')::date as month, pgeverything.audit_leaf(e) as leaf
      from pgeverything.audit_entries e
      where e.id > before.last_id and e.id <= upto
      order by e.id limit case when blocks < most then size else 1 end),
    ends as (
      select min(p.id) as id from page p where p.month <> (select f.month from page f order by f.id limit 1))
    select min(p.month) as month, min(p.id) as first_id, max(p.id) as last_id, count(*)::integer as entries,
           array_agg(p.id order by p.id) as ids, string_agg(p.leaf, '' order by p.id) as leaves
    into block
    from page p cross join ends where ends.id is null or p.id < ends.id;
    more := block.entries > 0;
    exit when blocks = most or not more;
    blocks := blocks + 1;
    before.number := before.number + 1;
    before.last_id := block.last_id;
    insert into pgeverything.audit_blocks as b (number, month, first_id, last_id, entries, sealed_at, root, hash, ids, leaves)
    select before.number, block.month, block.first_id, block.last_id, block.entries, clock_timestamp(), r.root,
           sha256(before.hash || convert_to(
             concat_ws(':', before.number, block.month, block.first_id, block.last_id, block.entries, ''), 'UTF8') || r.root),
           block.ids, block.leaves
    from (select pgeverything.audit_root(block.leaves) as root) r
    returning b.hash into before.hash;
  end loop;
end $$;

-- Seals entries, as audit_chain() says, as far as they can be.
create function pgeverything.audit_seal(most integer default 10, size integer default 10000, out blocks integer, out more boolean)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  select c.blocks, c.more into audit_seal.blocks, audit_seal.more
  from pgeverything.audit_chain(pgeverything.audit_horizon(), most, size) c;
end $$;

-- Erases the personal values of the entries of a row, and says so in the trail; returns of how many. Their salted hashes
-- stay, so that the seal still holds.
create function pgeverything.audit_erase(subject text, key text) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  erased bigint;
begin
  update pgeverything.audit_entries e set personal = null
  where e.subject = audit_erase.subject and e.key = audit_erase.key and e.personal is not null;
  get diagnostics erased = row_count;
  if erased > 0 then
    perform pgeverything.audit_write('erase', subject, null, null, null, jsonb_build_object('key', key::jsonb, 'entries', erased));
  end if;
  return erased;
end $$;


-- Monthly partitions -----------------------------------------------------------------------------------------------

-- Creates the partitions of this month and the next ones, and drops those that audit_drop() has emptied; returns how many
-- it created. An attach blocks no writer; a drop takes its locks at once or not at all.
create function pgeverything.audit_partitions(ahead integer default 3) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '100ms'
set timezone = 'UTC'
as $$
declare
  home    text := quote_ident('pgeverything');
  floor   constant date := (select s.dropped from pgeverything.audit_sealing s);
  made    integer := 0;
  month   date;
  name    text;
  grantee regrole;
begin
  for month in
    select m::date from generate_series(date_trunc('month', clock_timestamp()),
                                        date_trunc('month', clock_timestamp()) + make_interval(months => ahead), interval '1 month') m
    union
    select date_trunc('month', e.at)::date from pgeverything.audit_entries_default e where floor is null or e.at >= floor
  loop
    name := 'audit_entries_' || to_char(month, 'YYYYMM');
    continue when to_regclass(format('%s.%I', home, name)) is not null;
    begin
      execute format('create table %s.%I (like %s.audit_entries including all)', home, name, home);
      execute format('with moved as (delete from %s.audit_entries_default where at >= %L and at < %L returning *)
                      insert into %s.%I select * from moved', home, month, month + interval '1 month', home, name);
      execute format('alter table %s.audit_entries attach partition %s.%I for values from (%L) to (%L)',
                     home, home, name, month, month + interval '1 month');
      -- Default privileges would let somebody write the trail by the name of this part of it.
      for grantee in
        select distinct a.grantee::regrole
        from pg_class c cross join lateral aclexplode(c.relacl) a
        where c.oid = format('%s.%I', home, name)::regclass and a.grantee not in (0, c.relowner)
      loop
        execute format('revoke all on %s.%I from %s', home, name, grantee);
      end loop;
      execute format('revoke all on %s.%I from public', home, name);
      made := made + 1;
    exception when lock_not_available or duplicate_table or check_violation then
      null;  -- somebody else does it, or it is done next time
    end;
  end loop;
  for name in
    select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = 'pgeverything.audit_entries'::regclass and c.relname ~ '_[0-9]{6}$'
      and to_date(right(c.relname, 6), 'YYYYMM') < floor
  loop
    begin
      execute format('lock table only %s.audit_entries, only %s.audit_entries_default, only %s.%I in access exclusive mode nowait',
                     home, home, home, name);
      execute format('drop table %s.%I', home, name);
    exception when lock_not_available then
      null;
    end;
  end loop;
  return made;
end $$;

-- Drops the entries of months that end by `before`, oldest first; returns the month from which on entries are kept, null
-- while none were dropped. Only what is sealed goes: its blocks stay, so that the rest can still be verified. It empties
-- a partition, which waits for nobody who writes; audit_partitions() drops the empty one.
create function pgeverything.audit_drop(before timestamptz) returns date
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '100ms'
set timezone = 'UTC'
as $$
declare
  home   text := quote_ident('pgeverything');
  upto   date := least(date_trunc('month', before), date_trunc('month', clock_timestamp()))::date;
  sealed bigint;
  floor  date;
  open   timestamptz;
  name   text;
begin
  select s.dropped into floor from pgeverything.audit_sealing s for update;
  select coalesce(max(b.last_id), 0) into sealed from pgeverything.audit_blocks b;
  select min(e.at) into open from pgeverything.audit_entries e where e.id > sealed;
  upto := least(upto, date_trunc('month', open)::date);
  if upto <= floor or not exists (select from pgeverything.audit_blocks b where b.month < upto and (floor is null or b.month >= floor)) then
    return floor;
  end if;
  for name in
    select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = 'pgeverything.audit_entries'::regclass and c.relname ~ '_[0-9]{6}$'
      and to_date(right(c.relname, 6), 'YYYYMM') < upto
  loop
    execute format('truncate %s.%I', home, name);
  end loop;
  lock table only pgeverything.audit_entries_default in share mode;  -- entries of transactions that are open are not to be seen
  delete from pgeverything.audit_entries_default e where e.at < upto;
  update pgeverything.audit_blocks b set ids = null, leaves = null where b.month < upto and b.leaves is not null;
  update pgeverything.audit_sealing s set dropped = upto;
  perform pgeverything.audit_write('drop', 'pgeverything.audit_entries', null, null, null, jsonb_build_object('before', upto));
  return upto;
exception when lock_not_available then
  return floor;  -- a reader is there
end $$;

select pgeverything.audit_partitions();


-- Roles ------------------------------------------------------------------------------------------------------------

-- Takes from a role what `grant ... on all tables` and `on all functions` have given it too much of: it can no longer
-- write the trail, also not by the name of a partition, track tables, erase or drop. Run it as the schema's owner.
create function pgeverything.audit_protect(from_role regrole, reads boolean default true) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  one text;
begin
  for one in
    select p.relid::text from pg_partition_tree('pgeverything.audit_entries'::regclass) p
    union all select 'pgeverything.audit_blocks'::regclass::text
    union all select 'pgeverything.audit_sealing'::regclass::text
  loop
    execute format('revoke insert, update, delete, truncate, references, trigger on %s from %s', one, from_role);
    if not reads then
      execute format('revoke select on %s from %s', one, from_role);
    end if;
  end loop;
  for one in
    select p.oid::regprocedure::text from pg_proc p
    where p.pronamespace = 'pgeverything'::regnamespace
      and p.proname in ('audit_row', 'audit_update', 'audit_bulk', 'audit_truncate', 'audit_note', 'audit_erase', 'audit_drop')
  loop
    execute format('revoke execute on function %s from %s', one, from_role);
  end loop;
end $$;

-- They have their owner's rights, or are the way into those: only roles that are told may run them.
revoke execute on function pgeverything.audit_write(text, text, text, text, jsonb, jsonb, text[], text[]) from public;
revoke execute on function pgeverything.audit_row() from public;
revoke execute on function pgeverything.audit_update() from public;
revoke execute on function pgeverything.audit_bulk() from public;
revoke execute on function pgeverything.audit_truncate() from public;
revoke execute on function pgeverything.audit_record(text, text, jsonb) from public;
revoke execute on function pgeverything.audit_note(text, text, jsonb) from public;
revoke execute on function pgeverything.audit_seal(integer, integer) from public;
revoke execute on function pgeverything.audit_erase(text, text) from public;
revoke execute on function pgeverything.audit_partitions(integer) from public;
revoke execute on function pgeverything.audit_drop(timestamptz) from public;
